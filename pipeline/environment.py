"""Environment: what this process finds around it: its version, the cluster it is told of, cores, cards, a folder for
sockets."""

import contextlib
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from schemas.errors import Refused


def version() -> str:
    """Return the version in the checkout's pyproject.toml, which an installation may be behind; else the
    installation's."""
    project = Path(__file__).parents[1] / "pyproject.toml"
    if not project.exists():
        return metadata.version("llava-batch")
    return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cluster_address() -> str | None:
    """Return the cluster that RAY_ADDRESS names; None where it is empty or asks for a Ray of this process's own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def check_wait(wait_for_cluster: float) -> None:
    """Raise Refused where there is no cluster to wait for."""
    if wait_for_cluster and cluster_address() is None:
        raise Refused(
            f"wait_for_cluster must be 0 for a Ray of the job's own, got {wait_for_cluster:g}: set RAY_ADDRESS to the "
            "cluster that is to be waited for"
        )


def head_address() -> tuple[str, int] | None:
    """Return host and port of the cluster's head where RAY_ADDRESS says them; None where it is `auto` or the like."""
    host, _, port = (cluster_address() or "").rpartition("://")[2].rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else None


def cpus_here() -> int:
    """Return the cores that this process may use, by its affinity and its container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *quotas()]))


def quotas(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yield what cgroups grant in whole cores: those that this process is in, of version 2 and of version 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        for folder in _cgroups(root, own):
            try:
                words = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
                quota, period = map(int, words)
            except (OSError, ValueError):  # no such file, or `max`: no quota
                continue
            if quota > 0 < period:
                yield max(1, quota // period)


def _cgroups(root: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroups and of all around them."""
    yield from (root, root / "cpu", root / "cpu,cpuacct")
    with contextlib.suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "cpu", "cpu,cpuacct"):
                folder = root / controllers / path.lstrip("/")
                yield from (folder, *(above for above in folder.parents if root in above.parents))


_CARDS_S = 60.0  # a driver that has to be loaded first takes some ten seconds a machine


def cards_here(limit_s: float = _CARDS_S) -> tuple[int, ...]:
    """Return the memory of each GPU that this process may use. Raise Refused where the GPUs' driver does not answer.

    Ask the driver's own tool: torch would leave half a GB on a card.
    """
    tool, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if tool is None or (visible is not None and not visible.strip()):
        return ()
    asked = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(
            asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(
            f"GPUs must answer {tool} within {limit_s:g} s, they have not: look at the machine's driver, or set "
            "CUDA_VISIBLE_DEVICES='' to answer on the CPU"
        ) from error
    cards = tuple(int(line) * 2**20 for line in found.stdout.splitlines() if line.strip().isdigit())
    return visible_cards(cards, visible)


def check_gpus(wanted: int | None, cards: tuple[int, ...]) -> None:
    """Raise Refused where a Ray of this process's own can never have them; what a cluster has it says itself."""
    if not cluster_address() and (wanted or 0) > len(cards):
        raise Refused(
            f"gpus must be at most the {len(cards)} GPUs that can be used on this machine, got {wanted}: ask for fewer "
            "(--gpus 0 answers on the CPU), or set RAY_ADDRESS to a cluster that has them"
        )


def visible_cards(cards: tuple[int, ...], visible: str | None) -> tuple[int, ...]:
    """Return the cards that CUDA_VISIBLE_DEVICES leaves: those before the first that is not there, as CUDA has it."""
    if visible is None:
        return cards
    left: list[int] = []
    for name in (one.strip() for one in visible.split(",")):
        if name.isdigit() and int(name) < len(cards):
            left.append(cards[int(name)])
        elif name.startswith(("GPU-", "MIG-")) and cards:
            left.append(min(cards))
        else:
            break
    return tuple(left)


_SOCKET_PATH = 107  # bytes of a path that a socket can have
_BELOW = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")


def socket_folder() -> str:
    """Return the folder below which a Ray of this process's own keeps its sockets and logs: Ray's own choice where that
    is short enough and can be written, else another. Raises Refused where there is none."""
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    for folder in (chosen, "/tmp", "/var/tmp", "/dev/shm"):
        for below in ("ray", f"ray-{os.getuid()}"):  # the first may be another user's
            path = os.path.join(os.path.abspath(folder), below)
            if len(os.fsencode(folder)) + _BELOW <= _SOCKET_PATH and _can_be_written(path):
                return path
    longest = _SOCKET_PATH - _BELOW
    raise Refused(f"TMPDIR must be a folder that can be written, of at most {longest} characters, got {chosen}")


def object_store_folder(otherwise: str, shared: str = "/dev/shm") -> str | None:
    """Return where a Ray of this process's own keeps objects: None for shared memory, `otherwise` where there is
    none."""
    return None if os.path.isdir(shared) and os.access(shared, os.W_OK | os.X_OK) else otherwise


def _can_be_written(folder: str) -> bool:
    there = folder if os.path.exists(folder) else os.path.dirname(folder)
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)
