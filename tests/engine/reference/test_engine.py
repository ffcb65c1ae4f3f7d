"""The reference engine: transformers' generate over padded batches gives each row what it gets alone, by our rules."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GemmaConfig, GraniteConfig, LlavaNextForConditionalGeneration, PreTrainedConfig, Qwen3Config

from demo.checkpoint import BOS, EOS, PAD, Shape, build_config, build_processor, byte_tokenizer
from jobs.__main__ import main
from pipeline.engine.engine import Engine
from pipeline.engine.reference.engine import ReferenceEngine
from pipeline.engine.reference.load import ReferenceModel, load_reference
from pipeline.stages.preprocess import Preprocess
from schemas.engine import EngineSettings, Sampling
from schemas.errors import Failure, Refused
from schemas.job import JobSettings
from schemas.request import ImageRef, Request, requests_to_table
from schemas.sample import Prompt, Sample, table_to_samples
from tests.inputs import picture
from tests.tiny import checkpoint, new_folder

FP32 = EngineSettings(dtype="float32")
KINDS = {"granite": GraniteConfig, "gemma": GemmaConfig, "qwen3": Qwen3Config}


@functools.cache
def unknown(kind: str) -> Path:
    """A checkpoint with a text network that our own engine does not build."""
    shape, tokenizer = Shape(), byte_tokenizer()
    config = build_config(shape, len(tokenizer))
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "vocab_size": len(tokenizer)}
    text: PreTrainedConfig = KINDS[kind](
        **sizes, **ids, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, tie_word_embeddings=False
    )
    config.text_config = text
    torch.manual_seed(0)
    network, folder = LlavaNextForConditionalGeneration(config), new_folder(kind)
    build_processor(shape, tokenizer).save_pretrained(folder)
    network.save_pretrained(folder)
    return folder


@functools.cache
def reference(folder: Path) -> ReferenceModel:
    return load_reference(str(folder), FP32)


def engine(folder: Path, batch_size: int = 4, **sampling: object) -> ReferenceEngine:
    return ReferenceEngine(reference(folder), replace(FP32, batch_size=batch_size, sampling=Sampling(**sampling)))


def samples_of(folder: Path, **changes: object) -> list[Sample]:
    base = {"input": ("x",), "output": "y", "model": str(folder), "max_new_tokens": 12}
    stage = Preprocess(JobSettings.model_validate({**base, **changes}))
    images = [(1,), (2, 3), (), (4,), (5,), (10,)]
    requests = [
        Request(id=str(n), images=tuple(ImageRef(data=picture(one)) for one in own), prompt="What? " * (1 + n % 3))
        for n, own in enumerate(images)
    ]
    return table_to_samples(stage(requests_to_table(requests)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_in_a_batch_gets_what_it_gets_alone(kind: str) -> None:
    samples = samples_of(unknown(kind))
    alone = [next(engine(unknown(kind), 1).generate([sample])) for sample in samples]
    for batch_size in (2, 6):
        together = list(engine(unknown(kind), batch_size).generate(samples))
        assert [(a.id, a.text, a.finish_reason) for a in together] == [(a.id, a.text, a.finish_reason) for a in alone]
    assert len({answer.text for answer in alone}) > 1


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"temperature": 1.0, "top_p": 0.9, "seed": 3}, id="sampled by the rows' own seeds"),
        pytest.param({"repetition_penalty": 1.3, "min_new_tokens": 6}, id="penalty"),
        pytest.param({"cut_repetition": True}, id="repetition"),
        pytest.param({"stop": ("e",), "temperature": 1.0}, id="stop"),
    ],
)
def test_it_answers_as_our_own_engine_does(sampling: dict[str, object]) -> None:
    samples = samples_of(checkpoint(), max_new_tokens=20)
    settings = replace(FP32, sampling=Sampling(**sampling))
    own = Engine.load(str(checkpoint()), settings=settings)
    wanted = list(own.generate(samples))
    own.close()
    found = list(engine(checkpoint(), 3, **sampling).generate(samples))
    assert [replace(one, mean_logprob=None) for one in found] == [replace(one, mean_logprob=None) for one in wanted]
    logprobs = [one.mean_logprob for one in wanted]
    assert [one.mean_logprob for one in found] == pytest.approx(logprobs, abs=1e-4)


class ShortOfMemory(ReferenceEngine):
    """Has memory for so many rows."""

    most = 2

    def _generate(self, batch) -> None:
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("no room")
        super()._generate(batch)


@pytest.mark.parametrize("most", [1, 2])
def test_a_batch_is_halved_where_memory_is_short(most: int) -> None:
    samples, short = samples_of(checkpoint()), ShortOfMemory(reference(checkpoint()), replace(FP32, batch_size=6))
    short.most = most
    wanted = engine(checkpoint(), 1).generate(samples)
    assert [one.text for one in short.generate(samples)] == [one.text for one in wanted]
    assert short.statistics().num_out_of_memory > 0


def test_a_row_that_memory_does_not_hold_alone_fails_and_the_others_do_not() -> None:
    samples, short = samples_of(checkpoint()), ShortOfMemory(reference(checkpoint()), FP32)
    short.most = 0
    assert {(one.status, one.error_type) for one in short.generate(samples)} == {("error", "OutOfMemory")}


def test_a_prompt_that_failed_before_keeps_its_failure() -> None:
    failure = Failure(stage="decode", type="BrokenImage", message="no image")
    bad = Sample(id="bad", prompts=(Prompt(id="prompt", text="What?", failure=failure),))
    answers = list(engine(checkpoint()).generate([bad, samples_of(checkpoint())[0]]))
    assert [answer.error_type for answer in answers] == ["BrokenImage", None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"quantize": "fp8"}, "'fp8' is of our own engine", id="fp8"),
        pytest.param({"kv_cache_dtype": "int8"}, "'int8' is of our own engine", id="int8"),
        pytest.param({"adapter": "somewhere"}, "adapter must be merged", id="adapter"),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message):
        load_reference(str(checkpoint()), replace(FP32, **changes))


def test_the_refusal_of_our_own_engine_names_it_and_a_dry_run_takes_it(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    flags = ["caption", "--input", str(tmp_path), "--output", str(tmp_path / "out"), "--dry-run"]
    flags += ["--model", str(unknown("granite"))]
    assert main(flags) == 2
    assert "got 'granite'; --engine transformers runs it, slower" in capsys.readouterr().err
    assert main([*flags, "--engine", "transformers"]) == 0
