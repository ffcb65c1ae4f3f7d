"""A Slurm of two nodes on this machine: each node has a network, processes, names and temporary files of its own.

It asks for root, and for Debian's slurm-wlm, munge and iproute2. Its `ray stop` finds no Ray but the node's own.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "ip", "unshare")
_ADDRESSES = {"ctl": "10.213.0.1", "n1": "10.213.0.11", "n2": "10.213.0.12"}
_CONFIG = """\
ClusterName=local
SlurmctldHost=ctl(10.213.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=10
SlurmctldPidFile={folder}/ctl.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/ctl.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
NodeName=n1 NodeAddr=10.213.0.11 CPUs={cpus} RealMemory=4000 Gres=gpu:1
NodeName=n2 NodeAddr=10.213.0.12 CPUs={cpus} RealMemory=4000 Gres=gpu:1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """A running Slurm, whose commands are those of its head."""

    folder: Path
    environment: dict[str, str]

    def command(self, *words: str, cwd: Path | None = None) -> str:
        """What a command of Slurm's says."""
        entered = ["ip", "netns", "exec", _netns("ctl"), *words]
        done = subprocess.run(entered, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job; nothing where its controller is too busy to say."""
        try:
            words = self.command("scontrol", "show", "job", job).split()
        except AssertionError:
            words = ["JobState=UNKNOWN"]
        return dict(word.split("=", 1) for word in words if "=" in word)


def is_here() -> bool:
    """Return whether this machine can run it."""
    return os.geteuid() == 0 and all(map(shutil.which, PROGRAMS))


@contextmanager
def running_slurm(folder: Path, cpus: int) -> Iterator[Slurm]:
    """Two nodes that wait for jobs; all that was started ends with the block."""
    folder.chmod(0o755)
    (folder / "slurm.conf").write_text(_CONFIG.format(folder=folder, cpus=cpus))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "gres.conf").write_text("NodeName=n1,n2 Name=gpu File=/dev/null\n")
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in _ADDRESSES.items()))
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    environment = {**kept, "SLURM_CONF": str(folder / "slurm.conf")}
    with ExitStack() as stack:
        stack.enter_context(_daemon(_munged(folder), environment, folder / "munged.out"))
        stack.enter_context(_network())
        for name in _ADDRESSES:
            program = "slurmctld" if name == "ctl" else "slurmd"
            stack.enter_context(_daemon(_node(name, program, folder), environment, folder / f"{name}.out"))
        slurm = Slurm(folder=folder, environment=environment)
        _wait_for_nodes(slurm)
        yield slurm


def _munged(folder: Path) -> list[str]:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
    files |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
    return ["munged", "--foreground", "--force", *(f"--{name}={file}" for name, file in files.items())]


def _node(name: str, program: str, folder: Path) -> list[str]:
    """A daemon on a node: with its own network, host name, processes, /tmp/ray and shared memory."""
    apart = "hostname $0 && mount --bind $1/hosts /etc/hosts && mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray"
    apart += " && mount -t tmpfs none /dev/shm && exec $2 -D"
    namespaces = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return ["ip", "netns", "exec", _netns(name), *namespaces, "bash", "-c", apart, name, str(folder), program]


@contextmanager
def _daemon(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=20)


@contextmanager
def _network() -> Iterator[None]:
    """A bridge in the controller's network, a cable from each node to it; nothing of it is in the machine's own."""
    made = []
    try:
        for name in _ADDRESSES:
            _ip("netns", "add", _netns(name))
            made.append(name)
            _ip("-n", _netns(name), "link", "set", "lo", "up")
        _ip("-n", _netns("ctl"), "link", "add", "br0", "type", "bridge")
        _address("ctl", "br0")
        for name in ("n1", "n2"):
            peer = ("peer", "name", f"to-{name}", "netns", _netns("ctl"))
            _ip("-n", _netns(name), "link", "add", "eth0", "type", "veth", *peer)
            _ip("-n", _netns("ctl"), "link", "set", f"to-{name}", "master", "br0", "up")
            _address(name, "eth0")
        yield
    finally:
        for name in made:
            _ip("netns", "delete", _netns(name))


def _address(name: str, device: str) -> None:
    _ip("-n", _netns(name), "address", "add", f"{_ADDRESSES[name]}/24", "dev", device)
    _ip("-n", _netns(name), "link", "set", device, "up")


def _netns(name: str) -> str:
    return f"llava-batch-{os.getpid()}-{name}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20)


def _wait_for_nodes(slurm: Slurm) -> None:
    for _ in range(60):
        try:
            states = slurm.command("sinfo", "--noheader", "--format=%t %D").split()
        except AssertionError:  # the controller is not up
            states = []
        if states == ["idle", "2"]:
            return
        time.sleep(1)
    logs = "".join(path.read_text()[-2000:] for path in slurm.folder.glob("*.log"))
    raise RuntimeError(f"the nodes did not come up: {states}\n{logs}")
