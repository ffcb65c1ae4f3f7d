"""A page of more lines than one view shows is read when it is cut into strips, and only then."""

import random

import pytest

from benchmarks.reading import side_by_side, typeset
from demo.heldout import read_items
from pipeline.scoring.reading import add_up, read_against
from pipeline.stages.engine_settings import load_engine
from pipeline.stages.generate import Generate
from pipeline.stages.preprocess import Preprocess
from schemas.answer import Answer, table_to_answers
from schemas.job import JobSettings
from schemas.request import ImageRef, Request, requests_to_table
from tests.images import encoded


@pytest.fixture(scope="module")
def pages() -> list[list[str]]:
    lines = [line for item in read_items() if item.kind == "read" for line in item.truth.split("\n")]
    random.Random(0).shuffle(lines)
    return [lines[:16], lines[16:32]]


@pytest.fixture(scope="module")
def generate() -> Generate:
    return Generate(settings("off"), load_engine)


def settings(strips: str) -> JobSettings:
    asked = {"prompt": ("What does the text say?",), "strips": strips, "max_new_tokens": 400}
    return JobSettings.model_validate({"input": ("a",), "output": "o", "model": "demo", **asked})


def answers_to(pages: list[list[str]], generate: Generate, strips: str) -> list[Answer]:
    return answers_about([encoded(typeset(page)) for page in pages], generate, strips)


def answers_about(images: list[bytes], generate: Generate, strips: str) -> list[Answer]:
    requests = [Request(id=str(i), images=(ImageRef(data=image),)) for i, image in enumerate(images)]
    return table_to_answers(generate(Preprocess(settings(strips))(requests_to_table(requests))))


def error_rate(pages: list[list[str]], answers: list[Answer]) -> float:
    pairs = zip(pages, answers, strict=True)
    return add_up(read_against("\n".join(page), answer.text or "") for page, answer in pairs).cer


@pytest.mark.soak
def test_strips_make_a_long_page_readable(pages, generate) -> None:
    cut, whole = (answers_to(pages, generate, strips) for strips in ("auto", "off"))
    assert error_rate(pages, cut) < 0.08
    assert error_rate(pages, whole) > 0.4
    assert all(len(answer.strips or ()) >= 4 for answer in cut)
    assert all(answer.strips is None for answer in whole)


def test_two_columns_are_read_one_after_the_other(pages, generate) -> None:
    answers = answers_about([encoded(side_by_side(*pages))], generate, "auto")
    assert error_rate([pages[0] + pages[1]], answers) < 0.08
