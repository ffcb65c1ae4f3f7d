"""Which prompts are prefilled as one: those of a sample, behind what they share."""

import numpy as np
import pytest

from pipeline.engine.prefill_group import group_sequences, prefix_length
from schemas.sample import Prompt
from tests.engine.groups import IMAGE, group, sequences_of


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        pytest.param([[1, 2, 2, 2, 7], [1, 2, 2, 2, 8, 9]], [4], id="up to the first difference"),
        pytest.param([[1, 2, 2, 7], [1, 2, 2, 7]], [3], id="equal prompts keep a last token each"),
        pytest.param([[1, 2, 2, 3], [1, 2, 2, 3, 9]], [3], id="one is the beginning of the other"),
        pytest.param([[1, 7, 8], [1, 9, 8]], [3, 3], id="not worth sharing"),
        pytest.param([[1, 1, 1, 1, 7, 2], [1, 1, 1, 1, 8, 2]], [6, 6], id="an image stands behind the difference"),
        pytest.param([[1, 2, 3]], [3], id="one prompt"),
    ],
)
def test_prompts_share_their_beginning_where_that_pays(prompts, shared) -> None:
    assert [f.num_shared for f in group_sequences(sequences_of("a", *prompts), 8, IMAGE)] == shared


def test_a_group_has_no_more_rows_than_there_are_slots() -> None:
    prompts = [[1, 2, 2, 2, i] for i in range(10, 15)]
    assert [len(f.sequences) for f in group_sequences(sequences_of("a", *prompts), 2, IMAGE)] == [2, 2, 1]


def test_the_groups_of_a_sample_share_its_images() -> None:
    first, second = group_sequences(sequences_of("a", [1, 7, 8], [1, 9, 8]), 8, IMAGE)
    assert first.images is second.images


def test_a_group_takes_whole_steps_for_what_is_shared_and_for_every_suffix() -> None:
    (one,) = group_sequences(sequences_of("a", [1] * 20), 8, IMAGE)
    (three,) = group_sequences(sequences_of("b", [1] * 20 + [3], [1] * 20 + [4] * 9, [1] * 20 + [5] * 16), 8, IMAGE)
    assert (one.num_padded_tokens(8), three.num_padded_tokens(8)) == (24, 24 + 8 + 16 + 16)


@pytest.mark.parametrize(
    ("length", "num_common", "step", "expected"),
    [
        pytest.param(100, 71, 16, 64, id="whole steps"),
        pytest.param(100, 71, 32, 64, id="of any size"),
        pytest.param(100, 71, 128, 0, id="less than one"),
        pytest.param(100, 31, 1, 0, id="too short to be worth it"),
        pytest.param(100, 32, 16, 32, id="just long enough"),
        pytest.param(64, 64, 16, 48, id="a token is left to go on from"),
    ],
)
def test_a_prefix_is_taken_in_whole_steps_where_that_pays(length, num_common, step, expected) -> None:
    prompt = Prompt(id="p", text="?", token_ids=np.ones(length, np.int32), num_common=num_common, max_new_tokens=1)
    assert prefix_length(prompt, step) == expected


def test_a_group_whose_shared_tokens_are_all_the_prefix_has_none() -> None:
    """Its suffixes would be behind nothing that is run."""
    assert group("a", 32, num_sequences=2, num_common=32).num_prefix == 0
    assert group("a", 33, num_sequences=2, num_common=32).num_prefix == 32
