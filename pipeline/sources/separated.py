"""Separated values: CSV and TSV with a header, by the standard library's reader. Values are text, an empty one is null.

An image may be a path, a URL, or its bytes in base64; as VLMEvalKit's files have it, also the `index` of another row
that has the image.
"""

import base64
import binascii
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import IO

import numpy as np
import pyarrow as pa

from pipeline.sources.arrow_types import looks_like_base64
from pipeline.sources.columns import Columns
from pipeline.sources.convention import NAMES, Convention
from pipeline.sources.lines import BOM
from pipeline.sources.records import LONGEST_ROW, BadFile, Indexed, Record
from pipeline.sources.source import RowIndex, RowRange
from pipeline.sources.streams import opened
from schemas.errors import Failure

_INDEX = "index"
_OTHER_ROW = re.compile(r"[0-9]{1,18}")
# Several images in one cell, as VLMEvalKit's files have them: ['one', 'two'].
_ITEM = re.compile(r"'[^'\\]*+'|\"[^\"\\]*+\"")
_LIST = re.compile(rf"\[\s*(?:{_ITEM.pattern})(?:\s*,\s*(?:{_ITEM.pattern}))*\s*\]")
_CONVENTION = Convention(id=(NAMES["id"], (_INDEX,)))  # VLMEvalKit's rows have an index


@dataclass(frozen=True, slots=True)
class SeparatedValues:
    """Files of one separator."""

    name: str
    delimiter: str
    convention: Convention = _CONVENTION

    def index(self, file: IO[bytes], limit: int | None) -> Indexed:
        """Find the rows behind the header; a value in quotes may go over several lines."""
        lines = _Lines(file)
        rows = _rows(lines, self.delimiter)
        header = next(rows, None)
        if header is None:
            raise BadFile("it must have a header, it has nothing in it")
        offsets, numbers = [], []
        offset, number = lines.offset, lines.number
        for row in rows:
            if row:
                offsets.append(offset)
                numbers.append(number)
                if len(offsets) == limit:
                    break
            offset, number = lines.offset, lines.number
        index = RowIndex(offsets=np.array([*offsets, lines.offset], np.int64), lines=np.array(numbers, np.int64))
        return Indexed(index=index, schema=pa.schema([(name, pa.string()) for name in _names(header)]))

    def records(self, file: IO[bytes], row_range: RowRange, columns: Columns) -> Iterator[Record | Failure]:
        """Yield the rows by the header's names."""
        header, image = _header(row_range.url, self.delimiter), columns.image_alone()
        table = _Table(url=row_range.url, delimiter=self.delimiter, header=header)
        lines = _Lines(file, number=row_range.line)
        rows = (row for row in _rows(lines, self.delimiter) if row)
        for row in islice(rows, row_range.num_rows):
            record = _record(row, header, image, f"line {lines.number} of {row_range.url}")
            yield table.with_image_of_other_row(record, image)


@dataclass(slots=True)
class _Lines:
    """Iterates over lines as text of Latin 1, a letter a byte, and knows how far it has come."""

    file: IO[bytes]
    offset: int = 0
    number: int = 0
    ended: bool = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.file.readline(LONGEST_ROW + 1)
        if not line:
            self.ended = True
            raise StopIteration
        if len(line) > LONGEST_ROW:
            raise OSError(f"a line must have at most {LONGEST_ROW:,} bytes, line {self.number + 1} has more")
        text = (line if self.offset else line.removeprefix(BOM)).decode("latin-1")
        self.offset += len(line)
        self.number += 1
        return f"{text[:-2]}\n" if text.endswith("\r\n") else text


def _rows(lines: _Lines, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(LONGEST_ROW)
    begun = lines.number + 1
    try:
        for row in csv.reader(lines, delimiter=delimiter):
            if lines.ended:  # within the row, which the reader takes for whole
                raise OSError(
                    f"a quote that is opened in the row of line {begun} must be closed, it is open at the end"
                )
            yield row
            begun = lines.number + 1
    except csv.Error as error:
        raise OSError(f"line {lines.number}: {error}") from error


@lru_cache(64)
def _header(url: str, delimiter: str) -> tuple[str, ...]:
    """Return the names in the first line of a file, read once for all of its units."""
    with opened(url) as file:
        return _names(next(_rows(_Lines(file), delimiter)))


def _names(header: list[str]) -> tuple[str, ...]:
    try:
        return tuple(map(_utf_8, header))
    except UnicodeDecodeError as error:
        raise BadFile(f"its header must be UTF-8 text: {error}") from error


def _utf_8(text: str) -> str:
    return text.encode("latin-1").decode()


def _record(row: list[str], header: tuple[str, ...], image: str | None, where: str) -> Record | Failure:
    if len(row) != len(header):
        message = (
            f"the row that ends in {where} must have {len(header)} values as the header has, it has {len(row)}: "
            "is a quote left open before it?"
        )
        return Failure(stage="read", type="InvalidRow", message=message)
    try:
        values: dict[str, object] = {name: _utf_8(text) or None for name, text in zip(header, row, strict=True)}
    except UnicodeDecodeError as error:
        message = f"the row that ends in {where} must be UTF-8 text: {error}; write it anew"
        return Failure(stage="read", type="InvalidText", message=message)
    text = values.get(image) if image else None
    if isinstance(text, str):
        try:
            values[str(image)] = _images(text)
        except binascii.Error as error:
            message = f"{image!r} of the row that ends in {where} must be valid base64: {error}"
            return Failure(stage="read", type="InvalidValue", message=message)
    return values


def _images(text: str) -> object:
    """Return the image that a cell holds or names, a list of those of one that has several."""
    if _LIST.fullmatch(text):
        return [_image(one[1:-1]) for one in _ITEM.findall(text)]
    return _image(text)


def _image(text: str) -> object:
    return {"bytes": base64.b64decode(text), "path": None} if looks_like_base64(text) else text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A file of which another row's image may be wanted."""

    url: str
    delimiter: str
    header: tuple[str, ...]

    def with_image_of_other_row(self, record: Record | Failure, image: str | None) -> Record | Failure:
        """Return the record with the image of the row whose index stands in the image's place."""
        if image is None or isinstance(record, Failure) or _INDEX not in self.header:
            return record
        text = record.get(image)
        if not isinstance(text, str) or _OTHER_ROW.fullmatch(text) is None:
            return record
        offset = _pictures(self, image).get(text)
        if offset is None:  # a file may be called so
            return record
        with opened(self.url, offset) as file:
            other = _record(next(_rows(_Lines(file), self.delimiter)), self.header, image, f"row {text} of {self.url}")
        return other if isinstance(other, Failure) else {**record, image: other[image]}


@lru_cache(8)
def _pictures(table: _Table, image: str) -> dict[str, int]:
    """Return where the rows are that have an image of their own, by their index; looked for once a process."""
    index, at = table.header.index(_INDEX), table.header.index(image)
    found: dict[str, int] = {}
    with opened(table.url) as file:
        lines = _Lines(file)
        rows = _rows(lines, table.delimiter)
        next(rows)
        offset = lines.offset
        for row in rows:
            if len(row) == len(table.header) and (looks_like_base64(row[at]) or _LIST.fullmatch(row[at])):
                found.setdefault(row[index], offset)
            offset = lines.offset
    return found
