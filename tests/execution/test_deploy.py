"""Files that put a job on Kubernetes, on Slurm and into a container: what they say fits what is asked of them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTERS = ["cluster.yaml", "deploy/gcp.yaml"]

# The fields of KubeRay 1.6's RayJob (ray.io/v1) that we set, with their types; its whole schema is 1.4 MB.
POD_GROUP = {"rayStartParams": dict, "template": dict}
FIELDS: dict[str, Any] = {
    "submissionMode": str,
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "entrypoint": str,
    "rayClusterSpec": {
        "rayVersion": str,
        "enableInTreeAutoscaling": bool,
        "autoscalerOptions": {"version": str, "idleTimeoutSeconds": int},
        "headGroupSpec": POD_GROUP,
        "workerGroupSpecs": [{**POD_GROUP, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}],
    },
}


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_accepts_the_cluster_file_and_would_notice_a_typing_error(name: str) -> None:
    validate_config(prepare_config(load(name)))
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config({**load(name), "max_wrokers": 3}))


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_head_does_no_work_and_gpus_are_spot_with_others_to_fall_back_on(name: str) -> None:
    types = load(name)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    spot, other = types["gpu-spot"], types["gpu-on-demand"]
    assert spot["resources"] == other["resources"]
    assert "SPOT" in str(spot["node_config"]).upper()
    assert "SPOT" not in str(other["node_config"]).upper()
    assert all(type["min_workers"] == 0 < type["max_workers"] for type in (spot, other, types["cpu"]))


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_set_up_of_a_machine_can_be_run_again(name: str, tmp_path: Path) -> None:
    bin, home = tmp_path / "bin", tmp_path / "home"
    bin.mkdir()
    home.mkdir()
    (home / ".bashrc").write_text("case $- in *i*) ;; *) return;; esac\n")  # Ubuntu's: other shells leave here
    (bin / "uv").write_text('#!/bin/bash\n[[ $1 != venv ]] || mkdir ~/venv\necho "$*" >> ~/log\n')
    (bin / "uv").chmod(0o755)
    environment = {"HOME": str(home), "PATH": f"{bin}:/usr/bin:/bin"}
    for _ in range(2):
        for command in load(name)["setup_commands"]:
            subprocess.run(["bash", "-euc", command], env=environment, check=True, timeout=20)
    made, installed, again = (home / "log").read_text().splitlines()
    assert made == f"venv --quiet --managed-python --python 3.12 {home}/venv"
    assert installed == again
    assert f"-c {home}/llava-batch/constraints.txt -e {home}/llava-batch[" in installed
    bashrc = (home / ".bashrc").read_text().splitlines()
    assert (len(bashrc), bashrc[0].split()[:2]) == (2, ["export", "PATH=$HOME/venv/bin:$PATH"])


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize(("kind", "where"), [("head", "--head --port=6379"), ("worker", "--address=10.0.0.1:6379")])
def test_ray_is_started_as_its_commands_say(name: str, kind: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "ray").write_text('#!/bin/bash\necho "$*"\n')
    (tmp_path / "ray").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    commands = load(name)[f"{kind}_start_ray_commands"]
    said = [subprocess.check_output(["bash", "-c", one], env=environment, text=True) for one in commands]
    assert said[0] == "stop\n"
    assert re.fullmatch(rf"start {where} --object-manager-port=8076 .*--object-store-memory=\d{{9,}}\n", said[1])


@pytest.mark.parametrize(
    ("name", "package"), [("cluster.yaml", "boto3"), ("deploy/gcp.yaml", "google-api-python-client")]
)
def test_a_head_has_what_rays_autoscaler_starts_machines_by(name: str, package: str) -> None:
    (install,) = [command for command in load(name)["setup_commands"] if "pip install" in command]
    assert install.split()[-1] == package  # neither Ray nor a client of the store brings it
    assert f"\n{package}==" in (ROOT / "constraints.txt").read_text()


def test_on_google_cloud_the_head_keeps_the_account_that_may_start_machines() -> None:
    types = load("deploy/gcp.yaml")["available_node_types"]
    assert [name for name, type in types.items() if "serviceAccounts" not in type["node_config"]] == ["head"]


def test_no_setting_of_aws_is_empty_and_every_machine_has_an_image_a_role_and_a_disk() -> None:
    for type in load("cluster.yaml")["available_node_types"].values():
        config = type["node_config"]
        assert {"ImageId", "IamInstanceProfile", "BlockDeviceMappings", "InstanceType"} <= config.keys()
        assert None not in config.values()


def test_ec2_knows_what_it_is_asked_for_under_these_names_and_types() -> None:
    validator = ParamValidator()
    asked = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for type in load("cluster.yaml")["available_node_types"].values():
        request = {**type["node_config"], "MinCount": 1, "MaxCount": 1}
        assert validator.validate(request, asked).generate_report() == ""
        assert "InstanceTyp" in validator.validate({**request, "InstanceTyp": "m7i"}, asked).generate_report()


def misfits(value: Any, wanted: Any, where: str = "spec") -> list[str]:
    """Where a manifest has what its schema has not."""
    if isinstance(wanted, dict):
        unknown = [f"{where}.{name}" for name in value.keys() - wanted.keys()]
        return unknown + [one for name in value if name in wanted for one in misfits(value[name], wanted[name], name)]
    if isinstance(wanted, list):
        return [one for item in value for one in misfits(item, wanted[0], where)]
    return [] if type(value) is wanted else [f"{where}: {value!r}"]


def test_the_job_on_kubernetes_has_fields_and_types_of_its_kind() -> None:
    manifest = load("deploy/rayjob.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert misfits(manifest["spec"], FIELDS) == []
    assert misfits({**manifest["spec"], "backofLimit": 3, "entrypoint": 3}, FIELDS) == [
        "spec.backofLimit",
        "entrypoint: 3",
    ]


def test_its_head_does_no_work_and_its_gpu_pods_come_when_they_are_asked_for() -> None:
    cluster = load("deploy/rayjob.yaml")["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["headGroupSpec"]["template"]["spec"]["restartPolicy"] == "Never"  # of SidecarMode
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert (groups["gpu"]["replicas"], groups["gpu"]["minReplicas"]) == (0, 0)
    for group in groups.values():
        (container,) = group["template"]["spec"]["containers"]
        assert all(isinstance(amount, str) for amount in container["resources"]["limits"].values())
        assert container["envFrom"] == [{"secretRef": {"name": "llava-batch-store"}}]


def test_the_ray_of_the_manifest_is_the_one_that_is_installed_in_the_image() -> None:
    pinned = {line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert f"ray=={load('deploy/rayjob.yaml')['spec']['rayClusterSpec']['rayVersion']}" in pinned
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"llava-batch:{version}" in (ROOT / "deploy/rayjob.yaml").read_text()


# As Slurm does: both nodes at once, and neither any longer once one has failed.
_SRUN = """
while [[ $1 == --* ]]; do echo "$1"; shift; done
for node in 1 2; do SLURMD_NODENAME=node-$node setsid "$@" & nodes+=($!); done
for _ in 1 2; do wait -n || { code=$?; kill -9 -- ${nodes[@]/#/-} 2> /dev/null; exit $code; }; done
"""
# As Ray does: a Ray that does not start is a line, a minute or ten on the other nodes and exit status 0.
_SYMMETRIC_RUN = r"""
if [[ " ${FAILS_ON:-} " == *" $SLURMD_NODENAME "* ]]; then
    printf '%b' "${SAYS:-}"
    printf 'Failed to start Ray: exit status 1.\n2026-11-26 INFO -- Did not find any active Ray processes.\n' >&2
elif [[ ${FAILS_ON:-} ]]; then
    exec sleep 1000
elif [[ $SLURMD_NODENAME == node-2 ]]; then
    echo "Ray runtime started."
    exit 137  # lost while the job is at work
else
    echo "Head node started."
    env | grep -E "^RAY_A" | sort
    printf "%s\n" "$@"
    while [[ $1 != -- ]]; do shift; done
    shift
    "$@"
fi
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment as Slurm's, of two nodes, with a symmetric-run that says what it is given."""
    bin = tmp_path / ".venv" / "bin"
    bin.mkdir(parents=True)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__main__.py").touch()
    programs = {
        "scontrol": "printf 'node-1\\nnode-2\\n'",
        "getent": "printf '127.0.1.1 STREAM node-1\\n10.0.0.1 STREAM node-1\\n'",
        "srun": _SRUN,
        "ray": _SYMMETRIC_RUN,
        "python": "exit ${FAILS_WITH:-0}",
        "pkill": f'echo "$SLURMD_NODENAME" >> "$STOPPED"; exec {shutil.which("pkill")} "$@"',
    }
    for name, text in programs.items():
        (bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin / name).chmod(0o755)
    given = {
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_ON_NODE": "8",
        "STOPPED": str(tmp_path / "stopped"),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, **given, "SLURM_SUBMIT_DIR": str(tmp_path), "PATH": f"{bin}:{os.environ['PATH']}"}


@contextmanager
def raylet(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that tells as much of itself as a raylet whose head is at this port."""
    words = ["--raylet_socket_name=x", f"--gcs-address=10.0.0.1:{port}", "--session-name=x"]
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", *words])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_slurm(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "deploy/slurm.sh", "caption", "--prompt", "What is this?"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_on_slurm_one_ray_is_started_on_all_nodes_and_the_job_on_the_first(slurm: dict[str, str]) -> None:
    done = run_slurm(slurm)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[:3] == ["--export=ALL", "--ntasks=2", "--ntasks-per-node=1"]
    lines.remove("Ray runtime started.")  # on the other node, whenever it likes
    ray = lines.index("symmetric-run")
    assert lines[ray : ray + 7] == [
        *("symmetric-run", "--address", "10.0.0.1:20007", "--min-nodes", "2", "--num-cpus", "8"),
    ]
    assert lines[-6:] == ["python", "-m", "jobs", "caption", "--prompt", "What is this?"]
    assert "RAY_ADDRESS=10.0.0.1:20007" in lines
    (token,) = [line for line in lines if line.startswith("RAY_AUTH_TOKEN=")]
    assert len(token.partition("=")[2]) == 64


@pytest.mark.parametrize("status", [1, 2, 143])
def test_on_slurm_the_exit_status_is_the_jobs(slurm: dict[str, str], status: int) -> None:
    assert run_slurm({**slurm, "FAILS_WITH": str(status)}).returncode == status


@pytest.mark.parametrize(
    ("node", "said", "why"),
    [
        pytest.param("node-2", "Usage: ray\\n\\nError: No option --x\\n", "Error: No option --x", id="flag"),
        pytest.param("node-2", "  File 1\\nRuntimeError: Ray\\n  2.59\\n", "RuntimeError: Ray 2.59", id="traceback"),
        pytest.param("node-1", "On head node. Starting\\nno room\\n", "no room", id="head"),
        pytest.param("node-1 node-2", "", "", id="both, without a word"),
    ],
)
def test_on_slurm_a_node_whose_ray_does_not_start_ends_the_job_at_once_and_says_why(
    slurm: dict[str, str], node: str, said: str, why: str
) -> None:
    with raylet(20007) as ours, raylet(20008) as of_another_job:
        done = run_slurm({**slurm, "FAILS_ON": node, "SAYS": said})
        assert ours.wait(timeout=20) == -signal.SIGKILL  # no Ray is left
        assert of_another_job.poll() is None
    assert done.returncode == 1
    assert re.search(rf"^error: node ({node.replace(' ', '|')}) did not start its Ray: {why}", done.stderr, re.M)
    assert "error: the job did not come to an end of its own" in done.stderr
    assert sorted(Path(slurm["STOPPED"]).read_text().split()) == ["node-1", "node-2"]


def test_on_slurm_a_folder_that_is_no_checkout_is_refused(slurm: dict[str, str]) -> None:
    done = run_slurm({**slurm, "LLAVA_BATCH_PROJECT": "/nowhere"})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "must be the checkout, /nowhere is not" in done.stderr


def test_what_the_image_copies_is_there_and_its_builder_is_sent_nothing_else() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in allowed)
    assert {"jobs", "pipeline", "schemas", "llava_batch", "constraints.txt", "pyproject.toml"} <= allowed
    assert not allowed & {"tests", ".venv", "out", "demo"}
    containerfile = (ROOT / "Containerfile").read_text()
    assert "USER 1000:1000" in containerfile
    assert "-c constraints.txt" in containerfile
