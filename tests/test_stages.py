"""The stages as functions of tables: every row stays, in its place, with an answer or a reason."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pytest

from pipeline.stages import Generate, Preprocess, final_answers
from schemas.answer import ANSWER_SCHEMA, Answer, table_to_answers
from schemas.job import JobSettings
from schemas.request import ImageRef, Request, requests_to_table
from schemas.sample import Sample, table_to_samples
from tests.fakes import EchoEngine, load_echo_engine
from tests.inputs import picture
from tests.tiny import checkpoint


def settings(**changes: object) -> JobSettings:
    base = {"input": ("a",), "output": "o", "model": str(checkpoint()), "max_new_tokens": 4}
    return JobSettings.model_validate({**base, **changes})


def requests(*images: ImageRef, prompt: str | None = "What?") -> pa.Table:
    rows = [Request(id=f"r{i}", images=(image,), prompt=prompt) for i, image in enumerate(images)]
    return requests_to_table(rows).append_column("keep:n", pa.array(range(len(rows))))


GOOD = ImageRef(data=picture(1))


@pytest.mark.parametrize(
    ("image", "stage", "type"),
    [
        pytest.param(ImageRef(), "read", "NoImage", id="null"),
        pytest.param(ImageRef(uri="/no/such.jpg"), "fetch", "FileNotFound", id="missing"),
        pytest.param(ImageRef(uri="http://127.0.0.1/x.jpg"), "fetch", "UnsupportedScheme", id="http"),
        pytest.param(ImageRef(data=picture(1)[:200]), "decode", "BrokenImage", id="truncated"),
        pytest.param(ImageRef(data=b"hello"), "decode", "NotAnImage", id="not an image"),
    ],
)
def test_a_bad_image_costs_nobody_else_their_sample(image: ImageRef, stage: str, type: str) -> None:
    table = Preprocess(settings())(requests(GOOD, image, GOOD))
    first, failed, last = table_to_samples(table)
    assert failed.prompts[0].failure is not None
    assert (failed.prompts[0].failure.stage, failed.prompts[0].failure.type) == (stage, type)
    assert first.prompts[0].failure is None
    assert last.prompts[0].failure is None
    assert table.column("keep:n").to_pylist() == [0, 1, 2]


def test_a_prompt_that_is_too_long_fails_alone() -> None:
    long = "x" * 2000
    (sample,) = table_to_samples(Preprocess(settings(prompt=(f"long={long}", "short=What?")))(requests(GOOD)))
    failures = {prompt.id: prompt.failure and prompt.failure.type for prompt in sample.prompts}
    assert failures == {"long": "PromptTooLong", "short": None}


def test_kept_columns_follow_their_row_to_each_of_its_answers() -> None:
    asked = settings(prompt=("a=A?", "b=B?"))
    samples = Preprocess(asked)(requests(GOOD, ImageRef(), GOOD))
    table = final_answers(Generate(asked, load_echo_engine)(samples))
    assert table.column_names == [*ANSWER_SCHEMA.names, "n"]
    assert list(zip(table["id"].to_pylist(), table["n"].to_pylist(), strict=True)) == [
        (f"r{n}", n) for n in range(3) for _ in "ab"
    ]


def test_a_failed_row_never_reaches_the_model_but_has_its_answer() -> None:
    samples = Preprocess(settings())(requests(GOOD, ImageRef(data=b"hello")))
    good, bad = table_to_answers(Generate(settings(), load_echo_engine)(samples))
    assert good.text == "What? 61x77"
    assert (bad.status, bad.error_stage, bad.error_type) == ("error", "decode", "NotAnImage")


class ForgetfulEngine(EchoEngine):
    """Leaves the last answer out."""

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        yield from list(super().generate(samples))[:-1]


def test_an_engine_that_loses_a_row_ends_the_run() -> None:
    samples = Preprocess(settings())(requests(GOOD, GOOD))
    with pytest.raises(RuntimeError, match="1 answers for 2 prompts"):
        Generate(settings(), lambda _: ForgetfulEngine())(samples)
