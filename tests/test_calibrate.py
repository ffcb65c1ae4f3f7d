"""calibrate: what some rows take here says what all of them take, however many a job has at work."""

import random
from pathlib import Path

import pytest

from pipeline.calibrate import Answered, Crowd, answer_some, calibration_of, crowd_of, steps_of
from pipeline.plan import Plan, plan_job
from schemas.engine import EngineStatistics
from schemas.errors import Refused
from schemas.job import JobSettings
from tests.inputs import bad_row, good_row, write_parquet
from tests.tiny import checkpoint

# 40 rows with two answers of 5 tokens each; 4000 tokens of prompts in 60 s, 20 steps of 3 s.
WORK = EngineStatistics(
    num_rows=80, vision_s=20, prefill_s=40, decode_s=60, num_decode_steps=20, num_answer_tokens=400
) + EngineStatistics(num_prefilled_tokens=3600, num_prefix_tokens=400)
WIDE = Crowd(units=4, prompts=16, total=160)


def answered(lengths: tuple[int, ...] = (5,) * 80, slots: int | None = 16) -> Answered:
    return Answered(statistics=WORK, lengths=lengths, slots=slots)


def test_rates_are_those_of_the_rows_that_were_answered() -> None:
    found = calibration_of(answered(), 10.0, 2, WIDE)
    assert (found.rows, found.start_s, found.answer_tokens.mid) == (40, 10.0, 5.0)
    assert found.prompt_token_s == pytest.approx(60 / 4000)
    assert found.answer_token_s == pytest.approx(3.0 * 50 / 800)  # 160 answers, 16 at once: 10 times 5 steps


def test_a_job_that_fills_fewer_slots_takes_more_steps() -> None:
    narrow = calibration_of(answered(), 10.0, 2, Crowd(units=2, prompts=4, total=160))
    assert narrow.answer_token_s == pytest.approx(2 * calibration_of(answered(), 10.0, 2, WIDE).answer_token_s)


def test_an_engine_without_slots_takes_what_it_took() -> None:
    assert calibration_of(answered(slots=None), 0.0, 2, WIDE).answer_token_s == pytest.approx(60 / 400)


def test_rows_that_all_fail_are_no_measure() -> None:
    with pytest.raises(Refused, match="--calibrate must answer some rows"):
        calibration_of(answered(lengths=()), 3.0, 1, WIDE)


@pytest.mark.parametrize(
    ("lengths", "units", "prompts", "slots", "steps"),
    [
        pytest.param([3, 5, 4], 1, 1, 8, 12, id="one after the other"),
        pytest.param([3, 5, 4], 3, 1, 8, 5, id="all at once"),
        pytest.param([3, 5, 4], 3, 1, 2, 7, id="the third takes the first's slot"),
        pytest.param([1, 9, 1, 9], 1, 2, 8, 18, id="a unit waits for its last row"),
        pytest.param([], 1, 1, 1, 0, id="nothing"),
    ],
)
def test_steps_follow_from_lengths_and_what_is_at_work(
    lengths: list[int], units: int, prompts: int, slots: int, steps: int
) -> None:
    assert steps_of(lengths, Crowd(units=units, prompts=prompts, total=len(lengths)), slots) == steps


def test_steps_are_no_fewer_than_full_slots_and_no_more_than_one_by_one() -> None:
    rng = random.Random(0)
    for _ in range(200):
        lengths = [rng.randrange(1, 60) for _ in range(rng.randrange(1, 90))]
        slots = rng.randrange(1, 20)
        crowd = Crowd(units=rng.randrange(1, 5), prompts=rng.randrange(1, 20), total=len(lengths))
        least = max(max(lengths), -(-sum(lengths) // slots))
        assert least <= steps_of(lengths, crowd, slots) <= sum(lengths)


def planned(folder: Path, **changes: object) -> Plan:
    rows = [bad_row(i, "decode") if i % 10 == 3 else good_row(i) for i in range(40)]
    source = write_parquet(folder / "in.parquet", rows)
    told = {"input": (str(source),), "output": str(folder / "out"), "model": str(checkpoint()), "prompt": ("A", "B")}
    return plan_job("caption", JobSettings.model_validate({**told, **changes}), "")


def test_a_job_on_the_cpu_has_some_units_at_work(tmp_path: Path) -> None:
    assert crowd_of(planned(tmp_path), models=0, slots=32) == Crowd(units=4, prompts=16, total=80)


@pytest.mark.parametrize(("engine", "slots"), [("own", 4), ("transformers", None)])
def test_rows_from_everywhere_are_answered_here(tmp_path: Path, engine: str, slots: int | None) -> None:
    found = answer_some(planned(tmp_path, engine=engine, max_new_tokens=3, slots=4), 40)
    assert len(found.lengths) == 72  # two answers each, of all rows but four
    assert found.slots == slots
    assert found.statistics.num_rows == 72
    assert found.statistics.num_answer_tokens == sum(found.lengths)
    assert not (tmp_path / "out").exists()
