"""What a checkpoint's generation config asks of its answers is said where a job does not do it."""

from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, LlamaConfig

from demo.checkpoint import Shape
from pipeline.engine.network.load import load_model
from pipeline.engine.reference.load import load_reference
from pipeline.plan import resolve_model
from pipeline.preprocess.facts import read_facts
from pipeline.preprocess.generation import describe_unfollowed
from schemas.job import JobSettings
from tests.checkpoints import edit
from tests.engine.oracle import FP32
from tests.tiny import build

IDS = {"bos_token_id": 0, "eos_token_id": [1, 4], "pad_token_id": 3}


def settings(**more: Any) -> JobSettings:
    return JobSettings.model_validate({"input": ("a",), "output": "o", **more})


def said(job: JobSettings, **asked: Any) -> str | None:
    return describe_unfollowed(GenerationConfig(**IDS, **asked), job)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        pytest.param(
            {"repetition_penalty": 1.2},
            "repetition_penalty 1.2, which this job does not follow: see --repetition-penalty",
            id="a penalty",
        ),
        pytest.param({"no_repeat_ngram_size": 1}, "no_repeat_ngram_size 1, which this job does not follow", id="ngram"),
        pytest.param({"suppress_tokens": [7]}, "suppress_tokens [7], which this job does not follow", id="suppressed"),
        pytest.param({"num_beams": 3, "length_penalty": 2.0}, "num_beams 3, length_penalty 2.0, which", id="beams"),
        pytest.param(
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
            "do_sample True, temperature 0.6, top_p 0.9, which this job does not follow: see --temperature, --top-p",
            id="drawing",
        ),
        pytest.param({"min_new_tokens": 1}, "min_new_tokens 1, which", id="a least length"),
        pytest.param({"forced_eos_token_id": 1}, "forced_eos_token_id 1, which", id="a forced end"),
        pytest.param({"stop_strings": ["x"]}, "stop_strings ['x'], which", id="stops"),
    ],
)
def test_what_generate_would_do_and_the_job_does_not_is_said(asked: dict[str, Any], words: str) -> None:
    assert str(said(settings(), **asked)).startswith(words)


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"temperature": 0.2, "top_p": 0.5, "top_k": 5}, id="drawing that is off"),
        pytest.param({"num_beams": 1, "length_penalty": 0.5, "early_stopping": True}, id="no beams"),
        pytest.param({"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "do_sample": False}, id="neutral"),
        pytest.param({"max_length": 20, "max_new_tokens": 5, "use_cache": False}, id="lengths and speed"),
    ],
)
def test_what_changes_no_greedy_answer_is_not(asked: dict[str, Any]) -> None:
    assert said(settings(), **asked) is None


def test_what_the_job_does_as_well_is_not() -> None:
    job = settings(temperature=0.6, top_p=0.9, repetition_penalty=1.2)
    assert said(job, do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.2) is None
    assert str(said(job, do_sample=True, temperature=0.7)).startswith("temperature 0.7, which")


@pytest.mark.parametrize("place", ["generation_config.json", "config.json", "text_config"])
def test_it_is_said_wherever_transformers_finds_it(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build(Shape())

    def change(content: dict[str, Any]) -> None:
        content.get(place, content).update(repetition_penalty=1.5)

    edit(folder / (place if place.endswith(".json") else "config.json"), change)
    if place != "generation_config.json":
        (folder / "generation_config.json").unlink()
    resolve_model(settings(model=str(folder)))
    assert "has a generation config that asks for repetition_penalty 1.5, which" in capsys.readouterr().err


def without(folder: Path, file: str, *place: str) -> None:
    """Take the end token out of a file's object, or of one in it."""

    def change(content: dict[str, Any]) -> None:
        for name in place:
            content = content[name]
        content.pop("eos_token_id")

    edit(folder / file, change)


@pytest.mark.parametrize("own", [True, False], ids=["leaves it out", "is not there"])
def test_an_end_token_that_the_generation_config_has_not_is_the_one_that_config_json_states(own: bool) -> None:
    folder = build(Shape())
    if own:
        without(folder, "generation_config.json")
    else:
        (folder / "generation_config.json").unlink()
    assert ends_of(folder) == (1,)
    edit(folder / "config.json", lambda content: content["text_config"].update(eos_token_id=[4, 5]))
    assert ends_of(folder) == (4, 5)
    edit(folder / "config.json", lambda content: content.update(eos_token_id=3))
    assert ends_of(folder) == (3,)


@pytest.mark.parametrize("own", [True, False], ids=["leaves it out", "is not there"])
def test_where_nothing_states_an_end_token_it_is_the_tokenizers_not_the_one_of_llama_in_general(own: bool) -> None:
    folder = build(Shape())
    if own:
        without(folder, "generation_config.json")
    else:
        (folder / "generation_config.json").unlink()
    without(folder, "config.json", "text_config")
    assert LlamaConfig().eos_token_id == 2
    assert read_facts(str(folder), None).eos_token_ids == ()
    assert load_model(str(folder), FP32).stop_ids == (1,)
    assert load_reference(str(folder), FP32).stop_ids == (1,)


def ends_of(folder: Path) -> tuple[int, ...]:
    """The end tokens, which preprocessing and both engines find alike."""
    ends = read_facts(str(folder), None).eos_token_ids
    assert load_model(str(folder), FP32).stop_ids == load_reference(str(folder), FP32).stop_ids == ends
    return ends
