"""Results: the table of a sweep, one row a cell and metric, from the run folders as they are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa

from pipeline.run_folder.run import read_manifest
from pipeline.storage import filesystem as fs
from pipeline.sweep.bootstrap import Draws, Score, score_cells
from pipeline.sweep.cells import Cell, baseline_of
from pipeline.sweep.judging import Marked, judge_cells
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.timing import Effort, read_efforts
from schemas.sweep import CellName

Status = Literal["complete", "incomplete"]
OUT_OF_TIME = "the sweep's time was over; the next call goes on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One metric of one cell; a cell that is not complete has one row without any."""

    model: str
    benchmark: str
    prompt: str
    settings: str
    status: Status
    reason: str | None = None  # why it is not complete
    metric: str | None = None
    headline: bool = True  # whether it is the benchmark's first metric
    score: float | None = None
    low: float | None = None  # 95 % bootstrap interval, over questions
    high: float | None = None
    baseline: str | None = None  # the cell that it is compared with
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    rows: int | None = None
    errors: int | None = None  # rows that failed; they count as wrong
    cut_share: float | None = None  # of the rows: answers that ended at their longest length
    unparsable_share: float | None = None  # of the rows: answers in which no answer was found
    images_per_s: float | None = None  # while its rows were answered; the one column that time changes

    @property
    def name(self) -> CellName:
        """Return the cell's name."""
        return CellName(model=self.model, benchmark=self.benchmark, prompt=self.prompt, settings=self.settings)


RESULT_SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("settings", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # complete or incomplete
        pa.field("reason", pa.string()),  # null exactly when complete
        pa.field("metric", pa.string()),  # this and all that follows are null where a cell is not complete
        pa.field("headline", pa.bool_(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("baseline", pa.string()),
        pa.field("difference", pa.float64()),
        pa.field("difference_low", pa.float64()),
        pa.field("difference_high", pa.float64()),
        pa.field("rows", pa.int64()),
        pa.field("errors", pa.int64()),
        pa.field("cut_share", pa.float64()),
        pa.field("unparsable_share", pa.float64()),
        pa.field("images_per_s", pa.float64()),
    ]
)


def results_to_table(results: Sequence[Result]) -> pa.Table:
    """Return a table of RESULT_SCHEMA."""
    return pa.Table.from_pylist([asdict(result) for result in results], schema=RESULT_SCHEMA)


def table_to_results(table: pa.Table) -> list[Result]:
    """Return the results of a table of RESULT_SCHEMA."""
    return [Result(**row) for row in table.to_pylist()]


def score_sweep(plan: SweepPlan, reasons: Mapping[CellName, str]) -> list[Result]:
    """Judge and score all complete cells; `reasons` says why others are not."""
    cells = [one.cell for one in plan.cells]
    done = [cell for cell in cells if cell.name not in reasons]  # others may have a manifest whose files are lost
    complete = {cell.name: cell for cell in done if read_manifest(cell.job.output) is not None}
    scored = {name: some for group in _by_benchmark(complete) for name, some in _score(plan, group).items()}
    efforts = read_efforts(plan.settings.output)
    results = []
    for name in (cell.name for cell in cells):
        if name in complete:
            results += list(_rows(plan, name, scored[name], efforts.get(str(name), Effort())))
        else:
            results.append(Result(**asdict(name), status="incomplete", reason=reasons.get(name, OUT_OF_TIME)))
    order = list(plan.settings.benchmarks)
    return sorted(results, key=lambda result: order.index(result.benchmark))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    scores: tuple[Score, ...]
    marked: Marked


def _by_benchmark(complete: Mapping[CellName, Cell]) -> Iterator[list[Cell]]:
    for benchmark in dict.fromkeys(name.benchmark for name in complete):
        yield [cell for name, cell in complete.items() if name.benchmark == benchmark]


def _score(plan: SweepPlan, cells: Sequence[Cell]) -> dict[CellName, _Scored]:
    """Return the cells of one benchmark."""
    folder = fs.join(plan.settings.output, "judged")
    marked: dict[CellName, Marked] = {}
    for prompt in dict.fromkeys(cell.name.prompt for cell in cells):
        asked = [cell for cell in cells if cell.name.prompt == prompt]
        marked |= judge_cells(asked[0].asking, asked, folder)
    baselines = {name: base for name in marked if (base := baseline_of(plan.settings, name)) is not None}
    draws = Draws(resamples=plan.settings.resamples, seed=plan.settings.seed)
    judged = {name: one.judged for name, one in marked.items()}
    scores = score_cells(judged, cells[0].asking.benchmark.summarise, baselines, draws)
    return {name: _Scored(scores=tuple(scores[name]), marked=one) for name, one in marked.items()}


def _rows(plan: SweepPlan, name: CellName, scored: _Scored, effort: Effort) -> Iterator[Result]:
    marked = scored.marked
    images_per_s = round(effort.rows / effort.seconds, 3) if effort.seconds else None
    baseline = baseline_of(plan.settings, name)
    for index, score in enumerate(scored.scores):
        difference = score.difference
        yield Result(
            **asdict(name),
            status="complete",
            metric=score.metric,
            headline=index == 0,
            score=score.score.value,
            low=score.score.low,
            high=score.score.high,
            baseline=str(baseline) if baseline is not None and difference is not None else None,
            difference=difference.value if difference else None,
            difference_low=difference.low if difference else None,
            difference_high=difference.high if difference else None,
            rows=marked.num_rows,
            errors=marked.errors,
            cut_share=marked.cut / marked.num_rows,
            unparsable_share=marked.unparsable / marked.num_rows,
            images_per_s=images_per_s,
        )
