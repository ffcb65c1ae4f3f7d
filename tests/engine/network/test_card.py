"""What a GPU lacks is said before weights are read; no GPU is needed to know it."""

import re

import pytest

from pipeline.engine.network.card import Card

CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


def card(name: str, major: int, minor: int, built_for: tuple[str, ...] = CU130) -> Card:
    return Card(name=name, capability=(major, minor), built_for=built_for)


@pytest.mark.parametrize(
    ("name", "capability", "dtype", "quantize", "lack"),
    [
        (
            "Tesla T4",
            (7, 5),
            "bfloat16",
            None,
            "dtype 'bfloat16' needs a GPU of compute capability 8.0 or more, Tesla T4",
        ),
        ("Tesla T4", (7, 5), "bfloat16", "4bit", "has 7.5; use 'float16'"),
        ("NVIDIA A100", (8, 0), "float16", "fp8", "quantize 'fp8' needs a GPU of compute capability 8.9 or more"),
        (
            "Tesla V100",
            (7, 0),
            "float16",
            None,
            "built for the GPU: Tesla V100 has 7.0, torch .* has kernels for sm_75, sm_80",
        ),
    ],
)
def test_what_a_card_lacks_is_one_line(name, capability, dtype, quantize, lack) -> None:

    said = card(name, *capability).why_not(dtype, quantize)
    assert said is not None
    assert re.search(lack, said), said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("capability", "dtype", "quantize"),
    [
        ((7, 5), "float16", "4bit"),
        ((7, 5), "float32", None),
        ((8, 0), "bfloat16", None),
        ((8, 6), "bfloat16", "8bit"),
        ((8, 9), "bfloat16", "fp8"),  # sm_86 runs there
        ((9, 0), "bfloat16", "fp8"),
        ((10, 3), "bfloat16", None),
        ((12, 1), "bfloat16", None),
        ((13, 0), "bfloat16", None),  # a card of the future, by compute_120
    ],
)
def test_a_card_that_can_is_not_refused(capability, dtype, quantize) -> None:
    assert card("a card", *capability).why_not(dtype, quantize) is None


@pytest.mark.parametrize(
    ("built_for", "capability", "runs"),
    [
        (("sm_90a",), (9, 0), True),
        (("sm_90a", "sm_80"), (10, 0), False),
        (("sm_100f",), (10, 3), True),
        (("gfx942",), (9, 4), True),  # AMD's, which this says nothing of
        ((), (8, 0), True),
    ],
)
def test_what_pytorch_was_built_for_is_read_as_cuda_means_it(built_for, capability, runs) -> None:
    assert (card("a card", *capability, built_for).why_not("float16", None) is None) is runs
