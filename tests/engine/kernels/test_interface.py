"""Where the fused kernels of a prefill are taken, and what they are told of its segments."""

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from pipeline.engine.batch import make_batch, prefix_batch
from pipeline.engine.engine import Engine
from pipeline.engine.kernels.choose import PACKAGES, fused_kernels, missing_packages, prefill_kernels
from pipeline.engine.kernels.interface import self_contained
from pipeline.engine.kernels.layout import Segment, layout
from pipeline.engine.kernels.torch_attention import attend_one_by_one, causal
from pipeline.engine.network.block import apply_gates
from pipeline.engine.network.kv_cache import KVCache
from pipeline.engine.network.load import load_model
from pipeline.engine.network.memory import cache_shape
from schemas.engine import EngineSettings
from tests.engine.groups import allocated, allocation, group
from tests.engine.oracle import FP32
from tests.tiny import checkpoint

CPU = torch.device("cpu")


def segment(first: int, width: int, start: int) -> Segment:
    nobody = np.zeros(0, np.int32)
    return Segment(token_ids=nobody, prefix=nobody, first=first, width=width, start=start, allocations=(), ends=True)


def test_a_cpu_has_pytorchs_own() -> None:
    assert prefill_kernels(None, CPU, torch.bfloat16) == "torch"
    assert prefill_kernels("torch", CPU, torch.float32) == "torch"
    assert fused_kernels("torch") is None
    assert Engine.load(str(checkpoint()), settings=EngineSettings()).shapes.prefill_kernels == "torch"


def test_a_device_that_they_are_not_for_is_refused() -> None:
    with pytest.raises(ValueError, match="prefill_kernels 'cute' need a GPU of .* got torch.bfloat16 on cpu"):
        prefill_kernels("cute", CPU, torch.bfloat16)


def test_packages_are_missed_by_the_names_that_install_them(install) -> None:
    assert set(missing_packages()) <= set(PACKAGES.values())
    for module in PACKAGES:
        install(module)
    assert missing_packages() == []


class OneByOne:
    """PyTorch's own, each thing after the other; what is nobody's is no number."""

    def product(self, x, weight, bias):
        return linear(x, weight, bias)

    def add_product(self, total, x, weight):
        total += linear(x, weight)

    def gated_product(self, x, weight):
        return apply_gates(linear(x, weight))

    def causal_each(self, queries, keys, values, segments):
        out = torch.full_like(queries, torch.nan, memory_format=torch.contiguous_format)
        for first, length in zip(segments.starts.tolist(), segments.lengths.tolist(), strict=False):
            own = slice(first, first + length)
            out[own] = causal(queries[own], keys[own], values[own])
        return out

    def causal(self, queries, keys, values):
        return causal(queries, keys, values)


@torch.inference_mode()
@pytest.mark.parametrize("backbone", ["llama", "qwen2"])
def test_a_prefill_by_other_kernels_leaves_no_token_out(backbone) -> None:
    decoder = load_model(str(checkpoint(backbone)), FP32).decoder
    prefix = np.ones(64, np.int32)
    groups = [
        allocated(group("a", 20, num_sequences=3), 4, 0, 6, pages=2),
        allocated(group("p", 90, num_common=64), 5, pages=2),
        allocated(group("b", 18), 2, pages=2),
    ]
    batches = [prefix_batch(prefix, allocation(5, pages=2), 288, 16), make_batch(groups, 288, 16)]
    found = []
    for fused in (None, OneByOne()):
        cache = KVCache(cache_shape(decoder.shape, 30), decoder.rotary(128), decoder.parts)
        for batch in batches:
            where = layout(batch.segments, num_padded_tokens=288, num_sampled=16, max_sequence_length=128, device=CPU)
            x = decoder.embed(torch.from_numpy(batch.token_ids))
            hidden = decoder.prefill(0, x, where, cache, attend_one_by_one, fused)
        held = [one.numbers for layer in (0, decoder.shape.layers - 1) for one in cache.of(layer)]
        found.append([hidden[: len(batch.endings)], *held])
    assert all(map(torch.equal, *found))
    assert not any(one.isnan().any() for one in found[1])


def test_segments_that_go_on_are_left_out() -> None:
    found = self_contained([segment(0, 48, 0), segment(48, 16, 48), segment(64, 2000, 0)], 4096, CPU)
    assert (found.starts.tolist(), found.lengths.tolist()) == ([0, 64, 4096], [48, 2000])
    assert found.starts.dtype == found.lengths.dtype == torch.int32
    assert found.longest == 2000


def test_short_ones_are_no_case_of_their_own() -> None:
    assert self_contained([segment(0, 48, 0)], 4096, CPU).longest == 1024
    assert self_contained([segment(0, 48, 16)], 4096, CPU).longest == 0
