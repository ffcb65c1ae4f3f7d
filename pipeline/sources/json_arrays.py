"""JSON arrays: one list of objects a file, as LLaVA's training data is published; read object by object."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO

import numpy as np

from pipeline.sources.columns import Columns
from pipeline.sources.convention import CONVENTION, Convention
from pipeline.sources.json_lines import JsonLines, object_in
from pipeline.sources.lines import BOM
from pipeline.sources.records import LONGEST_ROW, LOOKED_AT, BadFile, Indexed, Record, good, schema_of
from pipeline.sources.source import RowIndex, RowRange
from schemas.errors import Failure

_BLOCK_BYTES = 2**20
_BETWEEN = ", \t\r\n"


@dataclass(frozen=True, slots=True)
class JsonArrays:
    """Files with a list of objects, or with an object in every line under a name that ends like theirs."""

    name: str = "JSON"
    convention: Convention = CONVENTION

    def index(self, file: IO[bytes], limit: int | None) -> Indexed:
        """Find the objects; what the first of them hold are the columns."""
        if not _is_array(file):
            try:
                return JsonLines().index(file, limit)
            except BadFile as error:
                raise BadFile(f"it must be a list of objects, or have an object in every line; {error}") from error
        elements = _Elements(file)
        offsets = [offset for offset, _ in islice(elements, limit)]
        end = elements.position + elements.done
        if limit is None or len(offsets) < limit:
            elements.check_end()
        file.seek(offsets[0] if offsets else 0)
        first = RowRange(url="the file", name="", start=0, num_rows=min(LOOKED_AT, len(offsets)))
        rows = good(self._objects(file, first))
        lines = np.full(len(offsets), -1, np.int64)  # rows are not in lines of their own
        return Indexed(index=RowIndex(offsets=np.array([*offsets, end], np.int64), lines=lines), schema=schema_of(rows))

    def records(self, file: IO[bytes], row_range: RowRange, columns: Columns) -> Iterator[Record | Failure]:
        """Yield the objects."""
        return self._objects(file, row_range) if row_range.line < 0 else JsonLines().records(file, row_range, columns)

    def _objects(self, file: IO[bytes], row_range: RowRange) -> Iterator[Record | Failure]:
        try:
            for number, (_, text) in enumerate(islice(_Elements(file, inside=True), row_range.num_rows)):
                yield object_in(text, f"object {row_range.start + number + 1} of {row_range.url}")
        except BadFile as error:
            raise OSError(str(error)) from None


def _is_array(file: IO[bytes]) -> bool:
    """Return whether a file begins like a list, and leave it at its beginning."""
    begin = file.read(_BLOCK_BYTES).removeprefix(BOM).lstrip()
    file.seek(0)
    if not begin:
        raise BadFile("it has nothing in it")
    return begin.startswith(b"[")


@dataclass(slots=True)
class _Elements:
    """Iterates over the elements of a list with the byte at which each begins, and its bytes.

    JSON's marks are ASCII, so that bytes can be looked at as if they were letters of Latin 1, one each.
    """

    file: IO[bytes]
    inside: bool = False  # the file is at an element, not before the list
    position: int = 0  # of the buffer's first letter
    text: str = ""
    done: int = 0  # letters of the buffer
    decoder: json.JSONDecoder = field(default_factory=json.JSONDecoder)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        if not self.inside:
            self._more()
            self._drop(self.text.index("[") + 1)
        while self._skip() != "]":
            stop = self._end()
            yield self.position + self.done, self.text[self.done : stop].encode("latin-1")
            self._drop(stop)

    def check_end(self) -> None:
        """Raise BadFile where something follows behind the list's end, at which the file is."""
        rest = self.text[self.done + 1 :]
        while not (found := rest.strip()) and (block := self.file.read(_BLOCK_BYTES)):
            rest = block.decode("latin-1")
        if found:
            raise BadFile("something follows behind the list's end, maybe another one: give each a file of its own")

    def _more(self, size: int = _BLOCK_BYTES) -> bool:
        block = self.file.read(size)
        self.text += block.decode("latin-1")
        return bool(block)

    def _drop(self, stop: int) -> None:
        self.done = stop
        if stop > _BLOCK_BYTES:
            self.position, self.text, self.done = self.position + stop, self.text[stop:], 0

    def _skip(self) -> str:
        """Go to the next element or the list's end, and return its first letter; raise BadFile where the file ends."""
        while True:
            while self.done < len(self.text) and self.text[self.done] in _BETWEEN:
                self.done += 1
            if self.done < len(self.text):
                return self.text[self.done]
            if not self._more():
                raise BadFile(f"the list must end with ], the file ends at byte {self.position + self.done}")

    def _end(self) -> int:
        """Return where the element at hand ends."""
        size = _BLOCK_BYTES
        while True:
            try:
                _, stop = self.decoder.raw_decode(self.text, self.done)
                if stop < len(self.text) or not self._more():
                    return stop
            except RecursionError as error:
                raise BadFile(f"the object at byte {self.position + self.done} is nested too deep") from error
            except ValueError as error:
                if len(self.text) - self.done > LONGEST_ROW or not self._more(size):
                    raise BadFile(f"the object at byte {self.position + self.done} is no JSON: {error}") from error
                size *= 2
