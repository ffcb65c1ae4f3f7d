"""Events of a run or a sweep, as JSON lines in its folder: started, rows failed, a worker lost, a cell complete, the
budget spent, finished."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.run_folder.layout import state_path
from pipeline.storage import filesystem as fs
from schemas.wording import one_line, shortened

Kind = Literal[
    "started",
    "rows_failed",
    "worker_lost",
    "cell_complete",
    "cell_given_up",
    "budget_spent",
    "stopped",
    "failed",
    "finished",
]

NAME = "events.jsonl"
_MOST = 2_000  # lines of a run; of those that come often no more are written then
_OFTEN = ("rows_failed", "worker_lost")
_LONGEST = 500  # characters of a text
_FLUSH_S = 10.0


@dataclass(slots=True, kw_only=True)
class Events:
    """Writes the events of a folder. Stores cannot append: the file is small, and replaced whole.

    `confirm` raises FolderInUse where the folder is another driver's by now, whose events these would replace.
    """

    folder: str
    confirm: Callable[[], None] | None = None
    lines: list[str] = field(default_factory=list)
    written: int = 0  # lines
    written_at: float = float("-inf")
    is_broken: bool = False  # it cannot be written, and that has been said

    @classmethod
    def of(cls, folder: str, confirm: Callable[[], None] | None = None) -> "Events":
        """Return those of a run folder, behind the ones that are there."""
        lines = read_lines(folder)
        return cls(folder=folder, confirm=confirm, lines=lines, written=len(lines))

    def add(self, event: Kind, now: float, **values: object) -> None:
        """Note an event, and write it: at once, or where such come often, in ten seconds at the latest or with the
        next."""
        if event in _OFTEN and len(self.lines) >= _MOST:
            return
        texts = {name: shortened(one, _LONGEST) if isinstance(one, str) else one for name, one in values.items()}
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.lines.append(json.dumps({"time": time, "event": event, **texts}, ensure_ascii=False))
        if event not in _OFTEN or now - self.written_at >= _FLUSH_S:
            self._write(now)

    def _write(self, now: float) -> None:
        try:
            if self.confirm is not None:
                self.confirm()
            fs.write_atomic(state_path(self.folder, NAME), "".join(f"{line}\n" for line in self.lines).encode())
        except OSError as error:  # answers matter more; who reads events is told once
            if not self.is_broken:
                sys.stderr.write(f"{NAME} cannot be written: {one_line(error)}\n")
            self.is_broken = True
        self.written, self.written_at = len(self.lines), now


def read_lines(folder: str) -> list[str]:
    """Return the events of a run as they are written; none where there is no such file."""
    try:
        text = fs.read_bytes(state_path(folder, NAME)).decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.split("\n") if line]


def last_event(folder: str) -> dict[str, Any] | None:
    """Return the newest event of a run, None where it has none that can be read."""
    for line in reversed(read_lines(folder)):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            return event
    return None
