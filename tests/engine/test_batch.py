"""Where the tokens of a prefill stand."""

import torch

from pipeline.engine.batch import lay_out
from pipeline.engine.kernels.layout import layout
from pipeline.engine.kernels.pages import PAGE
from tests.engine.waiting import group, seats


def three_and_one():
    return lay_out([group("a", 20, num_rows=3), group("b", 18)], [seats(4, 0, 6), seats(2)], num_places=128, step=16)


def test_segments_stand_side_by_side_in_whole_steps() -> None:
    batch = three_and_one()
    assert [(s.first, s.width, s.start, s.end) for s in batch.segments] == [
        (0, 32, 0, 20),
        (32, 16, 20, 21),
        (48, 16, 20, 21),
        (64, 16, 20, 21),
        (80, 32, 0, 18),
    ]
    expected = [1] * 20 + [0] * 12 + [5] + [0] * 15 + [6] + [0] * 15 + [7] + [0] * 15 + [1] * 18 + [0] * 30
    assert batch.token_ids.tolist() == expected


def test_what_rows_share_goes_to_the_pages_of_each() -> None:
    batch = three_and_one()
    assert [[seat.slot for seat in s.seats] for s in batch.segments] == [[4, 0, 6], [4], [0], [6], [2]]
    assert [s.seats[0].slot for s in batch.endings] == [4, 0, 6, 2]
    assert [row.sample.id for row in batch.rows] == ["a", "a", "a", "b"]


def test_a_batch_larger_than_a_prefill_has_its_own_size() -> None:
    assert lay_out([group("a", 200)], [seats(0)], num_places=128, step=16).num_places == 208


def test_pairs_are_what_a_loop_counts() -> None:
    batch = three_and_one()
    assert batch.num_tokens == 20 + 3 + 18
    assert batch.num_pairs == sum(range(1, 21)) + 3 * 21 + sum(range(1, 19))


def test_a_layout_has_positions_blocks_and_the_tokens_that_others_follow() -> None:
    batch = three_and_one()
    found = layout(batch.segments, num_places=128, num_drawn=16, capacity=24, device=torch.device("cpu"))
    assert found.positions[:32].tolist() == [*range(24), *[23] * 8]
    assert found.positions[32:48].tolist() == [20, 21, 22, *[23] * 13]
    assert found.wanted.tolist() == [32, 48, 64, 97, *[0] * 12]
    assert found.blocks is not None
    assert (found.blocks.firsts.tolist(), found.blocks.tables.tolist()) == ([32, 48, 64], [[14], [10], [16]])
    assert (found.blocks.positions.tolist(), found.blocks.width) == ([20, 20, 20], 16)
    assert (found.drawn.firsts.tolist(), found.drawn.positions.tolist()) == ([0, 1, 2, 3], [20, 20, 20, 17])
    assert found.drawn.tables.tolist() == [[14], [10], [16], [12]]


def test_every_token_goes_to_the_place_of_its_position_in_the_pages_of_each_row_that_has_it() -> None:
    batch = lay_out([group("a", 70, num_rows=2)], [seats(3, 0, pages=2)], num_places=128, step=16)
    found = layout(batch.segments, num_places=128, num_drawn=16, capacity=100, device=torch.device("cpu")).moves
    shared = [16 * PAGE + i if i < PAGE else 17 * PAGE + i - PAGE for i in range(70)]
    others = [place - 6 * PAGE for place in shared]
    assert found.sources.tolist() == [*range(70), *range(70), 80, 96]
    assert found.targets.tolist() == [*shared, *others, 17 * PAGE + 6, 11 * PAGE + 6]


def test_behind_a_prefix_stand_the_other_tokens_where_they_do_in_their_prompts() -> None:
    """The rests of a group are behind what it shares: they alone read their slots in blocks."""
    one, three = group("a", 40, num_common=32), group("b", 50, num_rows=3, num_common=32)
    batch = lay_out([one, three], [seats(1), seats(4, 0, 6)], num_places=128, step=16)
    assert [(s.first, s.width, len(s.prefix), s.start, s.end) for s in batch.segments] == [
        (0, 16, 32, 32, 40),
        (16, 32, 32, 32, 50),
        (48, 16, 0, 50, 51),
        (64, 16, 0, 50, 51),
        (80, 16, 0, 50, 51),
    ]
    assert (one.num_places(16), three.num_places(16)) == (16, 32 + 3 * 16)
    assert (batch.num_tokens, batch.num_prefix_tokens) == (8 + 18 + 3, 64)
    assert batch.num_pairs == sum(range(33, 41)) + sum(range(33, 51)) + 3 * 51
    found = layout(batch.segments, num_places=128, num_drawn=16, capacity=64, device=torch.device("cpu"))
    assert found.positions[:16].tolist() == [*range(32, 48)]
    assert found.blocks is not None
    assert found.blocks.firsts.tolist() == [48, 64, 80]
    assert found.drawn.positions.tolist() == [39, 50, 50, 50]
