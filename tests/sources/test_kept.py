"""Kept columns of every type that Parquet can hold, from the input to the answers of a run and of its retry."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.execution.work_units import UnitKey, pack, unpack
from pipeline.retry import _replace
from pipeline.run_folder.merge import Units, finish_run
from pipeline.run_folder.units import as_written, read_answers, to_parquet, write_unit
from pipeline.sources.arrow_types import plain
from pipeline.sources.columns import ColumnChoices
from pipeline.sources.kept import can_be_kept, restore, to_travel, travel_field, written_schema
from pipeline.sources.listing import list_input
from pipeline.sources.reader import unit_reader
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from schemas.job import JobSettings
from tests.fakes import load_echo_engine
from tests.inputs import picture
from tests.listings import write
from tests.tiny import checkpoint

LONG = "a text that is too long to lie in the view itself"
ID = UUID(int=7)
WORDS = pa.array([LONG, "short", LONG]).dictionary_encode()
OFFSETS = pa.array([0, 1, 1, 3], pa.int32())
NOT_NULL = pa.struct([pa.field("a", pa.string(), nullable=False)])
KEPT = {
    "string_view": pa.array([LONG, None, "short"], pa.string_view()),
    "binary_view": pa.array([LONG.encode(), None, b""], pa.binary_view()),
    "list<string_view>": pa.array([[LONG, "short"], None, []], pa.list_(pa.string_view())),
    "list_view<string_view>": pa.array([[LONG, "short"], None, []], pa.list_view(pa.string_view())),
    "large_list_view": pa.array([[LONG, None], [], None], pa.large_list_view(pa.string())),
    "fixed_size_list of views": pa.array([["a", LONG], None, [None, "b"]], pa.list_(pa.string_view(), 2)),
    "dictionary": WORDS,
    "dictionary<int8>": WORDS.cast(pa.dictionary(pa.int8(), pa.string())),
    "list<dictionary>": pa.ListArray.from_arrays(OFFSETS, WORDS),
    "struct<dictionary>": pa.StructArray.from_arrays([WORDS, pa.array([1, 2, None])], names=["a", "b"]),
    "map": pa.array([[("a", LONG)], None, []], pa.map_(pa.string(), pa.string_view())),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["[1]", None, "{}"])),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([ID.bytes, None, ID.bytes], pa.binary(16))),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2]), pa.array([[1, 2], [3, 4], None], pa.list_(pa.int32(), 2))
    ),
    "bytes of one length": pa.array([b"abc", None, b"def"], pa.binary(3)),
    "decimal": pa.array([Decimal("1.50"), None, Decimal("-2.25")], pa.decimal256(50, 2)),
    "half": pa.array([1.5, None, -2.0], pa.float16()),
    "time": pa.array([time(1), None, time(2)], pa.time32("ms")),
    "date": pa.array([date(2026, 1, 2), None, date(1900, 1, 1)]),
    "duration": pa.array([timedelta(1), None, timedelta(2)], pa.duration("us")),
    "timestamp": pa.array([datetime(2026, 1, 2, tzinfo=UTC), None, None], pa.timestamp("us", "Europe/Paris")),
    "null": pa.nulls(3),
    "not null inside": pa.array([[{"a": "x"}], [None], None], pa.list_(NOT_NULL)),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The answers of a run of two files and two questions, one of whose rows has a file that is gone by then."""
    folder = tmp_path_factory.mktemp("kept")
    rows = pa.table({"id": ["a", "b", "c"], "image": [picture(1)] * 3, **KEPT})
    for name in "xyz":
        ids = [f"{name}{number}" for number in range(3)]
        write(f"{folder}/in/{name}.parquet", rows.set_column(0, "id", pa.array(ids)))
    listing = list_input([f"{folder}/in"], ColumnChoices(keep=tuple(KEPT), own_prompts=True), unit_rows=4)
    Path(f"{folder}/in/y.parquet").unlink()
    settings = JobSettings(input=("in",), output=str(folder), model=str(checkpoint()), prompt=("Who?", "Where?"))
    preprocess, generate, read = Preprocess(settings), Generate(settings, load_echo_engine), unit_reader(listing)
    for unit in range(listing.num_units):
        samples = unpack(pack(UnitKey(0, unit), preprocess(read(unit))))[1]
        write_unit(str(folder), "run", unit, final_answers(generate(samples)))
    schema = as_written(written_schema((kept.name, kept.type) for kept in listing.columns.keep))
    rows_of = {0: 8, 1: 8, 2: 2}
    units = Units(folder=str(folder), run="run", num_units=3, answers_of=rows_of.__getitem__, schema=schema)
    finish_run(units, "fingerprint", {})
    return pq.read_table(folder / "answers")


@pytest.mark.parametrize("name", KEPT)
def test_a_column_of_any_type_comes_through_unchanged(answers: pa.Table, name: str) -> None:
    values = [value for value in KEPT[name].to_pylist() for _ in range(2)]
    assert answers.column(name).to_pylist() == values + [None] * 6 + values
    assert answers.column(name).type == travel_type(name)
    assert answers.column("error_type").to_pylist() == [None] * 6 + ["FileNotFound"] * 6 + [None] * 6


def travel_type(name: str) -> pa.DataType:
    """The type of the column's answers: its own, but for `not null` inside."""
    return pa.list_(pa.struct([("a", pa.string())])) if name == "not null inside" else KEPT[name].type


@pytest.mark.parametrize("name", KEPT)
def test_a_retried_row_has_its_column_again(answers: pa.Table, name: str) -> None:
    old = to_travel(answers.select(["id", name]))
    new = old.slice(0, 6)
    mixed = read_answers(to_parquet(restore(_replace(old, np.arange(6, 12), new))))
    assert mixed.column(name).to_pylist() == [value for value in KEPT[name].to_pylist() for _ in range(2)] * 3
    assert mixed.schema.field(name).type == answers.schema.field(name).type
    assert mixed.schema.field("id") == answers.schema.field("id")


VIEW = pa.list_view(pa.int8())


@pytest.mark.parametrize(
    "type", [pa.list_(VIEW), pa.struct([("a", VIEW)]), pa.map_(pa.string(), VIEW), pa.list_view(VIEW)]
)
def test_views_of_lists_inside_another_type_are_refused(type: pa.DataType) -> None:
    assert not can_be_kept(type)


@pytest.mark.soak
@pytest.mark.parametrize("type", [pa.string(), pa.list_(pa.string())])
def test_more_than_two_gigabytes_come_through_in_pieces(type: pa.DataType) -> None:
    text = "x" * 2**24
    one = pa.array([text if pa.types.is_string(type) else [text]], type)
    table = pa.table([plain(one).take(pa.array([0] * 130))], schema=pa.schema([travel_field("note", type)]))
    restored = restore(table).column("note")
    assert (restored.type, len(restored), restored.num_chunks) == (type, 130, 2)
    again = read_answers(to_parquet(pa.table({"note": restored}))).column("note")
    assert (len(again), again.chunk(again.num_chunks - 1)[-1].equals(one[0])) == (130, True)
