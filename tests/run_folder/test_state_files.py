"""State files of every wrong shape end in one line that names the file, whatever reads them; nothing is a traceback."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.__main__ import main
from pipeline.plan import Plan, find_complete, summarise
from pipeline.reports.outcome import describe_outcome
from pipeline.run_folder.markers import Markers
from pipeline.run_folder.run import RunMismatch, read_manifest, read_run
from pipeline.sweep.inputs import is_made, write_input
from pipeline.sweep.timing import Efforts, read_efforts
from pipeline.verify import verify_run
from schemas.errors import Refused
from schemas.run import STATE
from tests.sweep.test_inputs import asking_in
from tests.test_verify import run_without_ray

SHAPES = [b"", b"null", b"[]", b"{}", b'"text"', b"1e999", b"NaN", b"\xff\xfe\x00", b"[" * 100_000, b'{"format": 2}']
SHAPES += [b'{"format": 1}', b'{"format": null}', b'{"format": []}', b"{" + b'"a":{' * 5000]
VALUES: tuple[Any, ...] = (None, [], {}, "x", -1, 1e300, True, [None], {"x": None}, "\ud800", 10**30)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return run_without_ray(tmp_path_factory.mktemp("run"))


@pytest.fixture
def out(plan: Plan) -> Iterator[Path]:
    """The folder of a complete run, put back afterwards."""
    folder = Path(plan.settings.output)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield folder
    for path, data in before.items():
        path.write_bytes(data)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape[:12].decode("latin-1"))
@pytest.mark.parametrize("name", ["run.json", "manifest.json"])
def test_commands_refuse_a_state_file_of_a_wrong_shape(out: Path, plan: Plan, name: str, shape: bytes, capsys) -> None:
    (out / STATE / name).write_bytes(shape)
    settings = plan.settings
    job = ["caption", "--input", settings.input[0], "--output", str(out), "--model", settings.model, "--unit-rows", "8"]
    for command in (["verify", str(out)], ["retry-failed", str(out)], job):
        assert main(command) == 2
        said = capsys.readouterr().err.splitlines()
        assert [line for line in said if line.startswith("error")] == said[-1:]
        assert said[-1].startswith(f"error: {out / STATE / name} ")


def mutations(value: Any) -> Iterator[Any]:
    """The value with something of it gone, or another in its place."""
    if isinstance(value, dict):
        for name in value:
            yield {other: one for other, one in value.items() if other != name}
            yield from ({**value, name: other} for other in (*VALUES, *mutations(value[name])))
    if isinstance(value, list):
        for place, one in enumerate(value):
            yield value[:place] + value[place + 1 :]
            yield from ([*value[:place], other, *value[place + 1 :]] for other in (*VALUES, *mutations(one)))


def read_all(plan: Plan) -> None:
    """Everything that reads the state of a folder without answering."""
    folder = plan.settings.output
    run, manifest = read_run(folder), read_manifest(folder)
    verify_run(folder)
    find_complete(plan)
    if run is not None and manifest is not None:
        describe_outcome(summarise(manifest, folder, None))


def assert_none_is_a_traceback(plan: Plan, path: Path, changed: list[Any]) -> None:
    for value in changed:
        path.write_text(json.dumps(value))
        said = refusal_of(lambda: read_all(plan))
        assert "\n" not in said or "holds another run" in said, value


def refusal_of(step: Callable[[], object]) -> str:
    """What is said where that is refused, nothing where it is not; whatever else it raises is raised."""
    try:
        step()
    except Refused as error:
        return str(error)
    return ""


def unsealed(path: Path) -> dict[str, Any]:
    """A state file as the first release wrote it: whatever is changed in it, no seal says so."""
    state: dict[str, Any] = json.loads(path.read_text())
    return {name: one for name, one in state.items() if name != "sha256"} | {"format": 1}


@pytest.mark.parametrize("name", ["run.json", "manifest.json"])
def test_no_value_in_a_state_file_is_a_traceback(out: Path, plan: Plan, name: str) -> None:
    changed = list(mutations(unsealed(out / STATE / name)))
    assert_none_is_a_traceback(plan, out / STATE / name, random.Random(16).sample(changed, 60))


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", ["run.json", "manifest.json"])
def test_no_value_at_all_in_a_state_file_is_a_traceback(out: Path, plan: Plan, name: str) -> None:
    assert_none_is_a_traceback(plan, out / STATE / name, list(mutations(unsealed(out / STATE / name))))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape[:12].decode("latin-1"))
def test_what_a_sweep_keeps_of_its_input_and_pace_is_refused_by_name(tmp_path: Path, shape: bytes) -> None:
    asking = asking_in(tmp_path, data="3")
    write_input(asking)
    made = Path(asking.folder, "made.json")
    made.write_bytes(shape)
    with pytest.raises(RunMismatch, match=f"{made} .*: put it back as it was, or choose a new output"):
        is_made(asking)
    timings = tmp_path / "timings.json"
    timings.write_bytes(shape)
    if shape != b"{}":
        with pytest.raises(RunMismatch, match=f"{timings} .*or remove it: it only says how fast"):
            read_efforts(str(tmp_path))


@pytest.mark.parametrize("effort", [*VALUES, {"rows": "3"}, {"rows": 1, "seconds": 1.0, "more": [None]}])
def test_an_effort_of_the_wrong_shape_is_refused_or_passed_over(tmp_path: Path, effort: object) -> None:
    (tmp_path / "timings.json").write_text(json.dumps({"a cell": effort}))
    said = refusal_of(lambda: Efforts(str(tmp_path)).write())
    assert said.startswith(str(tmp_path / "timings.json")) == bool(said)


MARKER = {"driver": "me", "row": 1, "deaths": {"1": 2}, "slow": {"2": "decode"}}


@pytest.mark.parametrize("shape", [*SHAPES, *(json.dumps(one).encode() for one in mutations(MARKER))])
def test_a_marker_of_the_wrong_shape_is_none(tmp_path: Path, shape: bytes) -> None:
    (tmp_path / "markers").mkdir()
    (tmp_path / "markers" / "unit.json").write_bytes(shape)
    found = Markers(folder=str(tmp_path), driver="me").find("unit")
    if found is not None:
        found.after_death()


@pytest.mark.parametrize("name", ["run.json", "manifest.json"])
def test_a_state_file_that_is_none_is_named(out: Path, plan: Plan, name: str) -> None:
    path = out / STATE / name
    data = path.read_bytes()
    path.unlink()
    path.mkdir()
    with pytest.raises(RunMismatch, match=f"{name} must be a file that can be read"):
        find_complete(plan)
    with pytest.raises(RunMismatch, match=f"{name} must be a file that can be read"):
        verify_run(str(out))
    path.rmdir()
    path.write_bytes(data)
