"""Tiles lie together in memory that is used again once nobody looks at it."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.stages.tile_memory import TileMemory
from schemas.sample import Sample, samples_to_table, table_to_samples
from tests.schemas.test_round_trip import a_sample


def test_tiles_that_lie_together_become_a_table_without_a_copy() -> None:
    buffer, none = TileMemory().buffer(2 * 144), Sample(id="y", prompts=a_sample().prompts)
    samples = [replace(a_sample(), tiles=buffer.put(a_sample().tiles)), none] * 2
    samples[2] = replace(a_sample(), tiles=buffer.put(a_sample().tiles))
    table = samples_to_table(samples)
    assert table["tiles"].chunk(0).buffers()[2].address == samples[0].tiles.__array_interface__["data"][0]
    assert table == samples_to_table([a_sample(), none, a_sample(), none])


@pytest.mark.parametrize(
    "order",
    [
        pytest.param([0, 2], id="one between is missing"),
        pytest.param([1, 0], id="in another order"),
        pytest.param([0, 0], id="twice the same"),
        pytest.param([0, 1, 3], id="one that found no room"),
    ],
)
def test_tiles_that_do_not_lie_together_are_copied(order: list[int]) -> None:
    buffer, samples = TileMemory().buffer(3 * 144), [a_sample() for _ in range(4)]
    samples = [replace(one, id=f"{n}", tiles=one.tiles + n) for n, one in enumerate(samples)]
    put = [replace(one, tiles=buffer.put(one.tiles)) for one in samples]
    assert samples_to_table([put[n] for n in order]) == samples_to_table([samples[n] for n in order])


def test_tiles_that_are_made_in_their_place_are_not_copied() -> None:
    buffer = TileMemory().buffer(2 * 144)
    for level in (1, 2):  # a row that failed puts nothing: its room is the next one's
        buffer.room(a_sample().tiles.shape)[...] = level
    made = [buffer.put(buffer.room(a_sample().tiles.shape))]
    made += [buffer.put(np.full_like(made[0], 3)), buffer.room(made[0].shape)]
    assert [int(tiles[0, 0, 0, 0]) for tiles in made[:2]] == [2, 3]
    assert not np.shares_memory(made[2], made[0].base)


def table_of(memory: TileMemory, level: int) -> pa.Table:
    buffer, tiles = memory.buffer(1000), np.full_like(a_sample().tiles, level)
    return samples_to_table([replace(a_sample(), tiles=buffer.put(tiles))])


def address_of(table: pa.Table) -> int:
    return int(table["tiles"].chunk(0).buffers()[2].address)


def test_memory_is_used_again_once_nobody_looks_at_it() -> None:
    memory = TileMemory()
    first = table_of(memory, 1)
    where, (sample,) = address_of(first), table_to_samples(first)
    del first
    assert address_of(table_of(memory, 2)) != where
    assert (sample.tiles == 1).all()
    del sample
    found = {address_of(table_of(memory, 3)) for _ in range(3)}
    assert where in found


def test_a_larger_unit_gets_larger_memory() -> None:
    memory = TileMemory()
    memory.buffer(10)
    tiles = a_sample().tiles
    assert memory.buffer(tiles.size).put(tiles) is not tiles


def test_a_unit_without_images_needs_no_memory() -> None:
    none = np.zeros((0, 0, 0, 3), np.uint8)
    assert TileMemory().buffer(0).put(none).shape == none.shape
