"""What is taken into a prefill: the oldest, and what fills it best."""

import itertools
import random
from dataclasses import replace

import pytest
import torch

from pipeline.engine.prefill_group import PrefillGroup, group_of_one
from pipeline.engine.repetition import SPAN
from pipeline.engine.waiting import WaitingQueue, best_sum
from schemas.engine import Sampling
from tests.engine.groups import group, names, sequence_of


def waiting(*added, tokens: int = 32, tiles: int = 4, sequences: int = 8, pages: int = 99) -> WaitingQueue:
    queue = WaitingQueue(
        num_padded_tokens=tokens, bucket=8, tiles_per_call=tiles, max_sequences=sequences, max_pages=pages
    )
    queue.add(added)
    return queue


def encoded(queue: WaitingQueue, found) -> None:
    for one in found:
        one.images.features = torch.zeros(1)
    queue.move_encoded()


@pytest.mark.parametrize("seed", range(20))
def test_the_best_sum_is_what_trying_all_gives(seed) -> None:
    draw = random.Random(seed)
    sizes = [draw.randint(1, 12) for _ in range(draw.randint(0, 9))]
    room = draw.randint(-1, 30)
    found = best_sum(sizes, room)
    sums = [sum(some) for n in range(len(sizes) + 1) for some in itertools.combinations(sizes, n)]
    assert len(set(found)) == len(found)
    assert sum(sizes[i] for i in found) == max(total for total in sums if total <= max(room, 0))


def test_of_equal_sums_the_one_of_earlier_sizes_is_taken() -> None:
    assert best_sum([3, 3, 3, 5], 6) == [0, 1]


def test_a_prefill_has_the_oldest_and_those_that_fill_it() -> None:
    queue = waiting(group("a", 7), group("b", 20), group("c", 16), group("d", 8))
    first = queue.take(8, short=False)
    assert first is not None
    assert names(first) == ["a", "b"]
    assert queue.take(8, short=False) is None
    second = queue.take(8, short=True)
    assert second is not None
    assert (names(second), len(queue)) == (["c", "d"], 0)


def of_caller(number: int, one: PrefillGroup) -> PrefillGroup:
    for sequence in one.sequences:
        sequence.caller = number
    return one


def test_callers_whose_samples_come_at_the_same_time_are_answered_one_after_the_other() -> None:
    queue = waiting(of_caller(1, group("b0", 8)), of_caller(0, group("a0", 8)), of_caller(1, group("b1", 8)), tokens=16)
    queue.add([of_caller(0, group("a1", 8, num_tiles=4))])
    encoded(queue, queue.next_to_encode(9, short=True))
    assert [names(queue.take(8, short=True) or []) for _ in range(2)] == [["a0", "a1"], ["b0", "b1"]]


def test_a_group_larger_than_a_prefill_runs_alone() -> None:
    queue = waiting(group("a", 90), group("b", 8))
    assert [names(queue.take(8, short=True) or []) for _ in range(2)] == [["a"], ["b"]]


def test_a_full_prefill_waits_for_slots_rather_than_let_a_younger_group_pass() -> None:
    queue = waiting(group("a", 3, num_sequences=3), group("b", 24))
    assert queue.take(2, short=False) is None
    assert names(queue.take(3, short=False) or []) == ["a"]


def test_a_short_prefill_takes_what_the_free_slots_hold() -> None:
    queue = waiting(group("a", 3), group("b", 3), group("c", 3))
    assert names(queue.take(2, short=True) or []) == ["a", "b"]


def test_a_full_prefill_waits_for_pages_rather_than_let_a_younger_group_pass() -> None:
    """80 tokens and one more are two pages, and so for each row of a group."""
    queue = waiting(group("a", 80, num_sequences=3), group("b", 80), group("c", 16), tokens=200)
    assert queue.take(8, 8, short=False) is None
    assert names(queue.take(8, 9, short=True) or []) == ["a", "b", "c"]
    assert not queue


def test_a_short_prefill_takes_what_the_free_pages_hold() -> None:
    queue = waiting(group("a", 80), group("b", 80), group("c", 24), tokens=400)
    assert queue.take(8, 1, short=True) is None
    assert names(queue.take(8, 4, short=True) or []) == ["a", "b"]


def test_a_prefill_takes_no_more_pages_than_it_may_but_for_the_oldest() -> None:
    queue = waiting(group("a", 80, num_sequences=3), group("b", 80), group("c", 80), tokens=400, pages=4)
    assert [names(queue.take(8, 9, short=True) or []) for _ in range(2)] == [["a"], ["b", "c"]]


def test_a_prefill_ends_no_more_prompts_than_it_may() -> None:
    queue = waiting(group("a", 3), group("b", 3), group("c", 3), sequences=2)
    assert names(queue.take(8, short=False) or []) == ["a", "b"]


def test_a_prefill_too_large_for_the_memory_comes_back_first_and_half_as_large() -> None:
    queue = waiting(*(group(name, 8) for name in "abcde"), tokens=32)
    taken = queue.take(8, short=False)
    assert taken is not None
    assert names(taken) == ["a", "b", "c", "d"]
    assert queue.shrink(taken)
    again = [queue.take(8, short=True) for _ in range(3)]
    assert [names(one) for one in again if one] == [["a", "b"], ["c", "d"], ["e"]]
    assert not queue.shrink([group("f", 16)])


def test_images_are_encoded_in_whole_calls_of_the_tower() -> None:
    queue = waiting(*(group(name, 8, num_tiles=n) for name, n in zip("abcd", (3, 2, 1, 5), strict=True)))
    assert queue.take(8, short=True) is None
    call = queue.next_to_encode(4, short=False)
    assert names(call) == ["a", "c"]
    encoded(queue, call)
    call = queue.next_to_encode(4, short=False)
    assert names(call) == ["b"]
    encoded(queue, call)
    assert names(queue.next_to_encode(4, short=False)) == ["d"]
    assert names(queue.take(8, short=True) or []) == ["a", "c", "b"]


def test_a_call_that_more_images_would_fill_waits_for_them() -> None:
    queue = waiting(group("a", 8, num_tiles=3))
    assert queue.next_to_encode(4, short=False) == []
    assert names(queue.next_to_encode(4, short=True)) == ["a"]


def test_no_images_are_encoded_while_enough_groups_are_at_hand() -> None:
    queue = waiting(*(group(str(i), 32) for i in range(4)), group("last", 8, num_tiles=1))
    assert queue.next_to_encode(4, short=True) == []
    assert queue.take(8, short=False) is not None
    assert names(queue.next_to_encode(4, short=True)) == ["last"]


def test_groups_that_nobody_waits_for_are_forgotten() -> None:
    left, stays = group("a", 3), group("b", 3)
    queue = waiting(left, stays)
    left.sequences[0].abort()
    queue.drop_done()
    assert names(queue.take(8, short=True) or []) == ["b"]


def test_retries_are_told_from_first_attempts() -> None:
    first = group("a", 3)
    prompt = replace(first.sequences[0].prompt, max_new_tokens=SPAN)
    again = sequence_of(first.images.sample, prompt, sampling=Sampling(cut_repetition=True))
    while again.completion.finish_reason is None:
        again.completion.append(5, -0.5)
    assert again.retry()
    queue = waiting(group_of_one(again))
    assert not queue.has_first_attempts
    queue.add([first])
    assert queue.has_first_attempts
