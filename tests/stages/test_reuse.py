"""Reuse: what is asked twice is answered once, and nothing that differs is taken for the same."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from pipeline.stages.generate import Generate
from pipeline.stages.preprocess import Preprocess
from pipeline.stages.reuse import AnswerCache, key_of
from schemas.answer import Answer, table_to_answers
from schemas.engine import Sampling
from schemas.form import Form
from schemas.request import ImageRef
from schemas.sample import Prompt, Sample, Size
from tests.fakes import EchoEngine
from tests.stages.test_stages import GOOD, OTHER, requests, settings


class CountingEngine(EchoEngine):
    """Remembers which samples it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        self.asked += [sample.id for sample in samples]
        yield from super().generate(samples)


def test_equal_rows_are_answered_once_each_under_its_own_id() -> None:
    engine, asked = CountingEngine(), settings(prompt=("a=A?", "b=B?"), reuse_answers=True)
    generate, samples = Generate(asked, lambda _: engine), Preprocess(asked)(requests(GOOD, OTHER, GOOD, ImageRef()))
    plain = table_to_answers(Generate(settings(), lambda _: EchoEngine())(samples))
    for _ in range(2):
        assert table_to_answers(generate(samples)) == plain
    assert engine.asked == ["r0", "r1", "r3", "r3"]  # a row that failed is not kept
    assert generate.statistics().num_reused == 2 + 6


def sample(**changes: object) -> Sample:
    prompt = Prompt(id="p", text="?", token_ids=np.array([1, 2], np.int32), max_new_tokens=4)
    tiles = np.zeros((1, 2, 2, 3), np.uint8)
    base = Sample(id="a", prompts=(prompt,), image_sizes=(Size(2, 2),), tiles_per_image=(1,), tiles=tiles)
    of_prompt = {name: value for name, value in changes.items() if name in Prompt.__dataclass_fields__ and name != "id"}
    rest = {name: value for name, value in changes.items() if name not in of_prompt}
    return replace(base, **{"prompts": (replace(prompt, **of_prompt),), **rest})


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"tiles": np.ones((1, 2, 2, 3), np.uint8)}, id="pixels"),
        pytest.param({"image_sizes": (Size(3, 2),)}, id="size"),
        pytest.param({"image_sha256": "x"}, id="bytes"),
        pytest.param({"token_ids": np.array([1, 3], np.int32)}, id="tokens"),
        pytest.param({"max_new_tokens": 5}, id="length"),
        pytest.param({"form": Form(kind="regex", text="a")}, id="form"),
        pytest.param({"answer_prefix": "x"}, id="prefix"),
        pytest.param({"prompts": (*sample().prompts, *sample().prompts)}, id="prompts"),
    ],
)
def test_rows_that_differ_in_anything_have_keys_of_their_own(changes: dict[str, object]) -> None:
    assert key_of(sample(**changes), Sampling()) != key_of(sample(), Sampling())
    assert key_of(sample(id="b"), Sampling()) == key_of(sample(), Sampling())
    assert key_of(sample(), Sampling(stop=("x",))) != key_of(sample(), Sampling())


def test_the_cache_forgets_what_was_used_longest_ago_once_it_is_full() -> None:
    engine, cache = CountingEngine(), AnswerCache(most_bytes=3000)
    rows = [sample(id=str(n), token_ids=np.array([n + 1], np.int32)) for n in range(3)]
    for number in (0, 1, 0, 2, 0, 1):
        (answer,) = cache.answer([rows[number]], Sampling(), engine.generate)
        assert answer.id == str(number)
    assert engine.asked == ["0", "1", "2", "1"]
