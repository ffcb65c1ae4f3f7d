"""Streams: the bytes of a range of a file, of one that is compressed as well.

A compressed file can only be read forwards. The last one read stays open where it was left, so that a process that
reads range after range decompresses it once.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO, cast

import pyarrow as pa

from pipeline.storage import filesystem as fs

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_CODECS = {**COMPRESSED, ".tgz": "gzip"}
_BUFFER_BYTES = 2**20


class Stream(io.RawIOBase):
    """Reads a file's (decompressed) bytes; goes back in a compressed one by beginning again."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self._codec = codec_of(url)
        self._position = 0
        self._file, self._data = self._open()

    def _open(self) -> tuple[IO[bytes], IO[bytes]]:
        file = fs.open_url(self.url)
        return file, file if self._codec is None else cast(IO[bytes], pa.CompressedInputStream(file, self._codec))

    def readinto(self, buffer: object, /) -> int:
        done = cast(io.RawIOBase, self._data).readinto(cast(bytearray, buffer)) or 0
        self._position += done
        return done

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only positions from the beginning")
        if self._codec is None:
            self._data.seek(offset)
            self._position = offset
            return offset
        if offset < self._position:
            self._file.close()
            self._position = 0
            self._file, self._data = self._open()
        while self._position < offset:
            skipped = len(self._data.read(min(_BUFFER_BYTES, offset - self._position)))
            if not skipped:
                break
            self._position += skipped
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def codec_of(url: str) -> str | None:
    """Return how a file is compressed by its name: gzip, zstd or not at all."""
    return next((codec for suffix, codec in _CODECS.items() if url.lower().endswith(suffix)), None)


@contextmanager
def opened(url: str, offset: int = 0) -> Iterator[IO[bytes]]:
    """Open a file at this byte of its content. Reads raise OSError where it is damaged."""
    stream = _kept().pop(url, None) or Stream(url)
    try:
        stream.seek(offset)
        reader = io.BufferedReader(stream, _BUFFER_BYTES)
        try:
            yield reader
        finally:
            reader.detach()
    except BaseException:
        stream.close()
        raise
    if codec_of(url) is None:
        stream.close()
        return
    kept = _kept()
    while kept:
        kept.popitem()[1].close()
    kept[url] = stream


@cache
def _kept() -> dict[str, Stream]:
    """Return the compressed file that this process has read last."""
    return {}
