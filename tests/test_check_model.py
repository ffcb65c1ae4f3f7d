"""check-model: our engine against transformers, token for token; what differs is found, shown and bundled."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from demo.checkpoint import Shape
from jobs.__main__ import main
from jobs.check_model import status_of
from pipeline.check_model import Checked, Comparison, Cost
from pipeline.check_questions import check_samples, draw
from pipeline.stages.preprocess import Preprocess
from schemas.job import JobSettings
from tests.checkpoints import edit
from tests.tiny import build, checkpoint

COST = Cost(load_s=1.0, answer_s=2.0, num_tokens=8, memory_bytes=10**9)
EQUAL = Comparison(question="one picture", ours=(1, 2, 3), theirs=(1, 2, 3))


def checked(*comparisons: Comparison) -> Checked:
    return Checked(precision="float32", device="cpu", comparisons=comparisons, ours=COST, theirs=COST)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    bundle = tmp_path_factory.mktemp("check") / "report.zip"
    flags = ["--max-new-tokens", "3", "--dtype", "bfloat16", "--bundle", str(bundle)]
    return main(["check-model", str(checkpoint("qwen2")), *flags]), bundle


def test_a_checkpoint_is_equal_in_float32(seen: tuple[int, Path]) -> None:
    status, bundle = seen
    results = json.loads(zipfile.ZipFile(bundle).read("results.json"))
    assert status == 0
    assert [one["precision"] for one in results] == ["float32", "bfloat16"]
    assert len(results[0]["comparisons"]) == 11
    assert all(one["ours"] == one["theirs"] for one in results[0]["comparisons"])
    assert any(len(one["ours"]) == 3 for one in results[0]["comparisons"])


def test_the_bundle_has_configs_and_no_weights_and_no_paths(seen: tuple[int, Path]) -> None:
    bundle = zipfile.ZipFile(seen[1])
    assert {"versions.json", "settings.json", "model.json", "model/config.json"} <= set(bundle.namelist())
    assert not [name for name in bundle.namelist() if name.endswith((".safetensors", ".png"))]
    assert not [name for name in bundle.namelist() if str(checkpoint("qwen2").parent) in bundle.read(name).decode()]
    assert json.loads(bundle.read("versions.json"))["transformers"]


def test_what_a_generation_config_asks_for_is_said_and_neither_side_does_it(capsys) -> None:
    folder = build(Shape())
    edit(folder / "generation_config.json", lambda content: content.update(repetition_penalty=1.5))
    assert main(["check-model", str(folder), "--max-new-tokens", "6"]) == 0
    assert "asks for repetition_penalty 1.5, which this job does not follow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ours", "theirs", "first"),
    [
        pytest.param((1, 2), (1, 2), None, id="equal"),
        pytest.param((1, 2), (1, 3), 1, id="another token"),
        pytest.param((1,), (1, 3), 1, id="ended before"),
        pytest.param((), (4,), 0, id="empty"),
    ],
)
def test_the_first_difference_is_found(ours: tuple[int, ...], theirs: tuple[int, ...], first: int | None) -> None:
    assert Comparison(question="q", ours=ours, theirs=theirs).first_difference == first


@pytest.mark.parametrize(
    ("other", "status"),
    [
        pytest.param(EQUAL, 0, id="equal"),
        pytest.param(replace(EQUAL, theirs=(1, 2, 4)), 1, id="differs"),
        pytest.param(Comparison(question="q", ours=(), theirs=(), failure="PromptTooLong"), 1, id="not asked"),
    ],
)
def test_the_status_is_1_where_float32_differs(other: Comparison, status: int) -> None:
    assert status_of([checked(EQUAL, other), checked(replace(EQUAL, theirs=()))]) == status


def test_pictures_are_the_same_every_time_and_of_their_size() -> None:
    assert draw(64, 48, seed=1) == draw(64, 48, seed=1) != draw(64, 48, seed=2)


def test_four_prompts_are_asked_about_one_picture() -> None:
    settings = JobSettings(input=("x",), output="y", model=str(checkpoint()))
    samples = check_samples(Preprocess(settings))
    assert [len(sample.prompts) for sample in samples] == [1] * 7 + [4]
    assert [len(sample.image_sizes) for sample in samples] == [1, 1, 1, 1, 2, 0, 1, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["no/such/model"], "'no/such/model' is neither a folder here nor", id="no model"),
        pytest.param([__file__], "is a file", id="a file"),
        pytest.param([str(checkpoint()), "--bundle", "report.tar"], "--bundle must be the name of a .zip", id="zip"),
        pytest.param(
            [str(checkpoint()), "--bundle", f"{__file__}/x/report.zip"], "the folder of --bundle must be", id="folder"
        ),
        pytest.param([str(checkpoint()), "--max-new-tokens", "0"], "--max-new-tokens: input should be", id="value"),
        pytest.param([str(checkpoint()), "--dtype", "int8"], "--dtype", id="dtype"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_a_line(flags: list[str], message: str, capsys) -> None:
    assert main(["check-model", *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
