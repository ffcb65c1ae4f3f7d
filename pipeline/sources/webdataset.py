"""WebDataset: tar files whose members of one name before the first dot are a sample.

A sample's image members are its images, in the archive's order; text members are columns called after their suffix, the
fields of its `.json` member columns of their own names.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any, Literal, cast

import numpy as np
import pyarrow as pa

from pipeline.sources.columns import Columns
from pipeline.sources.convention import NAMES, Convention
from pipeline.sources.image_files import IMAGE_SUFFIXES
from pipeline.sources.json_lines import value_of
from pipeline.sources.records import FAILURE, LONGEST_ROW, LOOKED_AT, BadFile, Indexed, Record, schema_of
from pipeline.sources.source import RowIndex, RowRange
from schemas.errors import Failure
from schemas.wording import printable, shortened

KEY, IMAGES = "__key__", "images"
_CONVENTION = Convention(image=((IMAGES,),), id=((KEY,), NAMES["id"]))
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # its key and its suffix
_TEXTS = ("txt", "text", "caption", "cls", "json")
_BUFFER_BYTES = 2**20
_AT_ONCE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class WebDataset:
    """Shards."""

    at_once_bytes: int = _AT_ONCE_BYTES  # of a range that is read as a whole, which takes half the time
    name: str = "WebDataset"
    convention: Convention = _CONVENTION

    def index(self, file: IO[bytes], limit: int | None) -> Indexed:
        """Find the samples by the headers of their members; the first ones say which columns there are."""
        offsets: list[int] = []
        suffixes: dict[str, None] = {}
        looked_at: list[Record] = []
        end, last = 0, None
        with _archive(file) as archive:
            for key, suffix, member in _members(archive):
                if key != last:
                    if len(offsets) == limit:
                        end = member.offset
                        break
                    offsets.append(member.offset)
                    last = key
                suffixes[suffix] = None
                if suffix == "json" and len(offsets) <= LOOKED_AT and member.isfile() and member.size <= LONGEST_ROW:
                    looked_at.append(_fields(_content(archive, member)))
            else:
                end = archive.offset
                _check_end(archive)
        lines = np.zeros(len(offsets), np.int64)
        index = RowIndex(offsets=np.array([*offsets, end], np.int64), lines=lines)
        return Indexed(index=index, schema=_schema(suffixes, looked_at))

    def records(self, file: IO[bytes], row_range: RowRange, columns: Columns) -> Iterator[Record | Failure]:
        """Yield the samples of the range, with the members that are used alone."""
        wanted = _Wanted.of(columns)
        try:
            with _archive(_part_of(file, row_range, self.at_once_bytes)) as archive:
                for key, own in groupby(_members(archive), key=lambda one: one[0]):
                    yield _sample(archive, key, own, wanted, row_range)
        except BadFile as error:
            raise OSError(str(error)) from None


class _Member(tarfile.TarInfo):
    """A header; one that is damaged is an error, where tarfile would take it for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        """Read a header of 512 bytes. What tarfile reads at once, as a long name, must be short."""
        member = super().frombuf(buf, encoding, errors)
        return member.checked(_MOST_EXTENDED_BYTES if member.type in _EXTENDED else _MOST_BYTES)

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Member":
        """Read the next header, with those that extend it."""
        try:
            return super().fromtarfile(archive).checked(_MOST_BYTES)
        except tarfile.HeaderError as error:
            if type(error).__name__ in _ENDS:
                raise
            raise BadFile(f"the archive is damaged at byte {archive.offset} ({error})") from error
        except (ValueError, OverflowError) as error:  # whose text may have any bytes of the file
            raise BadFile(f"the archive is damaged at byte {archive.offset} (no number where one must be)") from error

    def checked(self, most: int) -> "_Member":
        """Return the header if it can be that of a member: tarfile would read for ever where its end lies before it."""
        if not 0 <= self.size <= most:
            raise tarfile.HeaderError(
                f"a member must have 0 to {most:,} bytes, {printable(self.name)} has {self.size:,}"
            )
        return self


_ENDS = ("EOFHeaderError", "EmptyHeaderError")  # which tarfile does not export
_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MOST_BYTES, _MOST_EXTENDED_BYTES = 2**40, 2**20


@dataclass(slots=True)
class _Part:
    """Reads so many bytes of a file as if they were all of it."""

    file: IO[bytes]
    left: int

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, none where the part ends."""
        data = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        return data


def _part_of(file: IO[bytes], row_range: RowRange, most: int) -> "_Part | io.BytesIO":
    """Return the bytes of a range: all in memory, but as they are read where they are many or some cannot be read."""
    if row_range.num_bytes <= most:
        try:
            return io.BytesIO(file.read(row_range.num_bytes))
        except OSError:
            file.seek(row_range.offset)
    return _Part(file, row_range.num_bytes)


@contextmanager
def _archive(file: "IO[bytes] | _Part | io.BytesIO") -> Iterator[tarfile.TarFile]:
    """Open an archive, one that is no memory to be read forwards; raise BadFile where it is none or ends too early."""
    source, mode = cast(IO[bytes], file), cast(Literal["r:"], "r:" if isinstance(file, io.BytesIO) else "r|")
    try:
        with tarfile.open(fileobj=source, mode=mode, bufsize=_BUFFER_BYTES, tarinfo=_Member) as archive:
            yield archive
    except tarfile.TarError as error:
        raise BadFile(f"the archive ends too early or is damaged: {error}") from error


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise BadFile for bytes behind an archive's end, which may be another archive with rows of its own."""
    rest = cast(IO[bytes], archive.fileobj)
    while more := rest.read(_BUFFER_BYTES):
        if more.strip(b"\0"):
            raise BadFile("something follows behind the archive's end, maybe another one: give each a file of its own")


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield the key, the suffix and the header of every member that belongs to a sample, also where it is a link."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header that it has read
        if (named := _named(member)) is not None:
            yield *named, member


def _named(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Return the key and the suffix of a member that belongs to a sample."""
    found = None if member.isdir() else _MEMBER.fullmatch(member.name.removeprefix("./"))
    return (found[1], found[2].lower()) if found else None


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.issparse():
        opened = archive.extractfile(member)
        assert opened is not None  # it is a file
        data = opened.read()
    else:
        source = cast(IO[bytes], archive.fileobj)
        source.seek(member.offset_data)
        data = source.read(member.size)
    if len(data) < member.size:
        raise BadFile(
            f"the archive ends in {printable(member.name)}, of which {len(data)} of {member.size} bytes are there"
        )
    return data


def _fields(data: bytes) -> Record:
    """Return the fields of a `.json` member, none where it is no object: its row will say so."""
    try:
        value = value_of(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_image(suffix: str) -> bool:
    return f".{suffix}".endswith(IMAGE_SUFFIXES)


def _is_text(suffix: str) -> bool:
    return suffix.rsplit(".", 1)[-1] in _TEXTS


def _schema(suffixes: dict[str, None], looked_at: list[Record]) -> pa.Schema:
    """Return the columns: key, images, members by suffix, fields of JSON of which no member has the name."""
    columns = {KEY: pa.string(), IMAGES: pa.list_(pa.large_binary())}
    known = (suffix for suffix in suffixes if _is_utf_8(suffix))  # of others no column can be named
    columns |= {suffix: pa.string() if _is_text(suffix) else pa.large_binary() for suffix in known}
    fields = schema_of(looked_at)
    return pa.schema([*columns.items(), *((one.name, one.type) for one in fields if one.name not in columns)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """Says which members of a sample are read."""

    names: frozenset[str]
    fields: bool  # of its JSON

    @staticmethod
    def of(columns: Columns) -> "_Wanted":
        """Return what these columns need."""
        names = frozenset(columns.used())
        return _Wanted(names=names, fields=bool(names - {KEY, IMAGES}) or bool(columns.missed))

    def __contains__(self, suffix: str) -> bool:
        return (
            suffix in self.names or (suffix == "json" and self.fields) or (IMAGES in self.names and _is_image(suffix))
        )


def _sample(
    archive: tarfile.TarFile,
    key: str,
    members: Iterator[tuple[str, str, tarfile.TarInfo]],
    wanted: _Wanted,
    row_range: RowRange,
) -> Record:
    where = f"sample {key!r} of {row_range.url}"
    found: dict[str, Any] = {}
    images: list[bytes] = []
    size = 0
    for _, suffix, member in members:
        if suffix in found:
            return _failed(key, "DuplicateMember", f"{where} has two members .{printable(suffix)}")
        if not member.isfile():
            return _failed(key, "NotAFile", f"{where} has .{printable(suffix)} as {_kind_of(member)}")
        size += member.size if suffix in wanted else 0
        if size > LONGEST_ROW:
            return _failed(key, "TooLarge", f"{where} must have at most {LONGEST_ROW:,} bytes, it has more")
        found[suffix] = _content(archive, member) if suffix in wanted else b""
        if _is_image(suffix):
            images.append(found[suffix])
    fields: Record = {}
    if "json" in found and wanted.fields:
        fields = _fields(found["json"])
        if not fields and found["json"].strip() not in (b"{}", b""):
            rule = "must be a JSON object in UTF-8, with no field twice"
            return _failed(key, "InvalidJson", f"the .json member of {where} {rule}")
    return {**fields, **found, KEY: key, IMAGES: images or None}


def _kind_of(member: tarfile.TarInfo) -> str:
    """Return what a member is that has no bytes of its own, for people; links are not followed, wherever they lead."""
    if not (member.issym() or member.islnk()):
        return "a pipe or device: leave it out of the archive"
    to = printable(shortened(member.linkname, _SHOWN))
    return f"a link to {to}: write the archive anew with files in the places of links"


_SHOWN = 60  # letters of a path


def _is_utf_8(text: str) -> bool:
    """Return whether the name of a member, as tarfile reads it, is UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _failed(key: str, type: str, message: str) -> Record:
    return {KEY: key, FAILURE: Failure(stage="read", type=type, message=message)}
