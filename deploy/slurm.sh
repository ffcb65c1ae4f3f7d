#!/bin/bash
# A job on Slurm: one Ray over all nodes of the allocation, the job on the first of them. Submit it from the checkout:
#
#   sbatch --nodes=4 --gpus-per-node=8 deploy/slurm.sh caption --input '/data/*.parquet' --output /data/captions --model M
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
[[ -e $project/jobs/__main__.py ]] || {
    echo "error: LLAVA_BATCH_PROJECT, or the folder of sbatch, must be the checkout, $project is not" >&2; exit 2; }
export PATH=$project/.venv/bin:$PATH PYTHONPATH=$project PYTHONUNBUFFERED=1  # symmetric-run looks for `ray` itself

# Many a node calls itself 127.0.1.1, where no other finds it.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
host=$({ getent ahostsv4 "${nodes[0]}"; hostname -I | tr ' ' '\n'; } |
    awk '$1 ~ /^[0-9.]+$/ && $1 !~ /^127\./ && !host {host = $1} END {print host}') || true
[[ $host ]] || { echo "error: ${nodes[0]} has no IPv4 address that this node knows" >&2; exit 1; }
export RAY_ADDRESS=$host:$((20000 + SLURM_JOB_ID % 20000))  # two jobs on one node do not meet

export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')}
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-600}  # 30 s without it

# symmetric-run starts Ray on every node, the command on the one whose address it is given, and stops Ray after it. Where
# Ray does not start it ends with 0 all the same: the job's own status is kept in a file of this node, which is the first,
# and a node whose Ray did not start ends the step, as the others would wait for it. One that is lost later does not.
on_each_node=$(cat <<'NODE'
    status=$0 said=$(mktemp)
    trap : TERM
    ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
        --num-cpus "${SLURM_CPUS_ON_NODE:-$(nproc)}" --disable-usage-stats ${RAY_START_OPTIONS:-} -- \
        bash -c 'trap : TERM; "$@"; echo $? > "$0"' "$status" python -m jobs "$@" \
        > >(trap '' TERM; exec tee -a "$said") 2> >(trap '' TERM; exec tee -a "$said" >&2)
    code=$?
    grep -qE '(Ray runtime|Head node) started' "$said" || sleep 1  # until what it said is all there
    if grep -q 'Ray runtime started' "$said"; then
        code=0
    elif grep -q 'Head node started' "$said"; then
        for ((i = 0; code == 143 && i < 50; i++)); do  # the job ends in order
            [[ -s $status ]] && break
            sleep 1
        done
    elif ((code != 143)); then
        why=$(grep -vE '^(On (head|worker) node|Failed to start Ray|std(out|err):|$)|Did not find any active Ray' "$said" |
            awk '/^[A-Za-z_.]*(Error|Exception)/ {kept = ""} {$1 = $1; kept = kept $0 " "} END {print substr(kept, 1, 1000)}')
        echo "error: node ${SLURMD_NODENAME:-$(hostname)} did not start its Ray: $why" >&2
        code=1
    fi
    rm -f "$said"
    exit "$code"
NODE
)
status=$(mktemp)
trap 'rm -f "$status"' EXIT
on_all=(srun --export=ALL --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpu-bind=none)
"${on_all[@]}" --kill-on-bad-exit=1 bash -c "$on_each_node" "$status" "$@" &
ray=$!
trap 'kill -TERM "$ray"; wait "$ray"' TERM  # a minute before the end of its time: what is done stays
wait "$ray" || true
if ! [[ -s $status ]]; then
    # Where Slurm knows processes by their parents, Ray's outlive a step that is killed, and the next job would meet them.
    # This job's have its port in their command lines; workers end with the raylet that has started them.
    ours="[-]-(gcs-address=[^ ]*:|gcs_server_port=)${RAY_ADDRESS##*:}( |\$)"
    timeout 60 "${on_all[@]}" pkill -KILL -U "$UID" -f "$ours" > /dev/null 2>&1 || true
    echo "error: the job did not come to an end of its own; the same sbatch goes on where it was" >&2
    exit 1
fi
exit "$(cat "$status")"
