"""Products and attention of a prefill on a Hopper GPU: QuACK's and FlashAttention-4's kernels.

In a long run such a card is at its power limit, where the tiles that cuBLAS chooses are not the fastest; and the gates
of the feed-forward are applied before its widest product is written, not in a pass of their own.
"""

# mypy: disable-error-code="import-not-found, untyped-decorator, no-any-return"
# These packages are for GPUs alone; nothing imports this module elsewhere.

import torch
from flash_attn.cute.interface import flash_attn_func, flash_attn_varlen_func
from quack.activation import swiglu
from quack.epilogue import gemm_epilogue
from quack.epilogue.math import unpack
from quack.epilogue.ops import RowVecLoad
from quack.gemm_config import GemmConfig
from torch import Tensor

from pipeline.engine.kernels.interface import SelfContained

_TILES = GemmConfig(
    tile_m=256,
    tile_n=192,
    pingpong=False,
    is_dynamic_persistent=False,
    cluster_m=2,
    cluster_n=1,
    device_capacity=9,
)


@gemm_epilogue()
def _plain(acc: Tensor) -> dict[str, Tensor]:
    return {"D": acc}


@gemm_epilogue(ops={"bias": RowVecLoad("bias")})
def _biased(acc: Tensor, bias: Tensor) -> dict[str, Tensor]:
    return {"D": acc + bias}


@gemm_epilogue()
def _added(acc: Tensor, c: Tensor) -> dict[str, Tensor]:
    return {"D": acc + c}


@gemm_epilogue(outputs=("fed",), mode="acc_pair")
def _gated(acc: Tensor) -> dict[str, Tensor]:
    gate, up = unpack(acc)
    return {"fed": swiglu(gate, up)}


class Hopper:
    """Implement Fused. Tiles are always the same, so a row of a product is the same whatever the other rows are."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply (tokens, in) with a weight of (out, in), add the bias: (tokens, out)."""
        out = x.new_empty(len(x), len(weight))
        with torch.cuda.device(x.device):  # where they launch, whatever device the tensors are on
            if bias is None:
                _plain(x, weight.mT, out={"D": out}, config=_TILES, tuned=False)
            else:
                _biased(x, weight.mT, out={"D": out}, config=_TILES, tuned=False, bias=bias.float())
        return out

    def add_product(self, total: Tensor, x: Tensor, weight: Tensor) -> None:
        """Add the product of (tokens, in) and (out, in) to `total`, (tokens, out), in place."""
        with torch.cuda.device(x.device):
            _added(x, weight.mT, total, out={"D": total}, config=_TILES, tuned=False)

    def gated_product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute silu(gate) * up, (tokens, out / 2); `weight` is that of gate and up, one after the other."""
        fed, halves = x.new_empty(len(x), len(weight) // 2), ("B",)
        with torch.cuda.device(x.device):
            _gated(x, weight.mT, out={"fed": fed}, store_d=False, config=_TILES, tuned=False, concat_layout=halves)
        return fed

    def causal_each(self, queries: Tensor, keys: Tensor, values: Tensor, segments: SelfContained) -> Tensor:
        """Let every token of these segments attend to those before it and itself."""
        if not segments.longest:
            return torch.empty_like(queries, memory_format=torch.contiguous_format)
        with torch.cuda.device(queries.device):
            return _first(
                flash_attn_varlen_func(
                    queries,
                    keys,
                    values,
                    cu_seqlens_q=segments.starts,
                    cu_seqlens_k=segments.starts,
                    seqused_q=segments.lengths,
                    seqused_k=segments.lengths,
                    max_seqlen_q=segments.longest,
                    max_seqlen_k=segments.longest,
                    causal=True,
                )
            )

    def causal(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Do the same for one prompt, with the same numbers bit for bit."""
        with torch.cuda.device(queries.device):
            return _first(flash_attn_func(queries[None], keys[None], values[None], causal=True))[0]


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Drop the logarithms of the sums, which some versions return as well."""
    return result[0] if isinstance(result, tuple) else result
