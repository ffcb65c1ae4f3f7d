"""The Grafana dashboard: its file by Grafana's own schema, its queries by a real Prometheus that reads a real job."""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import pytest
from grafana_foundation_sdk.cog import encoder, plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from pipeline.engine.engine import Engine
from pipeline.execution.ray_cluster import metrics_address
from pipeline.job import run_job
from pipeline.plan import plan_job
from pipeline.stages.engine_settings import engine_settings
from schemas.answer import Answer
from schemas.job import JobSettings
from schemas.sample import Sample
from tests.inputs import bad_row, good_row, write_parquet
from tests.tiny import checkpoint

BOARD = json.loads((Path(__file__).parents[2] / "deploy" / "grafana.json").read_text(encoding="utf-8"))
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
PROMETHEUS = shutil.which("prometheus")
SCRAPED = "scrape_configs: [{{job_name: ray, scrape_interval: 2s, static_configs: [{{targets: ['{host}']}}]}}]\n"


def lost(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """What of a document is not in another one, or differs there."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from lost(value, theirs.get(key), f"{path}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{path}/{number}")
    elif ours != theirs:
        yield path


def test_grafanas_schema_knows_all_of_the_dashboard() -> None:
    plugins.register_default_plugins()
    read = json.loads(encoder.JSONEncoder().encode(Dashboard.from_json(BOARD)))
    assert list(lost(BOARD, read)) == []
    assert list(lost({**BOARD, "refersh": "5s"}, read)) == ["/refersh"]


def test_panels_lie_beside_each_other_on_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert all(0 <= x < 24 for x, _ in cells)
        taken |= cells


class Watch(threading.Thread):
    """Asks Prometheus all that the dashboard asks, again and again; notes what had an answer while the job ran."""

    def __init__(self, base: str, run: str) -> None:
        super().__init__(daemon=True)
        self.base, self.of_run, self.ended, self.answered = base, run, threading.Event(), set[str]()
        self.refused: dict[str, str] = {}
        self.labels: list[str] = []

    def ask(self, path: str, **query: str) -> Any:
        with urlopen(f"{self.base}/api/v1/{path}?{urlencode(query)}", timeout=30) as page:
            found = json.load(page)
        assert found["status"] == "success"
        return found["data"]

    def run(self) -> None:
        while not self.ended.wait(1):
            for query in QUERIES:
                try:
                    found = self.ask(
                        "query", query=query.replace("$run", self.of_run).replace("$__rate_interval", "30s")
                    )
                except URLError as error:
                    self.refused[query] = str(error)
                    continue
                numbers = [float(one["value"][1]) for one in found["result"]]
                self.answered |= {query} if numbers and all(number == number for number in numbers) else set()
            self.labels = self.ask("label/run/values", **{"match[]": "ray_llava_batch_answers_planned"})


class Slowed(Engine):
    """The engine, in no hurry: Ray hands metrics on every ten seconds, a pace needs some of these."""

    def generate(self, samples: Iterable[Sample]) -> Iterator[Answer]:
        time.sleep(4)
        yield from super().generate(samples)


def load_slowed(settings: JobSettings) -> Engine:
    return Slowed.load(settings.model, settings=engine_settings(settings, on_gpu=False))


def wait_until_ready(url: str) -> None:
    for _ in range(120):
        with contextlib.suppress(URLError), urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    pytest.fail("prometheus must answer within a minute")


@pytest.fixture
def prometheus(cluster: None, tmp_path: Path) -> Iterator[str]:
    """A Prometheus on loopback that reads this machine's metrics."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "prometheus.yml").write_text(SCRAPED.format(host=urlsplit(metrics_address()).netloc))
    told = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"]
    with subprocess.Popen(
        [str(PROMETHEUS), *told, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL
    ) as one:
        try:
            wait_until_ready(f"http://{address}/-/ready")
            yield f"http://{address}"
        finally:
            one.terminate()


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus must be on the PATH: apt-get install prometheus")
def test_every_query_of_the_dashboard_has_an_answer_while_a_job_runs(prometheus: str, tmp_path: Path) -> None:
    rows = [bad_row(i, "decode") if i == 3 else good_row(i) for i in range(200)]
    source = write_parquet(tmp_path / "in.parquet", rows)
    told = {"input": (str(source),), "output": str(tmp_path / "out"), "model": str(checkpoint()), "max_error_rate": 1.0}
    settings = JobSettings.model_validate({**told, "unit_rows": 4, "preprocess_workers": 1, "max_new_tokens": 4})
    watch = Watch(prometheus, settings.output)
    watch.start()
    try:
        assert run_job(plan_job("caption", settings, "Q?"), load_slowed).rows == 200
    finally:
        watch.ended.set()
        watch.join()
    assert watch.refused == {}
    # counters that count nothing are not there; a CPU's product rate is not measured, so its gauges come at the end
    none_yet = ("retries_total", "units_again_total", "reused_total", "busy_ratio", "utilisation_ratio")
    assert [
        query for query in QUERIES if query not in watch.answered and not any(one in query for one in none_yet)
    ] == []
    assert settings.output in watch.labels
