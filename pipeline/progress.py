"""One line about a running job: rows done, failed, images/s, time left."""

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from pipeline.units import Counts


@dataclass(slots=True, kw_only=True)
class Progress:
    """Writes the line to a terminal in place, elsewhere as a new line every 30 seconds. Times in seconds."""

    total_rows: int
    done: Counts = field(default_factory=Counts)
    out: TextIO = field(default_factory=lambda: sys.stderr)
    every_s: float = 30.0
    started: float = field(default_factory=time.monotonic)
    first_rows: int = 0  # of the first unit: before it the engine was loading
    first_at: float | None = None
    shown_at: float = 0.0

    def add(self, counts: Counts) -> None:
        """Count one more unit and show the line when it is due."""
        now = time.monotonic()
        self.done += counts
        if self.first_at is None:
            self.first_at, self.first_rows = now, self.done.rows
        due = 0.2 if self.out.isatty() else self.every_s
        if now - self.shown_at >= due:
            self.show()
            self.shown_at = now

    def rows_per_s(self) -> float | None:
        """The pace since the first unit was done, None before the second."""
        elapsed = time.monotonic() - (self.first_at or 0.0)
        rows = self.done.rows - self.first_rows
        return rows / elapsed if self.first_at is not None and rows and elapsed > 0 else None

    def line(self) -> str:
        """What is shown: `1,024 of 10,000 answers, 3 failed, 14.8 a second, 0:10:06 left`."""
        pace = self.rows_per_s()
        parts = [f"{self.done.rows:,} of {self.total_rows:,} answers", f"{self.done.errors:,} failed"]
        if pace:
            left = round((self.total_rows - self.done.rows) / pace)
            parts += [f"{pace:.1f} a second", f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"]
        return ", ".join(parts)

    def show(self, end: str = "") -> None:
        """Write the line now."""
        in_place = self.out.isatty()
        self.out.write(f"\r\x1b[K{self.line()}{end}" if in_place else f"{self.line()}\n")
        self.out.flush()
