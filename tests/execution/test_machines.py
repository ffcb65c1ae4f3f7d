"""Machines that come and go, in our words, and a disk that is one machine's own."""

import socket
from pathlib import Path

import pytest

from pipeline.execution.machines import Machines, check_shared
from pipeline.execution.ray_errors import RunFailed
from pipeline.run_folder.units import unit_path
from pipeline.sources.fetch import fetch
from pipeline.sources.source import RowRange
from pipeline.sources.unreadable import why_unread
from pipeline.storage import filesystem as fs
from schemas.errors import RowError


def node(id: str, *, alive: bool = True, **resources: float) -> dict[str, object]:
    return {"NodeID": id, "Alive": alive, "NodeManagerAddress": f"10.0.0.{id}", "Resources": resources}


def test_machines_that_come_and_go_are_named_with_what_they_have() -> None:
    said: list[str] = []
    machines = Machines(said.append)
    machines.look([node("1", CPU=8.0), node("2", CPU=16.0, GPU=1.0)])
    assert said == []
    seen = machines.look([node("1", CPU=8.0), node("2", alive=False), node("3", GPU=4.0)])
    assert said == [
        "machine 10.0.0.2 (16 CPUs, 1 GPU) is gone; what it was at is done elsewhere",
        "machine 10.0.0.3 (4 GPUs) has joined",
    ]
    assert seen.lost == {"2"}
    assert seen.resources == [{"CPU": 8.0}, {"GPU": 4.0}]
    machines.look([node("1", CPU=8.0), node("3", GPU=4.0)])
    assert len(said) == 2


def test_a_machine_that_came_and_went_between_two_looks_is_lost_all_the_same() -> None:
    said: list[str] = []
    machines = Machines(said.append)
    assert machines.look([node("1"), node("2", alive=False)]).lost == set()  # gone before anything was there
    assert machines.look([node("1"), node("2", alive=False), node("3", alive=False)]).lost == {"3"}
    assert machines.look([node("1"), node("2", alive=False), node("3", alive=False)]).lost == set()
    assert said == []


def test_an_output_that_another_machine_does_not_share_is_said_after_its_first_unit(tmp_path: Path) -> None:
    with pytest.raises(
        RunFailed, match=rf"--output must be on storage that all machines share.*{tmp_path}.*machine m7"
    ):
        check_shared(str(tmp_path), 3, "m7", within_s=0.01)
    fs.write_atomic(unit_path(str(tmp_path), 3), b"answers")
    check_shared(str(tmp_path), 3, "m7", within_s=0.01)


@pytest.mark.parametrize("url", ["/no/such.jpg", "file:///no/such.jpg"])
def test_a_file_of_a_disk_that_a_machine_does_not_see_is_named_with_the_machine(url: str) -> None:
    with pytest.raises(RowError, match=f" is not there on {socket.gethostname()}:"):
        fetch(url, 1000)
    assert f" on {socket.gethostname()}:" in why_unread(range_of(url), FileNotFoundError(url)).message
    in_store = why_unread(range_of("s3://b/such.jpg"), FileNotFoundError("gone"))
    assert socket.gethostname() not in in_store.message


def range_of(url: str) -> RowRange:
    return RowRange(url=url, name=url, start=0, num_rows=9)
