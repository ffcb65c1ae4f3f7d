"""What is found around the process: cores by quota, cards by what is visible, a short folder for sockets."""

import os
from pathlib import Path

import pytest

from pipeline.environment import (
    cards_here,
    check_gpus,
    cluster_address,
    cpus_here,
    object_store_folder,
    quotas,
    socket_folder,
    visible_cards,
)
from schemas.errors import Refused


@pytest.mark.parametrize(
    ("visible", "cards"),
    [(None, (1, 2)), ("", ()), ("-1", ()), ("NoDevFiles", ()), ("1", (2,)), ("1,0", (2, 1)), ("0,7,1", (1,))],
)
def test_cards_are_those_that_cuda_sees(visible: str | None, cards: tuple[int, ...]) -> None:
    assert visible_cards((1, 2), visible) == cards


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi that is found before any other."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = tmp_path / "nvidia-smi"
    path.touch(mode=0o755)
    return path


@pytest.mark.parametrize(("visible", "cards"), [(None, (80, 40)), ("1", (40,)), ("", ()), (" ", ()), ("-1", ())])
def test_cards_are_what_the_drivers_tool_says(
    tool: Path, visible: str | None, cards: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool.write_text("#!/bin/sh\necho 80\necho 40\n", encoding="utf-8")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cards_here() == tuple(card * 2**20 for card in cards)


def test_a_driver_that_does_not_answer_is_named_unless_no_card_is_to_be_used(
    tool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    with pytest.raises(Refused, match=r"GPUs must answer .*nvidia-smi within 0.2 s, they have not: .*on the CPU"):
        cards_here(0.2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cards_here(0.2) == ()


@pytest.mark.parametrize(("text", "address"), [("", None), (" ", None), ("local", None), ("auto", "auto")])
def test_an_empty_ray_address_is_none(text: str, address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", text)
    assert cluster_address() == address


def test_more_gpus_than_the_machine_has_are_refused_with_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(Refused, match=r"at most the 1 GPUs that can be used on this machine, got 8.*--gpus 0"):
        check_gpus(8, (2**30,))
    check_gpus(1, (2**30,))
    check_gpus(None, ())
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_gpus(8, ())


def test_cores_are_those_that_the_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpus_here() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        pytest.param({"cpu.max": "250000 100000\n"}, [2], id="two and a half"),
        pytest.param({"cpu.max": "50000 100000\n"}, [1], id="half a core is one"),
        pytest.param({"cpu.max": "max 100000\n"}, [], id="no quota"),
        pytest.param({"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "300000 100000"}, [4, 3], id="nested"),
        pytest.param({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, [2], id="version 1"),
        pytest.param({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, [], id="1 without"),
        pytest.param({}, [], id="nothing"),
    ],
)
def test_a_quota_counts_in_whole_cores(tmp_path: Path, files: dict[str, str], found: list[int]) -> None:
    own = tmp_path / "own"
    own.write_text("0::/a/b\n", encoding="utf-8")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert list(quotas(tmp_path, own)) == found


def test_sockets_have_a_short_path_wherever_temporary_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("x" * 60)
    long.mkdir()
    for folder in (long, tmp_path / "none"):
        monkeypatch.setenv("TMPDIR", str(folder))
        assert not socket_folder().startswith(str(folder))
        assert len(f"{socket_folder()}/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store") <= 107


def test_objects_are_kept_on_the_disk_where_there_is_no_shared_memory(tmp_path: Path) -> None:
    assert object_store_folder("/disk", shared=str(tmp_path)) is None
    assert object_store_folder("/disk", shared=str(tmp_path / "none")) == "/disk"
