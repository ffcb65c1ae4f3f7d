"""Panel: a job's progress in a few lines of a terminal, written over themselves."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.execution.progress import Display, Progress, clock_time
from schemas.wording import counted, printable, redacted

_LEAST_COLUMNS, _LEAST_ROWS = 60, 12
_EVERY_S = 0.5


@dataclass(slots=True)
class RichPanel:
    """Keeps one panel below all other lines of stderr."""

    live: Live
    title: str
    clock: Callable[[], float] = time.monotonic
    shown_at: float = field(default=float("-inf"))

    def update(self, progress: Progress) -> None:
        """Draw the progress as it is now, twice a second at most."""
        now = self.clock()
        if now - self.shown_at < _EVERY_S:
            return
        if not self.live.is_started:
            self.live.start()
            self.live.console.show_cursor(True)  # whatever ends this process must not take it along
        self.live.update(panel_of(progress, self.title), refresh=True)
        self.shown_at = now

    def close(self) -> None:
        """Take the panel away: the job's last line says it all."""
        self.live.stop()


def open_panel(title: str) -> Callable[[Progress], Display | None]:
    """Return what opens a panel with a title; it gives None where stderr is no terminal that can show one."""

    def open_display(progress: Progress) -> Display | None:
        console = Console(stderr=True)
        size = console.size
        fits = size.width >= _LEAST_COLUMNS and size.height >= _LEAST_ROWS
        if not progress.out.isatty() or console.is_dumb_terminal or not console.is_terminal or not fits:
            return None
        live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
        )
        return RichPanel(live, title)

    return open_display


def panel_of(progress: Progress, title: str) -> Panel:
    """Return the panel of a job's progress."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True, min_width=len("time left"))
    rows.add_column(overflow="ellipsis", no_wrap=True)
    for name, value in _rows(progress):
        rows.add_row(name, value)
    share = progress.done.rows / max(1, progress.total_rows)
    whole = Table.grid(expand=True)
    whole.add_column(ratio=1)
    whole.add_row(ProgressBar(total=1.0, completed=share, complete_style="green"))
    whole.add_row(rows)
    return Panel(whole, title=Text(printable(redacted(title)), overflow="ellipsis"), title_align="left")


def _rows(progress: Progress) -> Iterator[tuple[str, Text]]:
    done, total = progress.done, progress.total_rows
    answers = f"{done.rows:,} of {total:,}   {100 * done.rows / max(1, total):.0f} %"
    answers += f"   {done.errors:,} failed   {progress.retried():,} retried"
    yield "answers", Text(answers, style="yellow" if done.errors else "")
    now, mean = progress.images_per_s()
    yield "images/s", Text("-" if mean is None else f"{now or 0.0:.1f} now   {mean:.1f} mean")
    tokens = progress.tokens_per_s()
    yield "tokens/s", Text("-" if tokens is None else f"{tokens:,.0f}")
    left = progress.seconds_left()
    yield "time left", Text("-" if left is None else clock_time(left))
    yield _engines(progress)
    yield "waits for", Text(_reason(progress))
    if progress.flow is not None:
        flow = progress.flow
        yield "units", Text(f"{flow.preparing:,} preparing   {flow.ready:,} ready   {flow.at_work:,} generating")


def _engines(progress: Progress) -> tuple[str, Text]:
    ready = progress.flow.workers if progress.flow else 0
    models = f"{ready} of {counted(max(ready, progress.workers), 'model')} ready"
    busy = progress.busy()
    share = "" if busy is None else f"{100 * busy[0]:.0f} % busy at {100 * busy[1]:.0f} % of their rate   "
    return ("GPUs" if progress.waiting.engine == "GPU" else "models"), Text(share + models)


def _reason(progress: Progress) -> str:
    return (progress.note or "").removeprefix("waiting for ") or progress.waits_for() or "-"
