"""Forecast: rows, tokens, hours and money of a job before it starts, each with an interval and what it assumes."""

import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipeline.calibrate import Calibration, calibrate
from pipeline.engine.network.memory import check_memory, describe_memory, memory_of
from pipeline.environment import cards_here, cluster_address, cpus_here
from pipeline.look import Interval, Look, look_at, share_of
from pipeline.plan import Plan
from pipeline.preflight import check_output
from pipeline.preprocess.files import load_config
from pipeline.rates import CARDS, JOB_SHARE, GpuType, Rates, Shape, Work, rates_of
from pipeline.stages.engine_settings import engine_settings
from pipeline.storage import filesystem as fs
from pipeline.weights.hub import locate
from schemas.errors import Refused
from schemas.job import ROWS_BEFORE_BUDGET
from schemas.wording import one_line

ROWS, SECONDS = 256, 25.0  # looked at, and for how long at most
_ASSUMED: dict[Work, int] = {"caption": 98, "ocr": 174}  # tokens of an answer: docs/performance.md's workloads
_LEAST_FILES = 4096
_START = 0.3  # by which a job's start may be another
_CALIBRATED = 0.12  # by which rates of a run of a minute may be wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The machine that is planned for: cards of a type and their price, or this machine, calibrated."""

    gpu_type: GpuType | None = None
    price_per_gpu_hour: float | None = None
    calibrate: int | None = None  # rows that are answered here
    answer_tokens: int | None = None  # an assumption of the user's own
    command_s: float = 0.0  # that the command has taken until there was a plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A job in numbers; intervals hold as far as `assumptions` do."""

    rows: int
    answers: int
    failed: Interval
    image_tokens: Interval
    prompt_tokens: Interval
    answer_tokens: Interval
    models: int
    gpus: int
    gpu_type: str
    images_per_s: Interval
    hours: Interval
    cost: Interval | None
    preprocess_cores: Interval
    megabytes_s: Interval | None
    memory: str | None
    assumptions: tuple[str, ...]
    problems: tuple[str, ...]
    look: Look


def forecast(plan: Plan, work: Work, wanted: Wanted, say: Callable[[str], None]) -> Forecast:
    """Look at the input, measure this machine if that is asked, and compute; raise Refused where there is no rate."""
    _check(plan, wanted)
    look = look_at(plan, ROWS, SECONDS)
    if look.num_failed == look.rows:
        kind, example = next(iter(look.examples.items()))
        raise Refused(f"all {look.rows} rows that were looked at fail, as {kind}: {example}")
    command_s = wanted.command_s if wanted.gpu_type is None else None
    calibration = None if wanted.calibrate is None else calibrate(plan, wanted.calibrate, command_s, say)
    answer_tokens, assumed = _answer_tokens(plan, work, wanted, calibration)
    rates = _rates(plan, work, wanted, calibration, look)
    return _compute(plan, wanted, look, rates, (answer_tokens, assumed), calibration)


def _check(plan: Plan, wanted: Wanted) -> None:
    """Raise Refused where there is no machine to plan for."""
    if wanted.gpu_type is None and wanted.calibrate is None:
        raise Refused("--gpu-type or --calibrate must say how fast rows are answered: a card, or so many rows here")
    if plan.settings.engine == "transformers" and wanted.gpu_type is not None:
        raise Refused("--gpu-type has rates of our own engine alone: --calibrate measures --engine transformers here")
    if wanted.gpu_type is not None and plan.settings.gpus == 0:
        raise Refused(f"gpus must be at least 1 with --gpu-type {wanted.gpu_type}, got 0: say how many there are")
    if wanted.gpu_type is None and (address := cluster_address()) is not None:
        raise Refused(
            f"RAY_ADDRESS must be empty with --calibrate, which measures this machine by a job on it, got {address}: "
            "for a cluster's cards add --gpu-type, then it only answers rows here, to know their lengths"
        )
    if wanted.gpu_type is None and plan.settings.gpus == 0 and cards_here():
        raise Refused("gpus must be left out with --calibrate, got 0: CUDA_VISIBLE_DEVICES='' measures without cards")


def _answer_tokens(plan: Plan, work: Work, wanted: Wanted, calibration: Calibration | None) -> tuple[Interval, str]:
    """Return the tokens of an answer, and where they come from."""
    most = plan.settings.max_new_tokens
    if calibration is not None:
        return calibration.answer_tokens, f"answer tokens: mean of {calibration.rows:,} rows that were answered"
    if wanted.answer_tokens is not None:
        tokens = float(min(wanted.answer_tokens, most))
        cut = f", but no more than --max-new-tokens {most}" if wanted.answer_tokens > most else ""
        return Interval(low=tokens, mid=tokens, high=tokens), f"answer tokens: as given by --answer-tokens{cut}"
    tokens = float(min(_ASSUMED[work], most))
    between = Interval(low=tokens / 2, mid=tokens, high=min(2 * tokens, float(most)))
    return (
        between,
        f"answer tokens: {tokens:.0f} are assumed, half to twice; --calibrate or --answer-tokens knows better",
    )


def _rates(plan: Plan, work: Work, wanted: Wanted, calibration: Calibration | None, look: Look) -> Rates:
    if wanted.gpu_type is not None:
        return rates_of(wanted.gpu_type, fp8=plan.settings.quantize == "fp8", work=work, shape=_shape(plan))
    assert calibration is not None
    # Tiles go with the prompt's tokens. Without a card preparing them takes its share of the cores that generate.
    prepare_s = 0.0 if cards_here() else look.cpu_s.mid / cpus_here()
    return Rates(
        tile_s=prepare_s / max(1.0, look.tiles.mid),
        prompt_token_s=calibration.prompt_token_s,
        answer_token_s=calibration.answer_token_s,
        start_s=calibration.start_s,
        share=JOB_SHARE,
        spread=_CALIBRATED,
        source=f"rates: {calibration.rows:,} rows answered on this machine",
    )


def _shape(plan: Plan) -> Shape:
    config = load_config(locate(plan.settings.model), plan.settings.revision)
    text: Any = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = text.hidden_size * head * (2 * text.num_attention_heads + 2 * text.num_key_value_heads)
    weights = text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)
    kv_bytes = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head
    return Shape(layer_weights=weights, kv_bytes=kv_bytes)


def _compute(
    plan: Plan,
    wanted: Wanted,
    look: Look,
    rates: Rates,
    answers: tuple[Interval, str],
    calibration: Calibration | None,
) -> Forecast:
    tokens, assumed = answers
    rows, settings = plan.listing.num_rows, plan.settings
    fine = 1 - look.num_failed / look.rows
    each, here = settings.gpus_per_model, wanted.gpu_type is None
    gpus = 0 if here and not cards_here() else settings.gpus or (len(cards_here()) if here else each)
    models = max(1, gpus // each)
    row_s = _row_s(plan, look, rates, tokens)
    start = Interval(low=rates.start_s, mid=rates.start_s, high=rates.start_s).wider(_START)
    work = row_s.times(rows * fine / models)
    seconds = Interval(low=start.low + work.low, mid=start.mid + work.mid, high=start.high + work.high)
    hours = seconds.times(1 / 3600)
    pace = Interval(low=models / row_s.high, mid=models / row_s.mid, high=models / row_s.low)
    price = wanted.price_per_gpu_hour
    bytes_known = look.image_bytes.mid > 0
    return Forecast(
        rows=rows,
        answers=rows * plan.num_prompts,
        failed=share_of(look.num_failed, look.rows).times(rows),
        image_tokens=look.image_tokens.times(rows * fine),
        prompt_tokens=look.prompt_tokens.times(rows * fine),
        answer_tokens=tokens.times(rows * fine * plan.num_prompts),
        models=models,
        gpus=gpus,
        gpu_type=wanted.gpu_type or "this machine",
        images_per_s=pace,
        hours=hours,
        cost=None if price is None else hours.times(price * max(1, gpus)),
        preprocess_cores=look.cpu_s.times(pace.mid).wider(0.2),
        megabytes_s=look.image_bytes.times(pace.mid / 1e6) if bytes_known else None,
        memory=_memory(plan, wanted),
        assumptions=tuple(_assumptions(look, rates, assumed, calibration)),
        problems=tuple(_problems(plan, wanted, look)),
        look=look,
    )


def _row_s(plan: Plan, look: Look, rates: Rates, tokens: Interval) -> Interval:
    """Return the seconds of a row of one model."""
    prompts = plan.num_prompts
    low, mid, high = (
        rates.row_s(getattr(look.tiles, end), getattr(look.prompt_tokens, end), prompts * getattr(tokens, end))
        for end in ("low", "mid", "high")
    )
    return Interval(low=low, mid=mid, high=high).wider(rates.spread)


def _memory(plan: Plan, wanted: Wanted) -> str | None:
    if plan.settings.engine == "transformers" or (wanted.gpu_type is None and not cards_here()):
        return None
    engine = engine_settings(plan.settings, on_gpu=True)
    return describe_memory(memory_of(load_config(locate(plan.settings.model), plan.settings.revision), engine), engine)


def _assumptions(look: Look, rates: Rates, assumed: str, calibration: Calibration | None) -> Iterator[str]:
    yield f"input: {look.rows:,} rows from everywhere in it were looked at, in {look.seconds:.0f} s"
    yield assumed
    yield f"rates: {rates.source}" if not rates.source.startswith("rates") else rates.source
    if calibration is None:
        yield f"a job reaches {rates.share:.0%} of the bare engine's rate, and starts in {rates.start_s:.0f} s"
    else:
        yield f"a job starts and ends in {rates.start_s:.0f} s here, beside the work on its rows"
    yield "every model has rows to choose from: enough preprocessing cores, and a store that delivers"


def _problems(plan: Plan, wanted: Wanted, look: Look) -> Iterator[str]:
    """Yield what would end the job, or cost answers."""
    settings = plan.settings
    for kind, count in look.failed.items():
        share = share_of(count, look.rows)
        yield f"{share.mid:.1%} of rows ({share.low:.1%} to {share.high:.1%}) fail at {kind}, as {look.examples[kind]}"
    apart = settings.max_fetch_error_rate is not None
    counted = sum(count for kind, count in look.failed.items() if not (apart and kind.startswith("fetch/")))
    many = plan.listing.num_rows * plan.num_prompts >= ROWS_BEFORE_BUDGET
    if many and counted / look.rows > settings.max_error_rate:
        yield (
            f"the job would stop: more rows fail than --max-error-rate {settings.max_error_rate:g} allows; "
            "--max-fetch-error-rate counts dead URLs apart"
        )
    capacity = settings.capacity
    if capacity and look.longest_prompt >= capacity:
        yield f"prompts of {look.longest_prompt:,} tokens do not fit --capacity {capacity:,}"
    yield from _of_the_machine(plan, wanted)


def _of_the_machine(plan: Plan, wanted: Wanted) -> Iterator[str]:
    try:
        check_output(plan)
        if wanted.gpu_type is not None:
            engine = engine_settings(plan.settings, on_gpu=True)
            config = load_config(locate(plan.settings.model), plan.settings.revision)
            check_memory(config, replace(engine), CARDS[wanted.gpu_type].memory)
    except Refused as error:
        yield one_line(error)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _LEAST_FILES and not cluster_address():
        yield f"open files: {soft:,} a process, Ray needs {_LEAST_FILES:,} or more: ulimit -n 65536"
    output = fs.local_path(plan.settings.output)
    if output is not None:
        free, needed = _free(output), 700 * plan.listing.num_rows * plan.num_prompts
        if free < needed:
            yield f"{output} has {free / 1e9:.1f} GB free, answers need about {needed / 1e9:.1f} GB"


def _free(path: str) -> int:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
