"""Metrics: a job's progress under names that stay, published by Ray for Prometheus; docs/metrics.md is their table.

Ray writes `ray_` before each name. Without its cluster packages (`ray[default]`) nothing is published.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pipeline.execution.progress import Progress

Values: TypeAlias = Mapping[tuple[str, ...], float]  # by the values of a metric's labels

_EVERY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: its name in Prometheus's conventions, and what of a job's progress it tells."""

    name: str
    kind: Literal["counter", "gauge"]
    text: str
    read: Callable[[Progress], Values]
    labels: tuple[str, ...] = ()
    stays: bool = False  # whether a gauge keeps its value behind the job's end; the others are 0 then

    def values(self, progress: Progress) -> Values:
        """Return what is to be published now: a gauge would say for ever what it said last."""
        found = self.read(progress)
        if self.kind == "counter" or self.stays or progress.ended_at is None:
            return found
        return dict.fromkeys(found, 0.0) if self.labels else {(): 0.0}


def _answers(progress: Progress) -> Values:
    done = progress.done
    return {("ok",): done.rows - done.errors, ("error",): done.errors}


def _errors(progress: Progress) -> Values:
    return {(one.stage, one.type): one.rows for one in progress.done.by_type}


def _seconds(progress: Progress) -> Values:
    engine = progress.engine()
    return {(name,): getattr(engine, f"{name}_s") for name in ("vision", "prefill", "decode", "waiting")}


def _units(progress: Progress) -> Values:
    flow = progress.flow
    return {} if flow is None else {(name,): getattr(flow, name) for name in ("preparing", "ready", "at_work", "left")}


def _waits(progress: Progress) -> Values:
    now = progress.waits_for()
    return {(one,): float(one == now) for one in ("input", "preprocessing", progress.waiting.engine, "output")}


def _one(value: Callable[[Progress], float | None]) -> Callable[[Progress], Values]:
    """Return the reading of one number; nothing where there is none yet."""

    def read(progress: Progress) -> Values:
        found = value(progress)
        return {} if found is None else {(): float(found)}

    return read


def _of_engines(name: str) -> Callable[[Progress], Values]:
    return _one(lambda progress: getattr(progress.engine(), name))


def _of_busy(index: int) -> Callable[[Progress], Values]:
    return _one(lambda progress: None if (busy := progress.busy()) is None else busy[index])


METRICS = (
    Metric(name="llava_batch_answers_total", kind="counter", labels=("status",), read=_answers,
           text="Answers that are written, by status: ok or error."),
    Metric(name="llava_batch_errors_total", kind="counter", labels=("stage", "type"), read=_errors,
           text="Answers that failed, by stage and type."),
    Metric(name="llava_batch_answers_planned", kind="gauge", stays=True,
           read=_one(lambda progress: progress.total_rows),
           text="Answers that this command has to give."),
    Metric(name="llava_batch_retries_total", kind="counter", read=_of_engines("num_retries"),
           text="Answers that were tried once more under a penalty."),
    Metric(name="llava_batch_units_again_total", kind="counter",
           read=_one(lambda progress: None if progress.flow is None else progress.flow.again),
           text="Units that were handed out once more, as what was at them had gone."),
    Metric(name="llava_batch_reused_total", kind="counter", read=_of_engines("num_reused"),
           text="Answers that are copies of an equal row's (--reuse-answers)."),
    Metric(name="llava_batch_images_total", kind="counter", read=_of_engines("num_images"),
           text="Images that went through the vision tower."),
    Metric(name="llava_batch_prefilled_tokens_total", kind="counter", read=_of_engines("num_prefilled_tokens"),
           text="Tokens of prompts that were prefilled; shared ones count once."),
    Metric(name="llava_batch_answer_tokens_total", kind="counter", read=_of_engines("num_answer_tokens"),
           text="Tokens of answers."),
    Metric(name="llava_batch_engine_seconds_total", kind="counter", labels=("state",), read=_seconds,
           text="Seconds of all engines, by state: vision, prefill, decode or waiting."),
    Metric(name="llava_batch_busy_ratio", kind="gauge", read=_of_busy(0),
           text="Share of the last half minute in which the engines had work."),
    Metric(name="llava_batch_utilisation_ratio", kind="gauge", read=_of_busy(1),
           text="Share of their products' own rate that they reached in it."),
    Metric(name="llava_batch_images_per_second", kind="gauge", read=_one(lambda progress: progress.images_per_s()[0]),
           text="Rows of the input that were answered a second in the last half minute."),
    Metric(name="llava_batch_remaining_seconds", kind="gauge", read=_one(lambda progress: progress.seconds_left()),
           text="Time until all is answered, at the mean pace."),
    Metric(name="llava_batch_units", kind="gauge", labels=("state",), read=_units,
           text="Units, by where they are: preparing, ready, at_work; and left, those without answers."),
    Metric(name="llava_batch_models", kind="gauge",
           read=_one(lambda progress: None if progress.flow is None else progress.flow.workers),
           text="Models that are loaded."),
    Metric(name="llava_batch_waits_for", kind="gauge", labels=("cause",), read=_waits,
           text="1 for what the job waits for: input, preprocessing, GPU (the model, without one) or output."),
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class RunMetrics:
    """Publishes the metrics of one run by what makes a counter and a gauge: Ray's own, where none is given."""

    run: str  # the label that tells it from others
    makers: Mapping[str, Callable[..., Any]] | None = None
    clock: Callable[[], float] = time.monotonic
    updated_at: float = float("-inf")
    _made: dict[str, Any] = field(default_factory=dict)
    _counted: dict[tuple[str, tuple[str, ...]], float] = field(default_factory=dict)

    def update(self, progress: Progress) -> None:
        """Publish how it stands, every two seconds and at the end."""
        now = self.clock()
        if now - self.updated_at < _EVERY_S and progress.ended_at is None:
            return
        self.updated_at = now
        for metric in METRICS:
            for labels, value in metric.values(progress).items():
                self._publish(metric, labels, value)

    def _publish(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        found = {"run": self.run, **dict(zip(metric.labels, labels, strict=True))}
        tags = {
            name: label.encode("ascii", "backslashreplace").decode() for name, label in found.items()
        }  # or Ray raises
        if metric.kind == "gauge":
            self._metric(metric).set(value, tags=tags)
            return
        more = value - self._counted.get((metric.name, labels), 0.0)
        if more > 0:
            self._metric(metric).inc(more, tags=tags)
            self._counted[metric.name, labels] = value

    def _metric(self, metric: Metric) -> Any:  # noqa: ANN401  Ray's, or a test's own
        if metric.name not in self._made:
            makers = self.makers or _of_ray()
            make = makers[metric.kind]
            self._made[metric.name] = make(metric.name, description=metric.text, tag_keys=("run", *metric.labels))
        return self._made[metric.name]


def _of_ray() -> Mapping[str, Callable[..., Any]]:
    from ray.util.metrics import Counter, Gauge

    return {"counter": Counter, "gauge": Gauge}


def names() -> Iterator[str]:
    """Yield the names as Prometheus has them."""
    for metric in METRICS:
        yield f"ray_{metric.name}"
