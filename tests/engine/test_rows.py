"""Which prompts are prefilled as one: those of a sample, behind what they share."""

import pytest

from pipeline.engine.rows import families
from tests.engine.waiting import IMAGE, rows_of


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
    assert [f.num_shared for f in families(rows_of("a", *prompts), 8, IMAGE)] == shared


def test_a_family_has_no_more_rows_than_there_are_slots() -> None:
    prompts = [[1, 2, 2, 2, i] for i in range(10, 15)]
    assert [len(f.rows) for f in families(rows_of("a", *prompts), 2, IMAGE)] == [2, 2, 1]


def test_the_families_of_a_sample_share_its_pictures() -> None:
    first, second = families(rows_of("a", [1, 7, 8], [1, 9, 8]), 8, IMAGE)
    assert first.pictures is second.pictures


def test_a_family_takes_whole_steps_for_what_is_shared_and_for_every_rest() -> None:
    (one,) = families(rows_of("a", [1] * 20), 8, IMAGE)
    (three,) = families(rows_of("b", [1] * 20 + [3], [1] * 20 + [4] * 9, [1] * 20 + [5] * 16), 8, IMAGE)
    assert (one.num_places(8), three.num_places(8)) == (24, 24 + 8 + 16 + 16)
