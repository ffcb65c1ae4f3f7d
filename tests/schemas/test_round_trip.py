"""A record that goes through its Arrow schema comes back as it was."""

from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest

from schemas.answer import (
    ANSWER_SCHEMA,
    Answer,
    Generation,
    StripAnswer,
    answer_from,
    answers_to_table,
    table_to_answers,
)
from schemas.errors import Failure, RowError
from schemas.request import REQUEST_SCHEMA, ImageRef, Request, requests_to_table, table_to_requests
from schemas.sample import (
    SAMPLE_SCHEMA,
    Prompt,
    Sample,
    Size,
    Strip,
    samples_to_table,
    table_to_samples,
)

FAILURE = Failure(stage="decode", type="TruncatedImage", message="it ends early")
ASKED = Prompt(
    id="a",
    text="What?",
    token_ids=np.array([0, 2, 2, 7], np.int32),
    num_image_tokens=2,
    num_common=1,
    max_new_tokens=9,
)


def a_sample() -> Sample:
    tiles = np.random.default_rng(0).integers(0, 255, (3, 4, 4, 3), np.uint8)
    return Sample(
        id="x",
        prompts=(ASKED, Prompt(id="b", text="", failure=FAILURE)),
        image_sizes=(Size(10, 20), Size(3, 4)),
        tiles_per_image=(2, 1),
        tiles=tiles,
        image_sha256="ab" * 32,
    )


def test_requests_come_back_as_they_were() -> None:
    requests = [
        Request(id="1", images=(ImageRef(data=b"\xff\xd8"), ImageRef(uri="s3://b/k.png")), prompt="Why?"),
        Request(id="1", images=()),
        Request(id="é", images=(ImageRef(),)),
        Request(id="2", images=(), messages='[{"role": "user", "content": "Why?"}]'),
        Request(id="3", images=(), values={"caption": "a {b}", "n": None}),
        Request(id="4", images=(), failure=FAILURE),
    ]
    table = requests_to_table(requests)
    assert table.schema == REQUEST_SCHEMA
    assert table_to_requests(table) == requests


def test_samples_come_back_with_their_pixels_and_failures() -> None:
    sample, empty = a_sample(), Sample(id="y", prompts=(Prompt(id="a", text="q", failure=FAILURE),))
    table = samples_to_table([sample, empty])
    first, second = table_to_samples(table)
    assert table.schema == SAMPLE_SCHEMA
    assert np.array_equal(first.tiles, sample.tiles)
    assert np.array_equal(first.prompts[0].token_ids, ASKED.token_ids)
    assert (first.prompts[0].num_image_tokens, first.prompts[0].num_common) == (2, 1)
    assert first.prompts[1].failure == FAILURE
    assert (first.image_sizes, first.tiles_per_image) == (sample.image_sizes, sample.tiles_per_image)
    assert second.tiles.shape == (0, 0, 0, 3)


def test_a_sample_in_strips_comes_back_with_them() -> None:
    strips = (Strip(top=0, bottom=9, num_tiles=1), Strip(top=9, bottom=20, num_tiles=2))
    (found,) = table_to_samples(samples_to_table([replace(a_sample(), strips=strips)]))
    assert found.strips == strips
    assert [prompt.id for prompt in found.asked] == ["a"]


def test_tiles_are_read_without_a_copy() -> None:
    table = samples_to_table([a_sample()])
    address = table.column("tiles").chunk(0).buffers()[2].address
    assert table_to_samples(table)[0].tiles.__array_interface__["data"][0] == address


def test_token_ids_of_a_part_of_a_table_are_its_own_and_may_be_written_to() -> None:
    other = replace(a_sample(), prompts=(replace(ASKED, token_ids=np.array([5], np.int32), num_common=0), ASKED))
    table = pa.concat_tables([samples_to_table([a_sample(), other]), samples_to_table([a_sample()])]).slice(1)
    found = [[prompt.token_ids.tolist() for prompt in sample.prompts] for sample in table_to_samples(table)]
    assert found == [[[5], [0, 2, 2, 7]], [[0, 2, 2, 7], []]]
    assert table_to_samples(table)[0].prompts[0].token_ids.flags.writeable


def test_answers_come_back_as_they_were() -> None:
    generation = Generation(text="a dog", finish_reason="stop", num_generated_tokens=3, mean_logprob=-0.5, num_tries=2)
    answers = [answer_from(a_sample(), ASKED, generation), answer_from(a_sample(), a_sample().prompts[1], None)]
    strips = (
        StripAnswer(top=0, bottom=9, text="a", finish_reason="repetition"),
        StripAnswer(top=9, bottom=20, text=None, finish_reason=None),
    )
    answers.append(replace(answers[0], strips=strips))
    table = answers_to_table(answers)
    assert table.schema == ANSWER_SCHEMA
    assert table_to_answers(table) == answers


def test_every_answer_field_is_a_column() -> None:
    names = [field.name for field in fields(Answer)]
    assert names == [*ANSWER_SCHEMA.names, "steps"]  # which are a column only where a job asks for them


def test_a_failed_prompt_gives_an_answer_with_its_reason_and_its_image() -> None:
    answer = answer_from(a_sample(), a_sample().prompts[1], None)
    assert (answer.status, answer.text, answer.error_stage) == ("error", None, "decode")
    assert (answer.error_type, answer.error_message) == ("TruncatedImage", "it ends early")
    assert (answer.image_width, answer.image_height, answer.num_tiles) == (10, 20, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Failure(stage="cook", type="T", message="m"), "stage must be", id="stage"),
        pytest.param(lambda: Prompt(id="a", text="t"), "token_ids must be empty", id="prompt"),
        pytest.param(lambda: Sample(id="s", prompts=()), "at least one prompt", id="no prompts"),
        pytest.param(lambda: Sample(id="s", prompts=(ASKED,), tiles_per_image=(1,)), "must agree", id="tiles"),
        pytest.param(
            lambda: Sample(id="s", prompts=(ASKED,), strips=(Strip(top=0, bottom=1, num_tiles=1),) * 2),
            "prompts must be there for every strip",
            id="strips",
        ),
        pytest.param(lambda: Answer(id="a", prompt_id="p", prompt="q", status="ok"), "text must be", id="no text"),
        pytest.param(
            lambda: Answer(id="a", prompt_id="p", prompt="q", status="ok", text="t", finish_reason="bored"),
            "finish_reason must be",
            id="finish",
        ),
    ],
)
def test_a_record_that_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_row_error_carries_its_failure() -> None:
    assert RowError("fetch", "FileNotFound", "gone").failure == Failure(
        stage="fetch", type="FileNotFound", message="gone"
    )


def test_kept_columns_do_not_disturb_reading_requests() -> None:
    table = requests_to_table([Request(id="1", images=())]).append_column("keep:n", pa.array([1]))
    assert table_to_requests(table)[0].id == "1"
