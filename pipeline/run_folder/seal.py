"""Seal: a Parquet file that carries the SHA-256 of its own bytes, so that one flipped bit anywhere is found.

Parquet's page checksums cover pages and nothing else: a bit of the footer can rename a column or make its numbers
others. The seal is an entry of the footer's key-value metadata, where any reader passes over it. Its digest is taken
over the whole file with 64 zeros instead of the digest.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

KEY = "llava_batch_seal"
_MARK = b"llava_batch_sha256:"  # before the digest; nothing else in the footer holds it
_DIGEST_CHARS = 64
_UNSEALED = b"0" * _DIGEST_CHARS
_FOOTER_BYTES = 8  # the footer's length and Parquet's magic, the end of every file


class BrokenSeal(ValueError):
    """The bytes are not those that were sealed."""


def write_sealed(tables: Iterable[pa.Table], schema: pa.Schema, marks: Mapping[str, str] | None = None) -> bytes:
    """Return one sealed Parquet file of these tables, a row group each: zstd, page checksums.

    `marks` are further entries of the footer's metadata.
    """
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata({**(marks or {}), KEY: (_MARK + _UNSEALED).decode()})
    data = buffer.getvalue()
    at = _digest_at(data)
    assert at is not None
    assert data[at : at + _DIGEST_CHARS] == _UNSEALED
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + _DIGEST_CHARS :]


def is_sealed(data: bytes) -> bool:
    """Return whether the bytes have a seal, whole or broken."""
    return _digest_at(data) is not None


def check_seal(data: bytes) -> None:
    """Raise BrokenSeal where a bit of the file is not as it was written, or where it has no seal."""
    at = _digest_at(data)
    if at is None:
        raise BrokenSeal("it has no seal")
    digest = hashlib.sha256(data[:at])
    digest.update(_UNSEALED)
    digest.update(data[at + _DIGEST_CHARS :])
    if digest.hexdigest().encode() != data[at : at + _DIGEST_CHARS]:
        raise BrokenSeal("its bytes are not those that were written")


def marks_of(data: bytes) -> dict[str, str]:
    """Return the entries of a Parquet file's footer; the first release kept its own with the schema."""
    found = dict(pq.read_schema(pa.BufferReader(data)).metadata or {})
    found |= pq.read_metadata(pa.BufferReader(data)).metadata or {}
    return {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in found.items()}


def _digest_at(data: bytes) -> int | None:
    """Return where the digest begins; None where there is none in the footer."""
    footer = int.from_bytes(data[-_FOOTER_BYTES:-4], "little") + _FOOTER_BYTES
    found = data.rfind(_MARK, max(0, len(data) - footer))
    return None if found < 0 else found + len(_MARK)
