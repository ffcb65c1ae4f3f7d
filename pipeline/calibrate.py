"""Calibrate: this machine's own rates, of rows from everywhere in the input that are answered on it."""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import pyarrow as pa

from pipeline.environment import cards_here
from pipeline.execution.placement import Load, units_at_once
from pipeline.look import Interval, mean_of, rows_from_everywhere
from pipeline.plan import Plan, plan_job
from pipeline.run_folder.run import read_manifest
from pipeline.stages.engine_settings import load_engine
from pipeline.stages.generate import Generate
from pipeline.stages.preprocess import Preprocess
from schemas.engine import EngineStatistics
from schemas.errors import Refused

_WARM_UP = 4  # rows, after which nothing is slower for being the first
_AT_ONCE = 256  # rows: of five tiles each they are 400 MB
_MOST_SIMULATED = 20_000  # sequences: beyond them the ends weigh nothing
_AHEAD = 1  # unit that a worker has beside those that it is to work on at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Rates of one model on this machine."""

    rows: int  # that have answers
    answer_tokens: Interval  # of an answer
    prompt_token_s: float
    answer_token_s: float  # in a job whose units fill the slots as this one's do
    start_s: float  # and the end: all that does not grow with the rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Numbers of some rows that an engine has answered with nothing beside it."""

    statistics: EngineStatistics
    lengths: tuple[int, ...]  # tokens of the answers
    slots: int | None  # of a decode step; None where the engine has none that are refilled


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """Numbers of a job: units at work at once, prompts of each, and prompts of all units."""

    units: int
    prompts: int
    total: int


def calibrate(plan: Plan, rows: int, command_s: float | None, say: Callable[[str], None]) -> Calibration:
    """Measure a job's start by a small one, in a folder that goes afterwards, and rates by rows from everywhere that
    are answered in this process; raise Refused where none of them can be.

    `command_s` is what a command has taken until it has a plan, which a job's does as well; None where the start here
    says nothing, as the job runs elsewhere.
    """
    job = "" if command_s is None else f"a job of {_WARM_UP} rows for its start, then "
    say(f"calibrating on this machine: {job}{min(rows, plan.listing.num_rows):,} rows from everywhere in the input")
    start_s = 0.0 if command_s is None else command_s + _start_of(plan)
    answered = answer_some(plan, rows)
    models = len(cards_here()) // plan.settings.gpus_per_model
    return calibration_of(answered, start_s, plan.num_prompts, crowd_of(plan, models, answered.slots))


def calibration_of(answered: Answered, start_s: float, num_prompts: int, crowd: Crowd) -> Calibration:
    """Return what rows say that were answered; raise Refused where there are none.

    A step takes as long for one sequence as for a full set of slots: how full they are, which follows from answers'
    lengths and from how many rows a job has at work, is not as it was among those few rows.
    """
    did, lengths = answered.statistics, answered.lengths
    if not lengths:
        raise Refused("--calibrate must answer some rows, all of them failed: see what plan says without it")
    tokens = max(1, sum(lengths))
    decode_s = did.decode_s
    if answered.slots is not None and did.num_decode_steps:
        of_each = _of_sequences(lengths, did.num_rows)
        drawn = np.random.default_rng(0).choice(of_each, min(crowd.total, _MOST_SIMULATED)).tolist()
        steps = steps_of(drawn, crowd, answered.slots)
        decode_s = did.decode_s / did.num_decode_steps * steps * tokens / max(1, sum(drawn))
    return Calibration(
        rows=max(1, len(lengths) // num_prompts),
        answer_tokens=mean_of(lengths),
        prompt_token_s=(did.vision_s + did.prefill_s) / max(1, did.num_prefilled_tokens + did.num_prefix_tokens),
        answer_token_s=decode_s / tokens,
        start_s=start_s,
    )


def crowd_of(plan: Plan, models: int, slots: int | None) -> Crowd:
    """Return what a job has at work at once on each of so many models; none is one on the CPU."""
    total = plan.listing.num_rows * plan.num_prompts
    at_once = units_at_once(plan.settings, Load(units=plan.listing.num_units, prompts=total), models, slots)
    return Crowd(units=at_once + _AHEAD, prompts=plan.listing.unit_rows * plan.num_prompts, total=total)


def steps_of(lengths: Sequence[int], crowd: Crowd, slots: int) -> int:
    """Return the decode steps that answers of these lengths take: a free slot takes the next row of the units at work,
    and a unit makes room for another with its last row."""
    units = deque(lengths[first : first + crowd.prompts] for first in range(0, len(lengths), crowd.prompts))
    waiting, running, left = deque[tuple[int, int]](), list[tuple[int, int]](), list[int]()
    now = at_work = 0
    while units or waiting or running:
        while units and at_work < crowd.units:
            unit = units.popleft()
            waiting.extend((length, len(left)) for length in unit)
            left.append(len(unit))
            at_work += 1
        while waiting and len(running) < slots:
            length, number = waiting.popleft()
            heappush(running, (now + length, number))
        now, number = heappop(running)
        left[number] -= 1
        at_work -= left[number] == 0
    return now


def _of_sequences(lengths: Sequence[int], num_sequences: int) -> list[int]:
    """Return the lengths of what the engine generated: an answer to a page in strips is made of several."""
    each = max(1, round(num_sequences / len(lengths)))
    return [max(1, length // each) for length in lengths for _ in range(each)]


def _start_of(plan: Plan) -> float:
    """Return the seconds of a job that answers next to nothing, without the engine's work."""
    update = {
        "limit": _WARM_UP,
        "shard": None,
        "gpus": None,
        "max_error_rate": 1.0,
        "max_fetch_error_rate": None,
    }
    began = time.monotonic()
    from pipeline.job import run_job  # and Ray, which nothing else here needs

    with tempfile.TemporaryDirectory(prefix="llava-batch-plan-") as folder:
        settings = plan.settings.model_copy(update={**update, "output": folder})
        run_job(plan_job(plan.job, settings, "", plan.model), load_engine)
        manifest = read_manifest(folder)
    took = time.monotonic() - began
    assert manifest is not None
    engine: dict[str, float] = manifest["timings"].get("engine", {})
    return max(0.0, took - sum(engine.get(name, 0.0) for name in ("vision_s", "prefill_s", "decode_s")))


def answer_some(plan: Plan, rows: int) -> Answered:
    """Answer about so many rows in this process, some hundred at once, after a few that do not count."""
    preprocess, generate = Preprocess(plan.settings), Generate(plan.settings, load_engine)
    lengths, before = list[int](), None
    with generate.sampling(plan.settings):
        for samples in _prepared(plan, rows, preprocess):
            if before is None:
                generate(samples.slice(0, _WARM_UP))
                before = generate.statistics()
            lengths += generate(samples).column("num_generated_tokens").drop_null().to_pylist()
    assert before is not None
    return Answered(statistics=generate.statistics() - before, lengths=tuple(lengths), slots=generate.num_slots())


def _prepared(plan: Plan, rows: int, preprocess: Preprocess) -> Iterator[pa.Table]:
    """Yield samples, so many together that slots are full and their pixels fit any machine's memory."""
    waiting = list[pa.Table]()
    for table in rows_from_everywhere(plan, rows):
        for first in range(0, table.num_rows, _AT_ONCE):
            waiting.append(preprocess(table.slice(first, _AT_ONCE)))
            if sum(one.num_rows for one in waiting) >= _AT_ONCE:
                yield pa.concat_tables(waiting)
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
