"""Machines of the cluster: which come and go, in our words; and whether they see the files of each other."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.execution.ray_errors import RunFailed
from pipeline.run_folder.units import unit_path
from pipeline.storage import filesystem as fs

_SEEN_WITHIN_S = 10.0  # a file that another machine has written; NFS remembers for some seconds that it was not there


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Resources of the machines that are there, and the ids of those that are there no more."""

    resources: list[dict[str, float]]
    lost: set[str]


class Machines:
    """Says which machines have come and gone since the last look."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._there: dict[str, str] | None = None  # names by id; None before the first look
        self._dead = set[str]()

    def look(self, nodes: Sequence[dict[str, Any]]) -> Seen:
        """Return what there is, of what `ray.nodes` says."""
        alive = [node for node in nodes if node["Alive"]]
        there = {node["NodeID"]: _described(node) for node in alive}
        dead = {node["NodeID"] for node in nodes if not node["Alive"]}
        lost = set[str]()
        if self._there is not None:
            gone = self._there.keys() - there.keys()
            lost = gone | (dead - self._dead)  # the others came and went since the last look
            for id in gone:
                self._say(f"machine {self._there[id]} is gone; what it was at is done elsewhere")
            for id in there.keys() - self._there.keys():
                self._say(f"machine {there[id]} has joined")
        self._there, self._dead = there, dead
        return Seen(resources=[node["Resources"] for node in alive], lost=lost)


def _described(node: dict[str, Any]) -> str:
    counts = {name: node["Resources"].get(name, 0) for name in ("CPU", "GPU")}
    has = [f"{count:g} {name}{'s' if count != 1 else ''}" for name, count in counts.items() if count]
    return f"{node['NodeManagerAddress']} ({', '.join(has) or 'no CPUs'})"


def check_shared(folder: str, unit: int, machine: str, within_s: float = _SEEN_WITHIN_S) -> None:
    """Raise RunFailed where a unit that a machine has written is not to be seen from here."""
    path, until = unit_path(folder, unit), time.monotonic() + within_s
    while not fs.exists(path):
        if time.monotonic() >= until:
            raise RunFailed(
                f"--output must be on storage that all machines share, as NFS or s3://, got {folder}: machine "
                f"{machine} has written {path}, and it is not there on this machine"
            )
        time.sleep(within_s / 20)
