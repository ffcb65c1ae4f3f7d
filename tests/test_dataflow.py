"""A work unit as one row: nothing that Ray does with rows and blocks can take it apart."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.work import UNIT_SCHEMA, pack, unpack
from schemas.sample import Prompt, Sample, Size, samples_to_table, table_to_samples


def a_unit(rows: int = 3) -> pa.Table:
    tiles = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8)
    prompt = Prompt(id="p", text="q", token_ids=np.arange(1, 5, dtype=np.int32))
    sample = Sample(id="s", prompts=(prompt,), image_sizes=(Size(9, 9),), tiles_per_image=(5,), tiles=tiles)
    return samples_to_table([sample] * rows).append_column("keep:n", pa.array(range(rows)))


def test_a_unit_comes_out_as_it_went_in() -> None:
    batch = pack(7, a_unit())
    assert batch.schema == UNIT_SCHEMA
    assert unpack(batch) == (7, a_unit())


def test_a_unit_is_unpacked_without_a_copy_of_its_pixels() -> None:
    batch = pack(0, a_unit())
    payload = batch.column("payload").chunk(0).buffers()[2]
    tiles = table_to_samples(unpack(batch)[1])[0].tiles
    address = tiles.__array_interface__["data"][0]
    assert payload.address <= address < payload.address + payload.size


def test_a_unit_is_found_behind_others_in_its_block() -> None:
    block = pa.concat_tables([pack(1, a_unit(1)), pack(2, a_unit(2))]).combine_chunks()
    assert [unpack(block.slice(i, 1))[0] for i in range(2)] == [1, 2]
    assert unpack(block.slice(1, 1))[1] == a_unit(2)


def test_two_units_in_a_batch_are_a_bug_and_end_the_run() -> None:
    with pytest.raises(RuntimeError, match="a batch must be one work unit, got 2"):
        unpack(pa.concat_tables([pack(1, a_unit()), pack(2, a_unit())]))
