"""Which prompts run together: those of one sample behind what they share, and those of one bucket."""

import numpy as np
import pytest

from pipeline.engine.chunks import beginnings, rests
from pipeline.engine.rows import Family, Row, families
from pipeline.engine.waiting import Waiting
from schemas.sample import Prompt, Sample

IMAGE = 2


def rows_of(name: str, *prompts: list[int]) -> list[Row]:
    """The rows of one sample with these prompts' token ids."""
    asked = tuple(
        Prompt(id=str(i), text="?", token_ids=np.array(ids, np.int32), num_image_tokens=ids.count(IMAGE))
        for i, ids in enumerate(prompts)
    )
    sample = Sample(id=name, prompts=asked)
    return [Row(sample=sample, prompt=prompt) for prompt in asked]


def family(name: str, length: int, num_rows: int = 1) -> Family:
    """A family with so many rows and so many tokens shared."""
    prompts = [[1] * length + ([5 + i] if num_rows > 1 else []) for i in range(num_rows)]
    (one,) = families(rows_of(name, *prompts), num_rows, IMAGE)
    assert one.num_shared == length
    return one


def waiting(*added: Family, prefill_tokens: int = 16, slots: int = 8) -> Waiting:
    queue = Waiting(bucket=8, prefill_tokens=prefill_tokens, num_slots=slots)
    for one in added:
        queue.add(one)
    return queue


def names(group) -> list[str]:
    return [f.pictures.sample.id for f in group.families]


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


def test_a_bucket_and_a_shape_follow_from_the_own_length() -> None:
    queue = waiting(family("a", 7), family("b", 9), family("c", 8), family("d", 16))
    groups = [queue.take(8, short=False) for _ in range(3)]
    assert [(names(g), g.length, g.num_rows) for g in groups if g] == [
        (["a", "c"], 8, 2),
        (["b"], 16, 1),
        (["d"], 16, 1),
    ]


def test_a_short_group_runs_only_when_it_may_and_keeps_its_shape() -> None:
    queue = waiting(family("a", 3))
    assert queue.take(8, short=False) is None
    group = queue.take(8, short=True)
    assert group is not None
    assert (names(group), group.num_rows, len(queue)) == (["a"], 2, 0)


def test_the_oldest_full_group_waits_for_slots_rather_than_let_a_younger_one_pass() -> None:
    queue = waiting(family("a", 3, num_rows=3), family("b", 3, num_rows=3), family("c", 12))
    assert queue.take(5, short=False) is None
    assert queue.take(6, short=False) is not None


def test_a_group_takes_no_more_than_all_slots_hold() -> None:
    queue = waiting(family("a", 3, num_rows=3), family("b", 3, num_rows=3), slots=4)
    group = queue.take(4, short=False)
    assert group is not None
    assert names(group) == ["a"]


def test_a_group_too_large_for_the_memory_comes_back_first_and_half_as_large() -> None:
    queue = waiting(*(family(name, 3) for name in "abcdef"), prefill_tokens=32)
    group = queue.take(8, short=False)
    assert group is not None
    queue.retry_smaller(group)
    again = [queue.take(8, short=True) for _ in range(3)]
    assert [(names(g), g.num_rows) for g in again if g] == [(["a", "b"], 2), (["c", "d"], 2), (["e", "f"], 2)]


def test_families_that_nobody_waits_for_are_forgotten() -> None:
    left, stays = family("a", 3), family("b", 3)
    queue = waiting(left, stays)
    left.rows[0].wanted = False
    queue.drop_unwanted()
    group = queue.take(8, short=True)
    assert group is not None
    assert names(group) == ["b"]


def test_padding_stands_behind_a_row_and_dummies_behind_all() -> None:
    queue = waiting(family("a", 3), prefill_tokens=24)
    group = queue.take(8, short=True)
    assert group is not None
    chunk = beginnings(group, [[4]], dummy=8)
    assert chunk.token_ids.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [0] * 8, [0] * 8]
    assert (chunk.lengths.tolist(), chunk.slots.tolist()) == ([3, 1, 1], [4, 8, 8])
    assert [place for place, _ in chunk.ending] == [0]


def test_rests_go_on_where_the_shared_beginning_ends() -> None:
    one = family("a", 40, num_rows=3)
    queue = waiting(one, family("b", 40), prefill_tokens=96)
    group = queue.take(8, short=True)
    assert group is not None
    first, second = rests(group, [[0, 3, 5], [1]], dummy=8, num_rows=2)
    assert (first.token_ids[:, 0].tolist(), first.slots.tolist(), first.starts.tolist()) == ([5, 6], [0, 3], [40, 40])
    assert (second.token_ids[:, 0].tolist(), second.slots.tolist()) == ([7, 0], [5, 8])
    assert second.drawn_slots.tolist() == [5, 8]
    assert [row for _, row in (*first.ending, *second.ending)] == list(one.rows)
