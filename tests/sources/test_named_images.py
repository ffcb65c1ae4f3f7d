"""Images that messages name themselves: beside the Parquet file, in a store or in the messages, in any order."""

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dryrun import describe_plan
from pipeline.job import run_job
from pipeline.plan import Plan, plan_job
from pipeline.sources.named_images import images_of
from pipeline.sources.reader import unit_reader
from pipeline.stages.preprocess import Preprocess
from pipeline.storage import filesystem as fs
from schemas.errors import Failure
from schemas.job import JobSettings
from schemas.request import table_to_requests
from schemas.sample import Sample, Size, table_to_samples
from tests.fakes import load_echo_engine
from tests.images import encoded, noise
from tests.tiny import checkpoint

pytest_plugins = ["tests.object_store"]

SIZES = {"sign.jpg": Size(300, 200), "big.jpg": Size(200, 190), "small.jpg": Size(31, 17)}
TEXT = {"type": "text", "text": "Alike?"}
IMAGE = {"type": "image"}
PHOTO = Path(__file__).parents[2] / "demo" / "pictures" / "sign-parking.jpg"
COLUMN = encoded(noise(64, 48), "JPEG")


@pytest.fixture
def files() -> dict[str, bytes]:
    """JPEGs of unlike sizes, by name."""
    return {name: encoded(noise(size.width, size.height), "JPEG") for name, size in SIZES.items()}


def plan_for(folder: str, rows: Sequence[dict[str, Any]], **changes: object) -> Plan:
    """A job over one Parquet file with these rows."""
    table = pa.Table.from_pylist([{"id": str(i), **row} for i, row in enumerate(rows)])
    file = fs.join(folder, "in.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    fs.write_atomic(file, sink.getvalue().to_pybytes())
    base = {"input": (file,), "output": fs.join(folder, "out"), "model": str(checkpoint()), "max_new_tokens": 4}
    return plan_job("caption", JobSettings.model_validate({**base, "max_error_rate": 1.0, **changes}), "Describe it.")


def samples_of(folder: str, *rows: dict[str, Any]) -> list[Sample]:
    plan = plan_for(folder, rows)
    return table_to_samples(Preprocess(plan.settings)(unit_reader(plan.listing)(0)))


def asking(*parts: object) -> str:
    return json.dumps([{"role": "user", "content": [*parts, TEXT]}])


def named(uri: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": uri, "detail": "high"}}


def data_uri(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def failure_of(sample: Sample) -> Failure:
    failure = sample.prompts[0].failure
    assert failure is not None
    return failure


def test_every_way_to_name_an_image_gives_the_image(root: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        fs.write_atomic(fs.join(root, "pictures", name), data)
    whole = fs.join(root, "pictures", "sign.jpg")
    bare = base64.b64encode(files["sign.jpg"]).decode()
    ways = [
        named("pictures/sign.jpg"),
        named("./pictures/sign.jpg"),
        named(whole),
        named(data_uri(files["sign.jpg"])),
        {"type": "image_url", "image_url": whole},
        {"type": "image", "url": whole},
        {"type": "image", "path": "pictures/sign.jpg"},
        {"type": "image", "image": whole},
        {"type": "image", "base64": bare},
        {"type": "image", "base64": data_uri(files["sign.jpg"])},
    ]
    for sample in samples_of(root, *({"messages": asking(way)} for way in ways)):
        assert sample.prompts[0].failure is None
        assert sample.image_sizes == (SIZES["sign.jpg"],)


def test_messages_are_looked_into_where_a_row_has_a_time_of_its_own(tmp_path: Path) -> None:
    told = asking(named("pictures/sign.jpg"), named("/a.jpg"))
    (request,) = table_to_requests(unit_reader(plan_for(str(tmp_path), [{"messages": told}]).listing)(0))
    assert request.messages == told
    assert [image.uri for image in images_of(request, None)] == [f"{tmp_path}/pictures/sign.jpg", "/a.jpg"]
    assert [image.uri for image in images_of(request, "s3://b/all")] == ["s3://b/all/pictures/sign.jpg", "/a.jpg"]


def test_named_images_take_their_places_among_the_rows_own(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "big.jpg").write_bytes(files["big.jpg"])
    messages = asking(named("big.jpg"), IMAGE, {"type": "text", "text": "or"}, named(data_uri(files["small.jpg"])))
    (sample,) = samples_of(str(tmp_path), {"messages": messages, "images": [COLUMN]})
    assert sample.image_sizes == (SIZES["big.jpg"], Size(64, 48), SIZES["small.jpg"])
    assert sample.prompts[0].text == "or Alike?"


def test_an_image_named_twice_is_seen_twice(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "big.jpg").write_bytes(files["big.jpg"])
    (sample,) = samples_of(str(tmp_path), {"messages": asking(named("big.jpg"), named("big.jpg"))})
    assert sample.image_sizes == (SIZES["big.jpg"], SIZES["big.jpg"])


def test_images_are_named_in_structs_as_in_json(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "big.jpg").write_bytes(files["big.jpg"])
    nothing = {"type": "text", "text": "Alike?", "image_url": None}
    parts = [{"type": "image_url", "text": None, "image_url": {"url": "big.jpg"}}, nothing]
    (sample,) = samples_of(str(tmp_path), {"messages": [{"role": "user", "content": parts}]})
    assert sample.image_sizes == (SIZES["big.jpg"],)


@pytest.mark.parametrize(
    ("uri", "type", "said"),
    [
        pytest.param("none.jpg", "FileNotFound", "none.jpg is not there", id="no file"),
        pytest.param("data:image/jpeg;base64,%%%", "FetchFailed", "must be valid base64", id="no base64"),
        pytest.param("data:image/jpeg;base64", "FetchFailed", "must have a comma", id="no data"),
        pytest.param("ftp://127.0.0.1/a.jpg", "UnsupportedScheme", "not fetched from ftp://", id="scheme"),
        pytest.param("http://127.0.0.1/a.jpg", "PrivateAddress", "--allow-private", id="http"),
    ],
)
def test_an_image_that_cannot_be_had_is_an_error_row(tmp_path: Path, uri: str, type: str, said: str) -> None:
    failure = failure_of(*samples_of(str(tmp_path), {"messages": asking(named(uri))}))
    assert (failure.stage, failure.type) == ("fetch", type)
    assert said in failure.message


def test_what_is_named_and_no_image_is_an_error_row(tmp_path: Path) -> None:
    failure = failure_of(*samples_of(str(tmp_path), {"messages": asking(named(data_uri(COLUMN[:200])))}))
    assert failure.stage == "decode"


@pytest.mark.parametrize(
    ("parts", "images", "said"),
    [
        pytest.param([named("a.jpg"), named("b.jpg")], 1, "name 2 themselves and have 0 .* for 1 images", id="beside"),
        pytest.param([named("a.jpg"), IMAGE], 0, "name 1 themselves and have 1 .* for 0 images", id="one left over"),
    ],
)
def test_a_place_or_an_image_left_over_is_an_error_row(tmp_path: Path, parts: list, images: int, said: str) -> None:
    row = {"messages": asking(*parts), "images": [COLUMN] * images or None}
    failure = failure_of(samples_of(str(tmp_path), row, {"messages": asking(IMAGE), "images": [COLUMN]})[0])
    assert (failure.stage, failure.type) == ("prompt", "ImageCountMismatch")
    assert re.search(said, failure.message)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_job_answers_messages_that_bring_their_images(tmp_path: Path) -> None:
    rows = [{"messages": asking(named(str(PHOTO)))}, {"messages": asking(named("none.jpg"))}]
    plan = plan_for(str(tmp_path), rows)
    assert "image: none but those that messages name" in describe_plan(plan)
    run_job(plan, load_echo_engine)
    found = pq.read_table(tmp_path / "out" / "answers").to_pylist()
    assert [row["error_type"] for row in found] == [None, "FileNotFound"]
    assert found[0]["image_width"] > 0
    assert found[0]["prompt"] == "Alike?"


def test_rows_of_a_table_in_a_store_read_local_files_only_below_a_root(bucket: str, tmp_path: Path) -> None:
    local = str(tmp_path / "a.jpg")
    Path(local).write_bytes(COLUMN)
    rows = [{"messages": asking(named(local))}, {"messages": asking(named(data_uri(COLUMN)))}]

    def failures(**changes: object) -> list[str | None]:
        plan = plan_for(bucket, rows, **changes)
        samples = table_to_samples(Preprocess(plan.settings)(unit_reader(plan.listing)(0)))
        return [sample.prompts[0].failure and sample.prompts[0].failure.type for sample in samples]

    assert failures() == ["NotAllowed", None]
    assert failures(allow_root=(str(tmp_path),)) == [None, None]
    assert failures(allow_root=(bucket,)) == ["NotAllowed", None]
