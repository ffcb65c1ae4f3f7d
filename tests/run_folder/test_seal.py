"""A sealed file tells every single bit that is not as it was written."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.run_folder.seal import BrokenSeal, check_seal, is_sealed, write_sealed

TABLE = pa.table({"id": [f"row-{i}" for i in range(40)], "number": list(range(40))})


def sealed() -> bytes:
    return write_sealed([TABLE.slice(0, 15), TABLE.slice(15)], TABLE.schema, {"run": "mine"})


def test_a_sealed_file_is_a_parquet_file_like_any_other() -> None:
    data = sealed()
    check_seal(data)
    assert pq.read_table(pa.BufferReader(data)).equals(TABLE)
    assert pq.read_metadata(pa.BufferReader(data)).metadata[b"run"] == b"mine"


def test_the_same_rows_give_the_same_bytes() -> None:
    assert sealed() == sealed()


def test_every_flipped_bit_breaks_the_seal() -> None:
    data = sealed()
    silent = []
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            try:
                check_seal(bytes(damaged))
            except BrokenSeal:
                continue
            silent.append((place, bit))
    assert silent == []


@pytest.mark.parametrize("cut", [0, 1, 8, 100, -1])
def test_a_file_that_was_broken_off_has_no_whole_seal(cut: int) -> None:
    with pytest.raises(BrokenSeal):
        check_seal(sealed()[:cut])


def test_a_file_of_another_writer_has_no_seal() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(TABLE, sink)
    data = sink.getvalue().to_pybytes()
    assert not is_sealed(data)
    with pytest.raises(BrokenSeal, match="no seal"):
        check_seal(data)
