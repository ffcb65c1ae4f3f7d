"""What is refused before Ray starts: a package that is missing, cards that are too small."""

import os
from pathlib import Path

import pytest

from benchmarks.random_model import write_model
from pipeline.engine.kernels.packages import is_there
from pipeline.environment import cards_here
from pipeline.preflight import check_machine, check_umask, check_writable, describe_needs
from schemas.errors import Refused
from schemas.job import JobSettings
from tests.checkpoints import changed
from tests.tiny import checkpoint

H200 = 143771 * 2**20


def job(model: Path, **settings) -> JobSettings:
    return JobSettings.model_validate({"input": ("a",), "output": "o", "model": str(model), **settings})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 72b's shape, but for its weights."""
    folder = tmp_path_factory.mktemp("72b")
    write_model("72b", folder)
    return folder


def test_a_model_larger_than_this_machines_card_is_refused_with_what_would_do(large: Path) -> None:
    with pytest.raises(ValueError, match=r"must fit the cards' memory.*--gpus-per-model 2, or --quantize fp8"):
        check_machine(job(large), (H200, H200))
    check_machine(job(large, gpus_per_model=2), (H200, H200))
    check_machine(job(large, quantize="fp8"), (H200,))


def test_without_a_card_or_on_a_cluster_memory_is_found_out_later(large: Path, monkeypatch) -> None:
    check_machine(job(large), ())
    check_machine(job(large, gpus=0), (H200,))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_machine(job(large), (H200,))


@pytest.mark.skipif(is_there("flash_attn.flash_attn_interface"), reason="flash-attn is installed")
@pytest.mark.parametrize("other", [False, True])
def test_flash_attention_without_its_package_is_refused_with_the_line_that_installs_it(install, other) -> None:
    if other:  # FlashAttention-4 has the same name
        install("flash_attn.cute")
        assert is_there("flash_attn.cute")
    with pytest.raises(ValueError, match="pip install flash-attn --no-build-isolation"):
        check_machine(job(checkpoint(), attention="flash_attention_2"), ())


def test_the_plan_says_what_cards_the_model_needs(large: Path) -> None:
    assert describe_needs(job(large)).startswith("145.3 GB of weights (bfloat16) and 10.7 GB for each row at work")
    assert "over 2 cards" in describe_needs(job(large, gpus_per_model=2))


def test_this_machines_cards_are_read_without_torch() -> None:
    assert all(card > 2**30 for card in cards_here())


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        pytest.param("hidden_act", "gelu", "hidden_act must be silu, got 'gelu'", id="activation"),
        pytest.param(
            "rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "rope_type", id="rope"
        ),
    ],
)
def test_a_network_that_the_engine_does_not_build_is_refused_here(setting: str, value: object, message: str) -> None:
    folder = changed("config.json", lambda config: config["text_config"].update({setting: value}))
    with pytest.raises(Refused, match=message):
        check_machine(job(folder), ())


@pytest.mark.parametrize("umask", [0o777, 0o277, 0o477, 0o100])
def test_a_umask_that_locks_out_who_makes_a_folder_is_refused(umask: int) -> None:
    with pytest.raises(Refused, match=f"umask must leave the owner .*, as 022 does, got {umask:03o}"):
        check_umask(umask)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_job_is_refused_under_such_a_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        with pytest.raises(Refused, match="umask must leave the owner"):
            check_writable(str(tmp_path / "out"))
    finally:
        os.umask(before)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0])
def test_other_umasks_are_fine(umask: int) -> None:
    check_umask(umask)
