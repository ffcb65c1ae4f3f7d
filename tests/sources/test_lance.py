"""Lance tables: read at one version, without the rows that were deleted, and never by the files in the folder."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.plan import plan_job
from pipeline.sources.columns import ColumnChoices
from pipeline.sources.lance import as_known
from pipeline.sources.listing import list_input
from pipeline.sources.versions import at_versions, unversioned
from pipeline.storage import filesystem as fs
from pipeline.verify import verify_run
from schemas.errors import Refused
from schemas.job import JobSettings
from tests.inputs import picture
from tests.listings import CONVENTION, read_all, requests_of
from tests.object_store import s3_environment
from tests.test_verify import run_without_ray

lance = pytest.importorskip("lance", reason="needs lance: pip install 'llava-batch[lance]'")
pytest_plugins = ["tests.object_store"]


def rows(numbers: range) -> pa.Table:
    return pa.table({"id": [str(n) for n in numbers], "image": [picture(n % 4) for n in numbers]})


def table_in(folder: Path) -> str:
    """A table of three versions: four rows, six, and these without two of them."""
    place = str(folder / "table.lance")
    lance.write_dataset(rows(range(4)), place, max_rows_per_file=3)
    lance.write_dataset(rows(range(4, 6)), place, mode="append")
    lance.dataset(place).delete("id in ('1', '4')")
    return place


def ids_of(url: str, choices: ColumnChoices = CONVENTION) -> list[str]:
    return [one.id for one in requests_of(list_input([url], choices, unit_rows=2))]


def test_a_table_has_the_rows_of_its_version_in_order(tmp_path: Path) -> None:
    place = table_in(tmp_path)
    assert ids_of(f"{place}@1") == ["0", "1", "2", "3"]
    assert ids_of(f"{place}@2") == ["0", "1", "2", "3", "4", "5"]
    assert ids_of(f"{place}/") == ids_of(f"{place}@3") == ["0", "2", "3", "5"]
    with pytest.raises(Refused, match="the table has no version 9"):
        ids_of(f"{place}@9")


def test_rows_without_ids_are_called_after_their_table_its_version_and_their_number(tmp_path: Path) -> None:
    place = table_in(tmp_path)
    assert ids_of(place, ColumnChoices(id="")) == [f"table.lance@3:{n}" for n in range(4)]


def test_a_version_of_the_older_naming_is_found(tmp_path: Path) -> None:
    place = str(tmp_path / "old.lance")
    lance.write_dataset(rows(range(2)), place, enable_v2_manifest_paths=False)
    lance.write_dataset(rows(range(2, 3)), place, mode="append", enable_v2_manifest_paths=False)
    assert (tmp_path / "old.lance/_versions/2.manifest").exists()
    assert at_versions([place]) == (f"{place}@2",)
    assert ids_of(place) == ["0", "1", "2"]


def put_folder(folder: Path, url: str) -> None:
    for path in filter(Path.is_file, folder.rglob("*")):
        fs.write_atomic(f"{url}/{path.relative_to(folder)}", path.read_bytes())


def test_a_table_in_a_store_is_read(tmp_path: Path, bucket: str) -> None:
    put_folder(Path(table_in(tmp_path)), f"{bucket}/table.lance")
    assert at_versions([f"{bucket}/table.lance"]) == (f"{bucket}/table.lance@3",)
    assert ids_of(f"{bucket}/table.lance") == ["0", "2", "3", "5"]


def test_relative_paths_begin_where_the_table_lies(tmp_path: Path) -> None:
    lance.write_dataset(pa.table({"image": ["a.jpg", "https://host/b.jpg"]}), str(tmp_path / "t.lance"))
    images = read_all(list_input([str(tmp_path / "t.lance")], CONVENTION))["images"].to_pylist()
    assert [one["uri"] for (one,) in images] == [f"{tmp_path}/a.jpg", "https://host/b.jpg"]


def test_bytes_that_are_kept_apart_come_as_bytes(tmp_path: Path) -> None:
    apart = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    table = pa.table({"image": pa.array([picture(0)], pa.large_binary())}, schema=pa.schema([apart]))
    lance.write_dataset(table, str(tmp_path / "t.lance"), data_storage_version="2.1")
    ((image,),) = read_all(list_input([str(tmp_path / "t.lance")], CONVENTION))["images"].to_pylist()
    assert image["data"] == picture(0)


def test_blobs_that_may_lie_in_other_files_are_refused(tmp_path: Path) -> None:
    apart = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    table = pa.table({"image": pa.array([picture(0)], pa.large_binary())}, schema=pa.schema([apart]))
    lance.write_dataset(table, str(tmp_path / "t.lance"), data_storage_version="2.2")
    with pytest.raises(Refused, match="column 'image' has blobs that may lie in other files"):
        list_input([str(tmp_path / "t.lance")], CONVENTION)


def test_a_table_of_a_type_that_the_library_does_not_know_is_refused(tmp_path: Path) -> None:
    place = Path(table_in(tmp_path))
    for manifest in (place / "_versions").glob("*.manifest"):
        manifest.write_bytes(manifest.read_bytes().replace(b"binary", b"binarz"))
    with pytest.raises(Refused, match="cannot be read as a Lance table"):
        list_input([str(place)], CONVENTION)


def test_a_table_with_files_elsewhere_is_refused(tmp_path: Path) -> None:
    lance.dataset(table_in(tmp_path)).shallow_clone(str(tmp_path / "clone.lance"), 3)
    with pytest.raises(Refused, match="must have all its files in its own folder"):
        list_input([str(tmp_path / "clone.lance")], CONVENTION)


def test_rows_of_a_file_that_is_gone_or_torn_fail_and_the_others_are_read(tmp_path: Path) -> None:
    listing = list_input([table_in(tmp_path)], CONVENTION, unit_rows=4)
    first, second, third = (
        part.data_files()[0].path for part in lance.dataset(f"{tmp_path}/table.lance").get_fragments()
    )
    (tmp_path / "table.lance/data" / first).unlink()
    os.truncate(tmp_path / "table.lance/data" / third, 100)
    failures = read_all(listing)["failure"].to_pylist()
    assert [failure and failure["type"] for failure in failures] == ["FileNotFound", "FileNotFound", None, "BrokenFile"]
    assert failures[0]["message"].startswith(f"rows 0 to 0 of {tmp_path}/table.lance are not there any more")
    assert ".rs:" not in f"{failures}"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("", r"left out: 1 Lance tables, each an input of its own \(table.lance\)", id="a folder above"),
        pytest.param("*.lance", r"left out: 1 Lance tables, each an input of its own \(table.lance\)", id="a glob"),
        pytest.param("table.lance/data", "a Lance table is named by its own folder", id="its files"),
        pytest.param("table.lance/*", "a Lance table is named by its own folder", id="all below"),
    ],
)
def test_what_lies_in_a_table_is_no_input_of_its_own(tmp_path: Path, bucket: str, name: str, why: str) -> None:
    put_folder(Path(table_in(tmp_path)), f"{bucket}/table.lance")
    for above in (str(tmp_path), bucket):
        with pytest.raises(Refused, match=why):
            list_input([fs.join(above, name)], CONVENTION)


def test_what_lies_beside_a_table_is_read_without_it(tmp_path: Path) -> None:
    table_in(tmp_path)
    pq.write_table(rows(range(7, 9)), tmp_path / "rows.parquet")
    assert ids_of(str(tmp_path)) == ["7", "8"]


def test_a_run_goes_on_at_the_version_that_it_began_with_and_is_verified(tmp_path: Path) -> None:
    place = table_in(tmp_path)
    plan = run_without_ray(tmp_path, input=(place,), finish=False, unit_rows=3)
    assert plan.settings.input == (f"{place}@3",)
    lance.write_dataset(rows(range(6, 9)), place, mode="append")
    again = JobSettings.model_validate({**plan.settings.model_dump(), "input": (place,)})
    assert plan_job("caption", again, "Q?").identity() == plan.identity()
    run_without_ray(tmp_path, input=(place,), unit_rows=3)
    assert pq.read_table(tmp_path / "out/answers")["id"].to_pylist() == ["0", "2", "3", "5"]
    assert verify_run(plan.settings.output) == []
    shutil.copytree(place, tmp_path / "copy.lance")
    assert unversioned(f"{tmp_path}/copy.lance@1") == f"{tmp_path}/copy.lance"


@pytest.mark.parametrize("name", ["b%20c", "b#c", "b?c", "b@1", "table.v2", "b%23c"])
def test_a_table_is_read_by_its_own_name_whatever_its_letters(tmp_path: Path, bucket: str, name: str) -> None:
    for number, other in enumerate((name, "b c", "b")):
        lance.write_dataset(rows(range(number, number + 1)), str(tmp_path / other))
        put_folder(tmp_path / other, f"{bucket}/{other}")
    assert ids_of(str(tmp_path / name)) == ids_of(f"{bucket}/{name}") == ["0"]
    assert ids_of(f"{bucket}/{name}@1") == ids_of(*at_versions([f"{bucket}/{name}"])) == ["0"]


def test_a_store_that_is_away_is_no_broken_table(tmp_path: Path, bucket: str) -> None:
    put_folder(Path(table_in(tmp_path)), f"{bucket}/t.lance")
    listing = list_input([f"{bucket}/t.lance"], CONVENTION, unit_rows=4)
    with s3_environment("http://127.0.0.1:1"):
        failures = read_all(listing)["failure"].to_pylist()
    assert [failure["type"] for failure in failures] == ["ReadFailed"] * 4


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        pytest.param(
            "HEAD http://h/x - Server returned non-2xx status code: 404 Not Found", FileNotFoundError, id="404"
        ),
        pytest.param("Client error with status 403 Forbidden: <Code>AccessDenied</Code>", PermissionError, id="403"),
        pytest.param("Generic S3 error: x in 1s, after 3 retries, max_retries: 3", ConnectionError, id="tried"),
        pytest.param("Encountered internal error /root/a.rs:12:3", OSError, id="broken"),
    ],
)
def test_what_the_library_says_in_words_is_known_by_its_kind(said: str, kind: type[OSError]) -> None:
    assert type(as_known(ValueError(said))) is kind


def test_no_key_is_in_what_a_store_says_of_a_refusal() -> None:
    said = "status 403: <Error><AWSAccessKeyId>AKIA0123456789</AWSAccessKeyId><Message>no</Message></Error>"
    assert "AKIA" not in str(as_known(OSError(said)))
    assert "<Message>no</Message>" in str(as_known(OSError(said)))
