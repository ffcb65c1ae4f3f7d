"""Where the tokens of a prefill are."""

import torch

from pipeline.engine.batch import make_batch
from pipeline.engine.kernels.layout import layout
from pipeline.engine.kernels.pages import PAGE
from tests.engine.groups import allocated, group


def laid_out(batch, max_sequence_length: int):
    return layout(
        batch.segments,
        num_padded_tokens=128,
        num_sampled=16,
        max_sequence_length=max_sequence_length,
        device=torch.device("cpu"),
    )


def three_and_one():
    return make_batch([allocated(group("a", 20, num_sequences=3), 4, 0, 6), allocated(group("b", 18), 2)], 128, 16)


def test_segments_are_side_by_side_in_whole_steps() -> None:
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
    assert [[one.slot for one in s.allocations] for s in batch.segments] == [[4, 0, 6], [4], [0], [6], [2]]
    assert [s.allocations[0].slot for s in batch.endings] == [4, 0, 6, 2]
    assert [one.sample.id for one in batch.sequences] == ["a", "a", "a", "b"]


def test_a_batch_larger_than_a_prefill_has_its_own_size() -> None:
    assert make_batch([allocated(group("a", 200), 0)], 128, 16).num_padded_tokens == 208


def test_pairs_are_what_a_loop_counts() -> None:
    batch = three_and_one()
    assert batch.num_tokens == 20 + 3 + 18
    assert batch.num_attention_pairs == sum(range(1, 21)) + 3 * 21 + sum(range(1, 19))


def test_a_layout_has_positions_blocks_and_the_tokens_that_others_follow() -> None:
    batch = three_and_one()
    found = laid_out(batch, 24)
    assert found.positions[:32].tolist() == [*range(24), *[23] * 8]
    assert found.positions[32:48].tolist() == [20, 21, 22, *[23] * 13]
    assert found.sampled.tolist() == [32, 48, 64, 97, *[0] * 12]
    assert found.continuing is not None
    assert (found.continuing.firsts.tolist(), found.continuing.tables.tolist()) == ([32, 48, 64], [[14], [10], [16]])
    assert (found.continuing.positions.tolist(), found.continuing.width) == ([20, 20, 20], 16)
    assert (found.sampled_blocks.firsts.tolist(), found.sampled_blocks.positions.tolist()) == (
        [0, 1, 2, 3],
        [20, 20, 20, 17],
    )
    assert found.sampled_blocks.tables.tolist() == [[14], [10], [16], [12]]


def test_every_token_goes_to_the_entry_of_its_position_in_the_pages_of_each_row_that_has_it() -> None:
    batch = make_batch([allocated(group("a", 70, num_sequences=2), 3, 0, pages=2)], 128, 16)
    found = laid_out(batch, 100).moves
    shared = [16 * PAGE + i if i < PAGE else 17 * PAGE + i - PAGE for i in range(70)]
    others = [entry - 6 * PAGE for entry in shared]
    assert found.sources.tolist() == [*range(70), *range(70), 80, 96]
    assert found.targets.tolist() == [*shared, *others, 17 * PAGE + 6, 11 * PAGE + 6]


def test_behind_a_prefix_the_other_tokens_have_the_positions_of_their_prompts() -> None:
    """The suffixes of a group continue what it shares: they alone read their pages in blocks."""
    one = allocated(group("a", 40, num_common=32), 1)
    three = allocated(group("b", 50, num_sequences=3, num_common=32), 4, 0, 6)
    batch = make_batch([one, three], 128, 16)
    assert [(s.first, s.width, len(s.prefix), s.start, s.end) for s in batch.segments] == [
        (0, 16, 32, 32, 40),
        (16, 32, 32, 32, 50),
        (48, 16, 0, 50, 51),
        (64, 16, 0, 50, 51),
        (80, 16, 0, 50, 51),
    ]
    assert (one.num_padded_tokens(16), three.num_padded_tokens(16)) == (16, 32 + 3 * 16)
    assert (batch.num_tokens, batch.num_prefix_tokens) == (8 + 18 + 3, 64)
    assert batch.num_attention_pairs == sum(range(33, 41)) + sum(range(33, 51)) + 3 * 51
    found = laid_out(batch, 64)
    assert found.positions[:16].tolist() == [*range(32, 48)]
    assert found.continuing is not None
    assert found.continuing.firsts.tolist() == [48, 64, 80]
    assert found.sampled_blocks.positions.tolist() == [39, 50, 50, 50]
