"""Where the fused kernels of a prefill are taken, and what they are told of its segments."""

import numpy as np
import pytest
import torch

from pipeline.engine.engine import Engine
from pipeline.engine.fused import PACKAGES, fused_kernels, missing_packages, prefill_kernels, sequences
from pipeline.engine.places import Segment
from schemas.engine import EngineSettings
from tests.tiny import checkpoint

CPU = torch.device("cpu")


def segment(first: int, width: int, start: int) -> Segment:
    nobody = np.zeros(0, np.int32)
    return Segment(token_ids=nobody, prefix=nobody, first=first, width=width, start=start, slots=(0,), ends=True)


def test_a_cpu_has_pytorchs_own() -> None:
    assert prefill_kernels(None, CPU, torch.bfloat16) == "torch"
    assert prefill_kernels("torch", CPU, torch.float32) == "torch"
    assert fused_kernels("torch") is None
    assert Engine.load(str(checkpoint()), settings=EngineSettings()).sizes.prefill_kernels == "torch"


def test_a_device_that_they_are_not_for_is_refused() -> None:
    with pytest.raises(ValueError, match="prefill_kernels 'cute' need a GPU of .* got torch.bfloat16 on cpu"):
        prefill_kernels("cute", CPU, torch.bfloat16)


def test_packages_are_missed_by_the_names_that_install_them(install) -> None:
    assert set(missing_packages()) <= set(PACKAGES.values())
    for module in PACKAGES:
        install(module)
    assert missing_packages() == []


def test_segments_that_go_on_are_left_out() -> None:
    found = sequences([segment(0, 48, 0), segment(48, 16, 48), segment(64, 2000, 0)], 4096, CPU)
    assert (found.starts.tolist(), found.lengths.tolist()) == ([0, 64, 4096], [48, 2000])
    assert found.starts.dtype == found.lengths.dtype == torch.int32
    assert found.longest == 2000


def test_short_ones_are_no_case_of_their_own() -> None:
    assert sequences([segment(0, 48, 0)], 4096, CPU).longest == 1024
    assert sequences([segment(0, 48, 16)], 4096, CPU).longest == 0
