#!/bin/bash
# A job on Slurm: one Ray over all nodes of the allocation, the job on the first of them. Submit it from the checkout:
#
#   sbatch --nodes=4 --gpus-per-node=8 deploy/slurm.sh caption --input /data/*.parquet --output /data/captions --model M
#
# A job that is preempted or requeued begins again with the same arguments and goes on where it was: the run folder knows.
# The output must be on a file system that all nodes share, or in a store.
#SBATCH --job-name=llava-batch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60

set -euo pipefail

project=${LLAVA_BATCH_PROJECT:-$SLURM_SUBMIT_DIR}  # the checkout, its environment in .venv, seen by all nodes
ray=$project/.venv/bin/ray
python=$project/.venv/bin/python

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(getent ahostsv4 "${nodes[0]}" | awk 'NR == 1 {print $1}')
port=$((20000 + SLURM_JOB_ID % 20000))  # two jobs on one node do not meet

export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')}
export PYTHONPATH=$project RAY_ADDRESS=$address:$port PYTHONUNBUFFERED=1

# symmetric-run starts Ray on every node, the command on the one whose address it is given, and stops Ray after it.
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    "$ray" symmetric-run --address "$address:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "${SLURM_CPUS_ON_NODE:-$(nproc)}" --disable-usage-stats ${RAY_START_OPTIONS:-} -- \
    "$python" -m jobs "$@" &
job=$!
trap 'kill -TERM "$job"; wait "$job"' TERM  # a minute before the end of its time: what is done stays
wait "$job"
