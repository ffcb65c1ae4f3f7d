"""Formats: which files are of which, and the one that an input has."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.sources.convention import NAMES, Convention
from pipeline.sources.finding import Found, LeftOut
from pipeline.sources.image_files import FILE_SUFFIXES, ImageFiles
from pipeline.sources.json_arrays import JsonArrays
from pipeline.sources.json_lines import JsonLines
from pipeline.sources.lance import SUFFIX, LanceTables
from pipeline.sources.parquet import PARQUET_SUFFIXES, Parquet, Table
from pipeline.sources.path_lists import PathLists
from pipeline.sources.records import Records
from pipeline.sources.saved_datasets import SUFFIX as SAVED
from pipeline.sources.saved_datasets import SavedDatasets
from pipeline.sources.separated import SeparatedValues
from pipeline.sources.source import Source
from pipeline.sources.streams import COMPRESSED
from pipeline.sources.webdataset import WebDataset
from pipeline.storage.filesystem import FileInfo
from schemas.errors import Refused
from schemas.wording import printable

# Of images that a table beside them names, as Hugging Face's folders of images have it.
_OF_FOLDERS = Convention(image=(("file_name", "file_names"), NAMES["image"]), id=(NAMES["id"], ("file_name",)))
_METADATA = "metadata"  # the name of such a table, without what tells its format


def _also_compressed(*suffixes: str) -> tuple[str, ...]:
    return (*suffixes, *(suffix + more for suffix in suffixes for more in COMPRESSED))


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Names of files, and the source that reads them.

    Files of a text format are input where nothing else is beside them; `named` ones only where the user names them.
    """

    suffixes: tuple[str, ...]
    source: Source
    of_folders: Source | None = None  # what reads a table of the images beside it
    is_text: bool = False
    named: bool = False
    by_log: bool = False  # what its files are called says nothing: the log of a table names them


SHARDS = (*_also_compressed(".tar"), ".tgz")
FORMATS = (
    Format(suffixes=PARQUET_SUFFIXES, source=Parquet(), of_folders=Parquet(convention=_OF_FOLDERS)),
    Format(suffixes=FILE_SUFFIXES, source=ImageFiles()),
    Format(suffixes=(SAVED,), source=SavedDatasets()),
    Format(suffixes=SHARDS, source=Records(WebDataset())),
    Format(
        suffixes=_also_compressed(".jsonl", ".ndjson", ".jsonlines"),
        source=Records(JsonLines()),
        of_folders=Records(JsonLines(convention=_OF_FOLDERS)),
        is_text=True,
    ),
    Format(
        suffixes=_also_compressed(".csv"),
        source=Records(SeparatedValues("CSV", ",")),
        of_folders=Records(SeparatedValues("CSV", ",", _OF_FOLDERS)),
        is_text=True,
    ),
    Format(suffixes=_also_compressed(".tsv"), source=Records(SeparatedValues("TSV", "\t")), is_text=True),
    Format(suffixes=_also_compressed(".json"), source=Records(JsonArrays()), is_text=True, named=True),
    Format(suffixes=_also_compressed(".txt", ".lst"), source=Records(PathLists()), is_text=True, named=True),
    Format(suffixes=(SUFFIX,), source=LanceTables(), by_log=True),
)
SUFFIXES = tuple(suffix for format in FORMATS if not format.by_log for suffix in format.suffixes)
KINDS = "Parquet, Arrow, image, PDF, tar, JSON lines, CSV or TSV file"


def format_of(url: str) -> Format:
    """Return the format of a file that has one, by its name."""
    return next(format for format in FORMATS if url.lower().endswith(format.suffixes))


def of_one_input(found: Found) -> Found:
    """Return what one name stands for without what is there beside the input itself, which is counted."""
    files = _without_tables_of_shards(found.files, found.left_out)
    tables = [file for file in files if _is_metadata(file.url)]
    if tables and any(file.url.lower().endswith(FILE_SUFFIXES) for file in files):
        kept: Iterable[FileInfo] = tables
        why = "beside the metadata files that name the images"
    elif any(not format_of(file.url).is_text for file in files):
        kept = [file for file in files if not format_of(file.url).is_text]
        why = "of text beside the input"
    else:
        kept = [file for file in files if not (found.is_folder and format_of(file.url).named)]
        why = "that are input only where they are named"
    urls = {file.url for file in kept}
    for file in files:
        if file.url not in urls:
            found.left_out.add(why, file.url.rsplit("/", 1)[1])
    return replace(found, files=tuple(file for file in files if file.url in urls))


def _without_tables_of_shards(files: Sequence[FileInfo], left_out: LeftOut) -> list[FileInfo]:
    """Drop the Parquet files that img2dataset writes beside its shards, one of the same name for each."""
    shards = {_stem(file.url) for file in files if file.url.lower().endswith(SHARDS)}
    kept = []
    for file in files:
        if file.url.lower().endswith(PARQUET_SUFFIXES) and _stem(file.url) in shards:
            left_out.add("tables of the shards beside them", file.url.rsplit("/", 1)[1])
        else:
            kept.append(file)
    return kept


def _stem(url: str) -> str:
    folder, _, name = url.rpartition("/")
    return f"{folder}/{name.split('.')[0]}"


def _is_metadata(url: str) -> bool:
    return format_of(url).of_folders is not None and url.rsplit("/", 1)[1].split(".")[0] == _METADATA


def source_of(found: Sequence[Found]) -> Source:
    """Return the source of the one format that all inputs have; raise Refused where there are two."""
    files = [file for one in found for file in one.files]
    first: Mapping[str, str] = {format_of(file.url).source.name: file.url for file in reversed(files)}
    if len(first) > 1:
        (one, here), (other, there), *_ = sorted(first.items())
        raise Refused(
            f"--input must be files of one format, not both {one} and {other}, got {printable(here)} and "
            f"{printable(there)}; name one kind by a glob, as in --input 'folder/*.parquet'"
        )
    format = format_of(files[0].url)
    tables = tuple(Table(root=one.root, schema=one.schema) for one in found if one.schema is not None)
    if tables and isinstance(format.source, Parquet):
        return replace(format.source, tables=tables)
    if format.of_folders is not None and all(_is_metadata(file.url) for file in files):
        return format.of_folders
    return format.source
