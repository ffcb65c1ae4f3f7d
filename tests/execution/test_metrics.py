"""Metrics: names in Prometheus's conventions that stay, the same in code, docs and the dashboard."""

import io
import json
import re
from pathlib import Path
from typing import Any

from pipeline.execution.flow import Flow
from pipeline.execution.metrics import METRICS, RunMetrics, names
from pipeline.execution.progress import Progress, UnitReport
from pipeline.run_folder.units import Counts, ErrorType
from schemas.engine import EngineStatistics

ROOT = Path(__file__).parents[2]
WORK = EngineStatistics(
    num_rows=9, num_answer_tokens=70, decode_s=3.0, waiting_s=1.0, teraflop=1.0, possible_teraflop=2.0
)


class Kept(dict[tuple[str, ...], float]):
    """A counter or a gauge that keeps what it is told."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.keys_wanted = set(tag_keys)

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert tags.keys() == self.keys_wanted
        assert value > 0
        self[tuple(tags.values())] = self.get(tuple(tags.values()), 0.0) + value

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tags.keys() == self.keys_wanted
        self[tuple(tags.values())] = value


def published(*reports: UnitReport, ends: bool = True) -> dict[str, Kept]:
    made: dict[str, Kept] = {}

    def make(name: str, **rest: Any) -> Kept:
        return made.setdefault(name, Kept(name, **rest))

    now = [0.0]
    metrics = RunMetrics(run="out", makers={"counter": make, "gauge": make}, clock=lambda: now[0])
    progress = Progress(total_rows=40, out=io.StringIO(), gauges=metrics, clock=lambda: now[0])
    for report in reports:
        progress.add(report)
        now[0] += 10
        progress.watch(Flow(left=2, at_work=2, room=4, workers=1, again=3))
    if ends:
        progress.end()
    return made


def test_ray_takes_the_name_of_any_folder_and_of_any_type() -> None:
    progress = Progress(total_rows=4, out=io.StringIO(), gauges=RunMetrics(run="/data/b\u00fcro \U0001f600"))
    failed = Counts(rows=1, errors=1, by_type=(ErrorType(stage="fetch", type="F\u00e4hler", rows=1),))
    progress.add(UnitReport(counts=failed, worker="a", engine=WORK))
    progress.end()


def test_every_metric_is_published_and_counters_add_up() -> None:
    failed = Counts(rows=10, errors=2, by_type=(ErrorType(stage="fetch", type="TimedOut", rows=2),))
    more = EngineStatistics(num_rows=20, num_answer_tokens=100, num_retries=1, num_reused=2, num_images=5)
    more += EngineStatistics(num_prefilled_tokens=50, prefill_s=2.0, vision_s=1.0) + WORK
    made = published(
        UnitReport(counts=failed, worker="a", engine=WORK), UnitReport(counts=Counts(rows=8), worker="a", engine=more)
    )
    assert set(made) == {metric.name for metric in METRICS}
    assert made["llava_batch_answers_total"] == {("out", "ok"): 16.0, ("out", "error"): 2.0}
    assert made["llava_batch_errors_total"] == {("out", "fetch", "TimedOut"): 2.0}
    assert made["llava_batch_answer_tokens_total"] == {("out",): 170.0}
    assert made["llava_batch_units_again_total"] == {("out",): 3.0}
    assert made["llava_batch_engine_seconds_total"]["out", "decode"] == 3.0


def test_gauges_tell_of_a_job_at_work_and_are_0_once_it_has_ended() -> None:
    reports = [UnitReport(counts=Counts(rows=10), worker="a", engine=WORK)] * 2
    at_work, ended = published(*reports, ends=False), published(*reports)
    assert at_work["llava_batch_units"]["out", "at_work"] == 2.0
    assert at_work["llava_batch_remaining_seconds"]["out",] == 40.0
    gauges = {metric.name for metric in METRICS if metric.kind == "gauge"} - {"llava_batch_answers_planned"}
    assert {value for name in gauges for value in ended[name].values()} == {0.0}
    assert ended["llava_batch_answers_planned"]["out",] == 40.0


def test_names_follow_prometheus_conventions() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"llava_batch_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.text.endswith(".")
    assert len(set(names())) == len(METRICS)


def test_the_page_lists_every_metric_as_it_is() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(ray_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    wanted = [
        (f"ray_{one.name}", one.kind, ", ".join(f"`{label}`" for label in one.labels), one.text) for one in METRICS
    ]
    assert rows == wanted


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are() -> None:
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    labels = {f"ray_{one.name}": {"run", *one.labels} for one in METRICS}
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    asked.append(board["templating"]["list"][-1]["query"]["query"])
    assert len(asked) > 10
    for query in asked:
        found = re.findall(r"\b(ray_\w+)\b(?:\{(.*?)\})?", query)
        assert found
        for name, selector in found:
            assert set(re.findall(r"(\w+)=", selector)) <= labels[name]
    used = {name for query in asked for name in re.findall(r"\bray_\w+", query)}
    assert used == set(names())
