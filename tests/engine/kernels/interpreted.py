"""Run our kernels by Triton's interpreter, on a CPU, beside what PyTorch makes of the same numbers.

    TRITON_INTERPRET=1 python -m tests.engine.kernels.interpreted

A process of its own, as Triton reads that as it is imported. The only line of stdout is a JSON object: how far each
case is from PyTorch's, as a share of it.
"""

import json
import sys
from collections.abc import Iterator

import torch

from pipeline.engine.kernels.layout import Moves, QueryBlocks
from pipeline.engine.kernels.pages import PAGE
from pipeline.engine.kernels.stored import Stored, empty_cache
from pipeline.engine.kernels.torch_attention import attend_one_by_one
from pipeline.engine.kernels.triton_kernels import attend_pages, write_pages
from pipeline.engine.network.kv_cache import write_plainly
from tests.engine.kernels.cards import SHARED

GROUPS = ((8, 2, 1), (8, 2, 16), (7, 1, 16), (16, 2, 16))  # heads, those that keys have, tokens of a block
HEAD_DIM = 16
CPU = torch.device("cpu")


def attention(card: str, heads: int, kv_heads: int, width: int, int8: bool) -> float:
    """Attend as on a card with so much shared memory."""
    keys, values = (stored(torch.randn(kv_heads, 8 * PAGE, HEAD_DIM), int8) for _ in range(2))
    queries = torch.randn(3 * width, heads, HEAD_DIM)
    positions = torch.tensor([0, 63, 2 * PAGE - width])
    tables = torch.randperm(8)[:6].view(3, 2)
    blocks = QueryBlocks(firsts=torch.arange(3) * width, tables=tables, positions=positions, width=width)
    found, expected = torch.zeros_like(queries), torch.zeros_like(queries)
    attend_pages(queries, keys, values, blocks, found, shared_bytes=SHARED[card])
    attend_one_by_one(queries, keys, values, blocks, expected)
    return float((found - expected).norm() / expected.norm())


def writing() -> float:
    """Write to pages; return the share of numbers that are another. In 8 bits it takes a function of CUDA's library,
    which no interpreter has."""
    keys, values = (torch.randn(20, 2, HEAD_DIM) for _ in range(2))
    moves = Moves(sources=torch.randperm(20)[:17], targets=torch.randperm(3 * PAGE)[:17])
    size = 2, 3 * PAGE, HEAD_DIM
    ours, plain = ([empty_cache(size, torch.float32, CPU, int8=False) for _ in range(2)] for _ in range(2))
    write_pages(*ours, keys, values, moves)
    write_plainly(*plain, keys, values, moves)
    pairs = zip(ours, plain, strict=True)
    return max(float((one.numbers != other.numbers).double().mean()) for one, other in pairs)


def stored(x: torch.Tensor, int8: bool) -> Stored:
    """Return a cache of these numbers."""
    cache = empty_cache(tuple(x.shape), x.dtype, x.device, int8=int8)
    cache.put(torch.arange(x.shape[1]), cache.pack(x))
    return cache


def cases() -> Iterator[tuple[str, float]]:
    """Yield every case by its name."""
    for int8 in (False, True):
        kept = "int8" if int8 else "whole"
        for card in ("T4", "H100"):
            for heads, kv_heads, width in GROUPS:
                yield f"{card} {heads}/{kv_heads} x{width} {kept}", attention(card, heads, kv_heads, width, int8)
    yield "write", writing()


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.stdout.write(json.dumps(dict(cases())) + "\n")
