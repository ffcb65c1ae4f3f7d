"""Our kernels without a GPU: Triton's interpreter runs them, and its compiler says what they take of cards that nobody
here has."""

import json
import os
import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest
from packaging.version import Version

from pipeline.engine.kernels.pages import PAGE
from tests.engine.kernels.cards import SHARED

pytest.importorskip("triton", reason="Triton comes with PyTorch for GPUs; elsewhere: pip install triton")


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """What the interpreter's numbers are off from PyTorch's, by case."""
    if Version(metadata.version("triton")) < Version("3.9"):
        pytest.skip("older interpreters of Triton fail where NumPy is 2.4 or newer")
    command = [sys.executable, "-m", "tests.engine.kernels.interpreted"]
    told = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_attention_to_pages_is_pytorchs_in_as_many_parts_as_a_card_needs(errors) -> None:
    attended = {case: error for case, error in errors.items() if case != "write"}
    assert len(attended) == 16
    assert all(error < 1e-5 for error in attended.values()), attended


def test_keys_and_values_are_written_where_they_are_to_go(errors) -> None:
    assert errors["write"] == 0


@pytest.mark.parametrize(
    ("card", "itemsize", "rows"),
    [("T4", 2, 64), ("L4", 2, 64), ("L4", 4, 32), ("A100", 2, 128), ("A100", 4, 128), ("H100", 4, 128)],
)
def test_a_program_takes_as_many_rows_as_fit_the_shared_memory_of_a_card(card, itemsize, rows) -> None:
    from pipeline.engine.kernels.triton_kernels import most_rows

    assert most_rows(itemsize, SHARED[card]) == rows


@pytest.mark.parametrize(
    ("capability", "card", "dtype"),
    [(75, "T4", "fp16"), (75, "T4", "fp32"), (80, "A100", "fp32"), (86, "L4", "fp16"), (86, "L4", "fp32"),
     (90, "H100", "fp16"), (120, "L4", "fp32")],
)  # fmt: skip
def test_attention_to_pages_compiles_and_fits_on_every_card(capability, card, dtype) -> None:
    assert 0 < shared_memory(capability, dtype, 8, SHARED[card]) <= SHARED[card]


def shared_memory(capability: int, dtype: str, group: int, shared_bytes: int) -> int:
    """Compile attention of blocks of 16 tokens for a card, and return the bytes of shared memory that it takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pipeline.engine.kernels import triton_kernels

    kernels: Any = triton_kernels
    itemsize = {"fp16": 2, "fp32": 4}[dtype]
    rows = min(16 * group, kernels.most_rows(itemsize, shared_bytes))
    given = dict.fromkeys(("queries", "keys", "values", "key_scales", "value_scales", "out"), f"*{dtype}")
    given |= {"firsts": "*i64", "tables": "*i32", "positions": "*i64", "scale": "fp32"}
    given |= dict.fromkeys(("num_entries", "table_stride", "capacity"), "i32")
    fixed = {"heads": 8 * group, "group": group, "width": 16, "rows": rows, "parts": 16 * group // rows}
    fixed |= {"head_dim": 128, "page_size": PAGE, "scaled": False}
    names = kernels._walk.arg_names
    source = ASTSource(
        kernels._walk,
        {name: given.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): one for name, one in fixed.items()},
    )
    options = {"num_warps": 4 if rows <= 64 else 8, "num_stages": kernels._stages(rows, itemsize)}
    options |= {"enable_fp_fusion": kernels._FUSED}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return int(compiled.metadata.shared)
