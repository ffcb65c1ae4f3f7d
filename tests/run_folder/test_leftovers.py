"""Halves of files that killed processes have left go at the next start; nothing else does."""

import os
import uuid
from pathlib import Path

from s3fs import S3FileSystem

from pipeline.run_folder.leftovers import remove_leftovers, remove_sweeps_leftovers
from pipeline.run_folder.lock import hold

HEX = uuid.UUID(int=11).hex
HALVES = (
    f".run/.run.json.{HEX}.tmp",
    f".run/.index.pq.{HEX}.tmp",
    f".run/attempts/.retry-0001.pq.{HEX}.tmp",
    f".run/retry/units/.unit-00000003.pq.{HEX}.tmp",
    f".run/errors/decode-KeyError.txt.{HEX}.tmp",
    f".run.json.{HEX}.tmp",
    f".manifest.json.{HEX}.tmp",
    f".input.parquet.{HEX}.tmp",
    f"units/.unit-00000003.parquet.{HEX}.tmp",
    f"answers/.part-00000.parquet.{HEX}.tmp",
    f"attempts/.retry-0001.parquet.{HEX}.tmp",
    f"retry/units/.unit-00000003.parquet.{HEX}.tmp",
    f"markers/.unit-00000003-generate.json.{HEX}.tmp",
    f"errors/.decode-KeyError.txt.{HEX}.tmp.{HEX}.tmp",
    f"errors/decode-KeyError.txt.{HEX}.tmp",
)
OTHERS = (
    ".run/notes.txt",
    "units/unit-00000003.parquet",
    f"units/.unit-00000003.parquet.{HEX}.part",
    "units/.unit-00000003.parquet.tmp",
    f"units/.unit-00000003.parquet.{HEX[:-1]}.tmp",
    f"units/.my-notes.{HEX}.tmp",
    f"units/bak/.unit-00000003.parquet.{HEX}.tmp",
    f".notes.txt.{HEX}.tmp",
    f"other/.run.json.{HEX}.tmp",
    f".run/.driver.lock.{HEX}.tmp",  # of a driver that is being refused at this moment
)


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_halves_of_a_runs_files_go_and_nothing_else(tmp_path: Path) -> None:
    for name in (*HALVES, *OTHERS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    link = f"units/.unit-00000004.parquet.{HEX}.tmp"
    (tmp_path / link).symlink_to(tmp_path / ".run" / "notes.txt")
    with hold(str(tmp_path)):
        assert remove_leftovers(str(tmp_path)) == len(HALVES)
        assert names_in(tmp_path) == {*OTHERS, ".run/driver.lock", link}


def test_halves_of_locks_go_once_they_are_old(tmp_path: Path) -> None:
    old = tmp_path / ".run" / f"driver.lock.{HEX}.tmp"
    old.parent.mkdir()
    old.touch()
    os.utime(old, (1e9, 1e9))
    with hold(str(tmp_path)):
        assert remove_leftovers(str(tmp_path)) == 1
        assert names_in(tmp_path) == {".run/driver.lock"}


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert remove_leftovers(str(tmp_path / "out")) == 0


def test_halves_of_a_sweeps_files_go(tmp_path: Path) -> None:
    for name in (f".results.md.{HEX}.tmp", f".timings.json.{HEX}.tmp", f".run.json.{HEX}.tmp"):
        (tmp_path / name).touch()
    assert remove_sweeps_leftovers(str(tmp_path)) == 2
    assert names_in(tmp_path) == {f".run.json.{HEX}.tmp"}


def test_uploads_that_were_never_completed_are_aborted_and_nobody_elses(bucket: str) -> None:
    store, name = S3FileSystem(), bucket.removeprefix("s3://")
    ours = ("out/units/unit-00000003.parquet", "out/.run/manifest.json")
    others = ("out/notes.bin", "out2/manifest.json", "manifest.json")
    for key in (*ours, *others):
        store.call_s3("create_multipart_upload", Bucket=name, Key=key)
    assert remove_leftovers(f"{bucket}/out") == 2
    left = store.call_s3("list_multipart_uploads", Bucket=name)["Uploads"]
    assert {upload["Key"] for upload in left} == set(others)
