"""Delta tables: read through their log, at one version, and never as the Parquet files that lie in the folder."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.plan import plan_job
from pipeline.run_folder.run import begin_run
from pipeline.sources.columns import ColumnChoices
from pipeline.sources.delta import needed_of
from pipeline.sources.kept import restore
from pipeline.sources.listing import list_input
from pipeline.sources.versions import at_versions, unversioned
from pipeline.storage import filesystem as fs
from pipeline.verify import verify_run
from schemas.errors import Refused
from schemas.job import JobSettings
from tests.inputs import picture
from tests.listings import CONVENTION, read_all, requests_of, write
from tests.test_verify import run_without_ray
from tests.tiny import checkpoint

deltalake = pytest.importorskip("deltalake", reason="needs deltalake: pip install 'llava-batch[delta]'")
pytest_plugins = ["tests.object_store"]


def rows(numbers: range) -> pa.Table:
    columns = {"id": [str(n) for n in numbers], "image": [picture(n % 4) for n in numbers]}
    return pa.table({**columns, "year": [2025 + n % 2 for n in numbers]})


def table_in(folder: Path) -> str:
    """A table of three versions: four rows, six, and these without two of them."""
    place = str(folder / "table")
    deltalake.write_deltalake(place, rows(range(4)))
    deltalake.write_deltalake(place, rows(range(4, 6)), mode="append")
    deltalake.DeltaTable(place).delete("id in ('1', '4')")
    return place


def put_folder(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            fs.write_atomic(f"{url}/{path.relative_to(folder)}", path.read_bytes())


def ids_of(url: str, choices: ColumnChoices = CONVENTION) -> set[str]:
    return {one.id for one in requests_of(list_input([url], choices))}


def test_a_table_has_the_rows_of_its_version_and_no_others(tmp_path: Path) -> None:
    place = table_in(tmp_path)
    assert ids_of(f"{place}@0") == {"0", "1", "2", "3"}
    assert ids_of(f"{place}@1") == {"0", "1", "2", "3", "4", "5"}
    assert ids_of(f"{place}/") == ids_of(f"{place}@2") == {"0", "2", "3", "5"}
    with pytest.raises(Refused, match="cannot be read as a Delta table"):
        ids_of(f"{place}@9")


def test_a_table_in_a_store_is_read_as_the_store_is_reached(tmp_path: Path, bucket: str) -> None:
    place = Path(table_in(tmp_path))
    put_folder(place, f"{bucket}/table")
    assert ids_of(f"{bucket}/table@1") == {"0", "1", "2", "3", "4", "5"}
    assert ids_of(f"{bucket}/table") == {"0", "2", "3", "5"}
    assert at_versions([f"{bucket}/table"]) == (f"{bucket}/table@2",)


def test_a_folder_that_is_called_like_a_version_is_read_by_its_name(tmp_path: Path) -> None:
    for number, name in enumerate(("table@1", "table")):
        deltalake.write_deltalake(str(tmp_path / name), rows(range(number, number + 1)))
    assert ids_of(f"{tmp_path}/table@1") == ids_of(*at_versions([f"{tmp_path}/table@1"])) == {"0"}
    assert ids_of(f"{tmp_path}/table@1@0") == {"0"}


def commit(number: int) -> str:
    return f"{number:020}.json"


@pytest.mark.parametrize(
    ("beside", "first"),
    [
        pytest.param([], 0, id="no checkpoint"),
        pytest.param(["checkpoint.parquet"], 5, id="one"),
        pytest.param(["checkpoint.0000000001.0000000002.parquet"], 0, id="half of one"),
        pytest.param([f"checkpoint.000000000{n}.0000000002.parquet" for n in (1, 2)], 5, id="two halves"),
        pytest.param([f"checkpoint.{'a' * 36}.json"], 5, id="one with sidecars"),
    ],
)
def test_a_log_is_read_from_its_last_whole_checkpoint(beside: list[str], first: int) -> None:
    names = [*map(commit, range(9)), f"{8:020}.checkpoint.parquet", "_last_checkpoint", "_sidecars/a.parquet"]
    checkpoint = [f"{5:020}.{name}" for name in beside]
    needed = [*map(commit, range(first, 8)), *(checkpoint if first else []), "_sidecars/a.parquet"]
    assert needed_of([*names, *checkpoint], 7) == sorted(needed)


def test_a_table_whose_log_was_cleaned_behind_a_checkpoint_is_read(tmp_path: Path, bucket: str) -> None:
    place = Path(table_in(tmp_path))
    deltalake.DeltaTable(str(place)).create_checkpoint()
    deltalake.write_deltalake(str(place), rows(range(6, 7)), mode="append")
    for number in (0, 1):
        (place / "_delta_log" / commit(number)).unlink()
    put_folder(place, f"{bucket}/table")
    for table in (str(place), f"{bucket}/table"):
        assert ids_of(table) == ids_of(f"{table}@3") == {"0", "2", "3", "5", "6"}
        assert ids_of(f"{table}@2") == {"0", "2", "3", "5"}
        with pytest.raises(Refused, match="cannot be read as a Delta table"):
            ids_of(f"{table}@1")


def test_partitions_are_columns(tmp_path: Path) -> None:
    deltalake.write_deltalake(str(tmp_path / "t"), rows(range(4)), partition_by=["year"])
    choices = ColumnChoices(image="image", id="id", keep=("year",))
    listing = list_input([str(tmp_path / "t")], choices)
    assert listing.num_rows == 4
    assert [kept.name for kept in listing.columns.keep] == ["year"]


@pytest.mark.parametrize("partitions", [[], ["year"]])
def test_a_column_that_was_added_later_is_null_in_files_from_before(tmp_path: Path, partitions: list[str]) -> None:
    place = str(tmp_path / "t")
    deltalake.write_deltalake(place, rows(range(2)), partition_by=partitions)
    later = rows(range(2, 4))
    added = {"note": ["x", None], "tags": [["a"], []], "prompt": ["Q?", "R?"]}
    later = pa.table({**{name: later[name] for name in later.column_names}, **added})
    deltalake.write_deltalake(place, later, mode="append", schema_mode="merge")
    choices = ColumnChoices(image="image", id="id", prompt="prompt", keep=("note", "tags"), values=("note",))
    listing = list_input([place], choices)
    found = {row["id"]: row for row in restore(read_all(listing)).to_pylist()}
    assert {id: row["keep:note"] for id, row in found.items()} == {"0": None, "1": None, "2": "x", "3": None}
    assert {id: row["prompt"] for id, row in found.items()} == {"0": None, "1": None, "2": "Q?", "3": "R?"}
    assert {id: row["keep:tags"] for id, row in found.items()} == {"0": None, "1": None, "2": ["a"], "3": []}
    assert not any(row["failure"] for row in found.values())


def test_loose_parquet_beside_a_table_has_the_columns_that_it_has(tmp_path: Path) -> None:
    deltalake.write_deltalake(str(tmp_path / "t"), rows(range(2)))
    write(f"{tmp_path}/loose/0.parquet", rows(range(2, 3)).drop_columns(["year"]))
    with pytest.raises(Refused, match=r"loose/0.parquet must have one column 'year'"):
        list_input([f"{tmp_path}/t", f"{tmp_path}/loose"], ColumnChoices(keep=("year",)))


def test_a_table_without_a_row_left_is_refused_alone_and_passed_over_beside_others(tmp_path: Path) -> None:
    place = table_in(tmp_path)
    deltalake.DeltaTable(place).delete()
    with pytest.raises(Refused, match="must have at least one row, .*table has none"):
        ids_of(place)
    assert list_input([place, f"{place}@0"], CONVENTION).num_rows == 4


def test_a_file_that_was_vacuumed_is_named(tmp_path: Path) -> None:
    place = table_in(tmp_path)
    for path in Path(place).glob("*.parquet"):
        path.unlink()
    with pytest.raises(Refused, match=r"the table's log names .*\.parquet, which is not there"):
        ids_of(place)


def test_a_run_goes_on_at_the_version_that_it_began_with(tmp_path: Path) -> None:
    place = table_in(tmp_path)
    plan = run_without_ray(tmp_path, input=(place,))
    assert plan.settings.input == (f"{place}@2",)
    deltalake.write_deltalake(place, rows(range(6, 9)), mode="append")
    again = JobSettings.model_validate({**plan.settings.model_dump(), "input": (place,)})
    assert plan_job("caption", again, "Q?").identity() == plan.identity()
    assert verify_run(plan.settings.output) == []
    other = again.model_copy(update={"output": str(tmp_path / "other")})
    assert plan_job("caption", other, "Q?").settings.input == (f"{place}@3",)


def test_a_folder_of_the_same_name_is_no_version(tmp_path: Path) -> None:
    assert unversioned(f"{tmp_path}/photos@3") == f"{tmp_path}/photos@3"
    shutil.copytree(table_in(tmp_path), tmp_path / "copy")
    assert unversioned(f"{tmp_path}/copy@1") == f"{tmp_path}/copy"
    assert at_versions([f"{tmp_path}/copy@1", f"{tmp_path}/copy"]) == (f"{tmp_path}/copy@1", f"{tmp_path}/copy@2")


def test_tables_whose_files_do_not_tell_their_rows_are_refused(tmp_path: Path) -> None:
    place = str(tmp_path / "t")
    deltalake.DeltaTable.create(place, deltalake.Schema.from_arrow(rows(range(1)).schema),
        configuration={"delta.enableDeletionVectors": "true"}, raise_if_key_not_exists=False)  # fmt: skip
    log = next((tmp_path / "t/_delta_log").glob("*.json"))
    text = log.read_text()
    if "deletionVectors" not in text:
        log.write_text(text.replace('"minReaderVersion":1', '"minReaderVersion":3,"readerFeatures":["deletionVectors"]')
            .replace('"minWriterVersion":2', '"minWriterVersion":7,"writerFeatures":["deletionVectors"]'))  # fmt: skip
    with pytest.raises(Refused, match="deletionVectors"):
        ids_of(place)


def test_the_first_job_and_a_checkpoint_are_found(tmp_path: Path) -> None:
    settings = JobSettings(input=(table_in(tmp_path),), output=str(tmp_path / "o"), model=str(checkpoint()))
    plan = plan_job("caption", settings, "Q?")
    begin_run(str(tmp_path / "o"), plan.describe(), plan.listing.files)
    deltalake.DeltaTable(str(tmp_path / "table")).create_checkpoint()
    assert plan_job("caption", settings, "Q?").identity() == plan.identity()
