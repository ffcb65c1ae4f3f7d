"""plan: what is said of a job before it starts holds against what jobs took, and what will go wrong is listed."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline.look import look_at, mean_of, share_of
from pipeline.plan import Plan, plan_job
from pipeline.rates import CARDS, MEASURED, Shape, rates_of
from schemas.job import JobSettings
from tests.inputs import bad_row, good_row, picture, write_parquet
from tests.tiny import checkpoint

MISTRAL = Shape(layer_weights=6.98e9, kv_bytes=131_072)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [bad_row(i, "decode") if i % 10 == 3 else good_row(i) for i in range(120)]
    rows[50]["image"] = rows[51]["image"]
    return write_parquet(tmp_path / "in.parquet", rows)


def plan_of(source: Path, **settings: object) -> Plan:
    base = {"input": (str(source),), "output": str(source.parent / "out"), "model": str(checkpoint())}
    return plan_job("caption", JobSettings.model_validate({**base, **settings}), "Q?")


def planned(source: Path, capsys, *flags: str) -> tuple[int, dict[str, Any]]:
    where = ["--input", str(source), "--output", str(source.parent / "out"), "--model", str(checkpoint())]
    status = main(["plan", *where, *flags, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("images", "tokens", "answer", "work", "took"),
    [
        pytest.param(1536, 2227, 98, "caption", 136.5, id="a job of captions: docs/performance.md, 135 to 138 s"),
        pytest.param(1024, 2227, 174, "ocr", 30 + 1024 / 11.4 / 0.96, id="the bare engine's transcripts in a job"),
    ],
)
def test_runs_on_an_h100_took_what_is_forecast(images: int, tokens: int, answer: int, work: Any, took: float) -> None:
    rates = rates_of("h100", fp8=False, work=work, shape=MISTRAL)
    assert rates.start_s + images * rates.row_s(5.1, tokens, answer) == pytest.approx(took, rel=0.2)


def test_ten_million_rows_are_planned_by_looking_at_some(tmp_path: Path, capsys) -> None:
    (tmp_path / "one.png").write_bytes(picture(1))
    paths = pa.array(["../one.png"]).take(pa.array(np.zeros(500_000, np.int32)))
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": paths}), tmp_path / "in" / "0.parquet", row_group_size=20_000)
    for number in range(1, 20):
        os.link(tmp_path / "in" / "0.parquet", tmp_path / "in" / f"{number}.parquet")
    status, found = planned(tmp_path / "in", capsys, "--gpu-type", "h100", "--gpus", "8", "--prompt", "Q?")
    assert (found["rows"], found["look"]["rows"] <= 256) == (10_000_000, True)
    assert found["hours"]["mid"] == pytest.approx(10_000_000 * 8 / found["images_per_s"]["mid"] / 8 / 3600, rel=0.01)
    assert [line for line in found["problems"] if "free, answers need" not in line] == []
    assert status == bool(found["problems"])


def test_what_nobody_has_measured_is_said_and_less_sure() -> None:
    known = rates_of("h100", fp8=False, work="caption", shape=MISTRAL)
    card = rates_of("l40s", fp8=False, work="caption", shape=MISTRAL)
    larger = rates_of("h100", fp8=False, work="caption", shape=Shape(layer_weights=33e9, kv_bytes=245_760))
    smaller = rates_of("h100", fp8=False, work="caption", shape=Shape(layer_weights=4e6, kv_bytes=1024))
    assert known.spread < larger.spread < card.spread < smaller.spread
    assert "nobody has measured a l40s" in card.source
    assert "scaled from mistral-7b's shape to 33 billion" in larger.source
    assert min(card.row_s(5, 2000, 100), larger.row_s(5, 2000, 100)) > known.row_s(5, 2000, 100)


def test_every_rate_says_where_it_comes_from() -> None:
    assert {one.card for one in MEASURED} <= CARDS.keys()
    assert all("commit" in one.source or "2026" in one.source for one in MEASURED)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"), [(0, 100, 0.0, 0.037), (50, 100, 0.40, 0.60), (1, 1, 0.2, 1.0)]
)
def test_a_share_has_wilsons_interval(count: int, total: int, low: float, high: float) -> None:
    share = share_of(count, total)
    assert (share.low, share.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


def test_a_mean_of_few_is_not_sure() -> None:
    assert mean_of([4.0]).high == 8.0
    assert mean_of([4.0] * 50).high == 4.0
    assert mean_of([]).mid == 0.0


def test_rows_from_everywhere_are_looked_at(source: Path) -> None:
    look = look_at(plan_of(source), rows=1000, seconds=60)
    assert look.rows == 120
    assert look.failed == {"decode/BrokenImage": 12}
    assert look.duplicates == 3  # rows 51, and two photographs that come again after a hundred
    assert set(look.formats) >= {"JPEG", "PNG", "WEBP"}
    assert look.image_tokens.low < look.image_tokens.mid < look.prompt_tokens.mid


def test_looking_ends_when_its_time_is_up(source: Path) -> None:
    assert look_at(plan_of(source), rows=1000, seconds=0).rows == 8


def test_several_prompts_share_an_image(source: Path) -> None:
    one, two = (look_at(plan_of(source, prompt=texts), 40, 60) for texts in (("Q?",), ("Q?", "Another question?")))
    assert one.image_tokens == two.image_tokens
    assert one.prompt_tokens.mid < two.prompt_tokens.mid < one.prompt_tokens.mid + one.image_tokens.mid


def test_a_plan_lists_what_will_go_wrong(source: Path, capsys) -> None:
    status, found = planned(source, capsys, "--gpu-type", "h100", "--gpus", "2", "--price-per-gpu-hour", "3")
    assert status == 1
    assert (found["rows"], found["models"]) == (120, 2)
    assert found["cost"]["mid"] == pytest.approx(found["hours"]["mid"] * 6)
    assert found["hours"]["low"] <= found["hours"]["mid"] <= found["hours"]["high"]
    assert [line.split(" ")[0] for line in found["problems"]] == ["10.0%", "the"]


def test_nothing_goes_wrong_where_failures_are_expected(source: Path, capsys) -> None:
    write_parquet(source, [good_row(number) for number in range(40)])
    status, found = planned(source, capsys, "--gpu-type", "4090", "--answer-tokens", "50")
    assert (status, found["problems"]) == (0, [])
    assert found["answer_tokens"]["mid"] == 40 * 50
    assert not (source.parent / "out").exists()


def test_a_plan_is_said_in_lines(source: Path, capsys) -> None:
    where = ["--input", str(source), "--output", str(source.parent / "out"), "--model", str(checkpoint())]
    assert main(["plan", *where, "--gpu-type", "h200"]) == 1
    shown = capsys.readouterr().out
    assert "input      120 rows, 120 answers; 12 (" in shown
    assert "machine    1 x h200, 1 model at" in shown
    assert "PROBLEM    10.0% of rows" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param([], "--gpu-type or --calibrate must say", id="no machine"),
        pytest.param(["--gpu-type", "h100", "--price-per-gpu-hour", "0"], "--price-per-gpu-hour", id="free"),
        pytest.param(["--calibrate", "0"], "--calibrate", id="nothing"),
        pytest.param(["--gpu-type", "v100"], "--gpu-type", id="card"),
        pytest.param(["--gpu-type", "h100", "--gpus", "0"], "gpus must be at least 1", id="no GPU of that type"),
        pytest.param(["--gpu-type", "h100", "--price-per-gpu-hour", "nan"], "--price-per-gpu-hour", id="price"),
        pytest.param(["--gpu-type", "h100", "--gpus", "3", "--gpus-per-model", "2"], "gpus must be a multiple", id="3"),
    ],
)
def test_what_cannot_be_planned_is_refused(source: Path, flags: list[str], message: str, capsys) -> None:
    where = ["--input", str(source), "--output", "out", "--model", str(checkpoint())]
    assert main(["plan", *where, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_cluster_is_not_measured_by_one_machine_of_it(source: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    where = ["--input", str(source), "--output", "out", "--model", str(checkpoint()), "--calibrate", "4"]
    assert main(["plan", *where]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "RAY_ADDRESS must be empty with --calibrate" in line
    assert "got 10.0.0.7:6379" in line


def test_an_input_of_which_every_row_fails_is_refused(source: Path, capsys) -> None:
    write_parquet(source, [bad_row(number, "decode") for number in range(9)])
    where = ["--input", str(source), "--output", "out", "--model", str(checkpoint()), "--gpu-type", "h100"]
    assert main(["plan", *where]) == 2
    assert "all 9 rows that were looked at fail, as decode/BrokenImage: row-" in capsys.readouterr().err


@pytest.mark.parametrize(("most", "said"), [("64", ", but no more than --max-new-tokens 64\n"), ("300", "\n")])
def test_answers_are_not_longer_than_the_job_lets_them_be(source: Path, most: str, said: str, capsys) -> None:
    flags = ["--input", str(source), "--output", f"{source.parent}/out", "--model", str(checkpoint())]
    main(["plan", *flags, "--gpu-type", "h100", "--answer-tokens", "300", "--max-new-tokens", most])
    assert f"answer tokens: as given by --answer-tokens{said}" in capsys.readouterr().out
