"""On a GPU: the kernels, the compiled layers and the CUDA graph give what the plain engine gives, in any batch."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import linear, silu

from demo.checkpoint import Shape
from pipeline.engine.engine import Engine
from pipeline.engine.kernels.choose import fused_kernels, missing_packages
from pipeline.engine.kernels.interface import self_contained
from pipeline.engine.kernels.layout import Moves, QueryBlocks, Segment
from pipeline.engine.kernels.linear import quantise
from pipeline.engine.kernels.pages import PAGE
from pipeline.engine.kernels.stored import Stored, empty_cache
from pipeline.engine.kernels.torch_attention import attend_one_by_one, causal
from pipeline.engine.network.kv_cache import write_plainly
from pipeline.engine.network.load import load_model
from schemas.engine import EngineSettings, Sampling
from tests.engine import prefixes
from tests.engine.kernels.cards import SHARED
from tests.engine.oracle import Oracle, Question, mixed_questions
from tests.engine.prefixes import TEXTS, exact
from tests.engine.test_forms import RECEIPT, WORD, YES_NO, is_of, with_forms
from tests.tiny import build, checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# Heads of 64, which the kernels need, and enough of everything for several rows, tiles and blocks of keys.
SHAPE = Shape(text_width=512, text_hidden=1024, text_heads=8, text_kv_heads=2, text_layers=3)
PLAIN = EngineSettings(device="cuda", slots=16, prefill_tokens=2048, capacity=1024, compile=False, cuda_graphs=False)
FAST = replace(PLAIN, compile=True, cuda_graphs=True)
CUTE = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0) or bool(missing_packages()),
    reason="needs a Hopper GPU and the packages of [hopper]",
)
PREFILL = [pytest.param("torch"), pytest.param("cute", marks=CUTE)]


@pytest.fixture(scope="module")
def folder() -> str:
    return str(build(SHAPE))


def oracle_of(folder: str, settings: EngineSettings) -> Oracle:
    return Oracle(load_model(folder, settings), folder)


def samples_of(oracle: Oracle):
    questions = mixed_questions(max_new_tokens=(24,))
    questions += [replace(q, id=f"{q.id}-{i}") for q in questions for i in range(4)]
    questions += [replace(q, id=f"{q.id}-thrice", texts=TEXTS) for q in questions[:4]]
    return [oracle.sample(q) for q in [*questions, Question(id="long", texts=("Why? " * 60,))]]


@pytest.mark.parametrize("settings", [PLAIN, FAST], ids=["plain", "fast"])
@pytest.mark.parametrize("kernel", ["sdpa", "triton"])
def test_answers_in_float32_are_those_of_transformers(folder, settings, kernel) -> None:
    settings = replace(settings, dtype="float32", decode_kernel=kernel)
    oracle = oracle_of(folder, settings)
    questions = mixed_questions()
    cpu = Oracle(load_model(folder, EngineSettings(dtype="float32")), folder)
    answers = Engine(oracle.model, settings).generate(oracle.sample(q) for q in questions)
    assert [a.text for a in answers] == [cpu.spelled(q) for q in questions]


@pytest.mark.parametrize(("quantize", "kept"), [(None, None), ("fp8", None), (None, "int8"), ("fp8", "int8")])
@pytest.mark.parametrize("kernel", ["sdpa", "triton"])
@pytest.mark.parametrize("prefill", PREFILL)
def test_a_row_has_the_same_numbers_in_any_batch(folder, quantize, kept, kernel, prefill) -> None:
    fast = replace(FAST, quantize=quantize, kv_cache_dtype=kept)
    settings = replace(fast, decode_kernel=kernel, prefill_kernels=prefill)
    oracle = oracle_of(folder, settings)
    samples = samples_of(oracle)
    engine = Engine(oracle.model, settings)
    expected = exact(engine, samples)
    assert exact(engine, samples) == expected
    random.Random(0).shuffle(samples)
    assert exact(engine, samples) == expected
    few = samples[::5]
    assert exact(engine, few) == {key: expected[key] for key in exact(engine, few)}


@pytest.mark.parametrize("quantize", [None, "fp8"])
@pytest.mark.parametrize("kernel", ["sdpa", "triton"])
def test_a_prefix_that_is_run_once_changes_no_bit_in_any_batch(folder, quantize, kernel) -> None:
    settings = replace(FAST, quantize=quantize, decode_kernel=kernel)
    oracle = oracle_of(folder, settings)
    samples = prefixes.mixed_samples(oracle, max_new_tokens=(24,))
    sharing, plain = Engine(oracle.model, settings), Engine(oracle.model, settings)
    expected = exact(sharing, samples)
    assert sharing.statistics().num_prefix_tokens == 13 * 64
    random.Random(0).shuffle(samples)
    assert exact(sharing, samples) == expected
    few = samples[::5]
    assert exact(sharing, few) == {key: expected[key] for key in exact(sharing, few)}
    assert exact(plain, prefixes.unshared(samples)) == expected
    assert plain.statistics().num_prefix_tokens == 0


@pytest.mark.parametrize("shared_bytes", [None, SHARED["T4"]])
@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (8, 8, 64), (4, 1, 16), (64, 8, 128)])
def test_the_triton_kernel_agrees_with_masked_attention(dtype, heads, kv_heads, head_dim, width, shared_bytes) -> None:
    from pipeline.engine.kernels.triton_kernels import attend_pages

    torch.manual_seed(0)
    keys, values = (torch.randn(kv_heads, 80 * PAGE, head_dim, dtype=dtype, device="cuda") for _ in range(2))
    queries = torch.randn(6 * width, heads, head_dim, dtype=dtype, device="cuda")
    tables, positions = torch.randperm(80)[:66].view(6, 11), torch.tensor([0, 1, 63, 64, 500, 704 - width])
    firsts, tables, positions = (one.cuda() for one in (torch.arange(6) * width, tables, positions))
    blocks = QueryBlocks(firsts=firsts, tables=tables, positions=positions, width=width)
    found, expected = torch.zeros_like(queries), torch.zeros_like(queries, dtype=torch.float32)
    attend_pages(queries, *map(stored, (keys, values)), blocks, found, shared_bytes=shared_bytes)
    attend_one_by_one(queries.float(), *(stored(one.float()) for one in (keys, values)), blocks, expected)
    error = (found.float() - expected).norm() / expected.norm()
    assert error.item() < (1e-5 if dtype == torch.float32 else 1e-2)
    moved = torch.randperm(80)  # the same rows in other pages have the same bits
    keys, values = (one.unflatten(1, (80, PAGE))[:, moved.argsort()].flatten(1, 2) for one in (keys, values))
    again = torch.zeros_like(queries)
    there = replace(blocks, tables=moved.to(queries.device)[blocks.tables])
    attend_pages(queries, *map(stored, (keys, values)), there, again, shared_bytes=shared_bytes)
    assert torch.equal(again, found)


def stored(x: torch.Tensor, int8: bool = False) -> Stored:
    """A cache of these numbers."""
    cache = empty_cache(tuple(x.shape), x.dtype, x.device, int8=int8)
    cache.put(torch.arange(x.shape[1], device=x.device), cache.pack(x))
    return cache


@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (8, 8, 64), (56, 8, 128)])
def test_the_triton_kernel_reads_8_bits_as_pytorch_does(heads, kv_heads, head_dim, width) -> None:
    from pipeline.engine.kernels.triton_kernels import attend_pages

    torch.manual_seed(0)
    keys, values = (torch.randn(kv_heads, 80 * PAGE, head_dim, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    keys, values = (stored(one * torch.rand_like(one[..., :1]) * 3, int8=True) for one in (keys, values))
    queries = torch.randn(6 * width, heads, head_dim, dtype=torch.bfloat16, device="cuda")
    tables, positions = torch.randperm(80)[:66].view(6, 11), torch.tensor([0, 1, 63, 64, 500, 704 - width])
    firsts, tables, positions = (one.cuda() for one in (torch.arange(6) * width, tables, positions))
    blocks = QueryBlocks(firsts=firsts, tables=tables, positions=positions, width=width)
    found, expected = torch.zeros_like(queries), torch.zeros_like(queries, dtype=torch.float32)
    behind = tables[0, 0] * PAGE + 40  # what nobody attends to may be anything finite
    keys.scales[:, behind] = values.scales[:, behind] = 1e30
    attend_pages(queries, keys, values, blocks, found)
    keys.scales[:, behind] = values.scales[:, behind] = 0
    attend_one_by_one(queries.float(), keys, values, blocks, expected)
    close(found, expected)


@pytest.mark.parametrize("num", [1, 15, 200])
def test_keys_and_values_are_rounded_to_8_bits_as_pytorch_does(num) -> None:
    from pipeline.engine.kernels.triton_kernels import write_pages

    torch.manual_seed(0)
    found, expected = (
        [empty_cache((4, 5 * PAGE, 64), torch.bfloat16, torch.device("cuda"), int8=True) for _ in range(2)]
        for _ in range(2)
    )
    keys, values = torch.randn(250, 12, 64, dtype=torch.bfloat16, device="cuda").split((4, 8), dim=1)
    keys[7] = 0
    keys[8, 1, 3], values[9, 2, 5] = torch.nan, torch.inf
    moves = Moves(sources=torch.arange(num).cuda(), targets=torch.randperm(5 * PAGE)[:num].cuda())
    write_pages(*found, keys, values[:, :4], moves)
    write_plainly(*expected, keys, values[:, :4], moves)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.scales.nan_to_num(-1), other.scales.nan_to_num(-1))
        assert torch.equal(one.read(torch.float32).nan_to_num(-1), other.read(torch.float32).nan_to_num(-1))


@pytest.mark.parametrize("num", [1, 15, 200])
def test_keys_and_values_are_written_where_they_are_to_go(num) -> None:
    from pipeline.engine.kernels.triton_kernels import write_pages

    torch.manual_seed(0)
    found = [torch.zeros(4, 5 * PAGE, 64, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
    expected = [torch.zeros_like(one) for one in found]
    keys, values = torch.randn(250, 12, 64, dtype=torch.bfloat16, device="cuda").split((4, 8), dim=1)
    moves = Moves(sources=torch.randint(250, (num,)).cuda(), targets=torch.randperm(5 * PAGE)[:num].cuda())
    write_pages(*(Stored(numbers=one) for one in found), keys, values[:, :4], moves)
    write_plainly(*(Stored(numbers=one) for one in expected), keys, values[:, :4], moves)
    assert all(map(torch.equal, found, expected))
    assert int((found[0] != 0).any(-1).sum()) == 4 * num


@CUTE
@pytest.mark.parametrize("bias", [False, True])
def test_fused_products_agree_with_pytorchs(bias) -> None:
    hopper, shapes = fused_kernels("cute"), ((2048, 512), (1024, 512), (1024,))
    torch.manual_seed(0)
    x, weight, added = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for shape in shapes)
    given = added if bias else None
    close(hopper.product(x, weight, given), linear(x.float(), weight.float(), None if given is None else given.float()))
    total = torch.randn(2048, 1024, dtype=torch.bfloat16, device="cuda")
    expected = total.float() + linear(x.float(), weight.float())
    hopper.add_product(total, x, weight)
    close(total, expected)
    gate, up = linear(x.float(), weight.float()).chunk(2, -1)
    close(hopper.gated_product(x, weight), silu(gate) * up)


@CUTE
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (8, 8, 64), (8, 2, 64), (32, 32, 128)])
def test_fused_attention_agrees_with_pytorchs_whatever_stands_between(heads, kv_heads, head_dim) -> None:
    hopper, widths, firsts = fused_kernels("cute"), (48, 16, 720, 336), (0, 64, 128, 1024)
    torch.manual_seed(0)
    queries, keys, values = (
        torch.randn(2048, num, head_dim, dtype=torch.bfloat16, device="cuda") for num in (heads, kv_heads, kv_heads)
    )
    nobody = np.zeros(0, np.int32)
    segments = [
        Segment(token_ids=nobody, prefix=nobody, first=first, width=width, start=start, allocations=(), ends=True)
        for first, width, start in zip(firsts, widths, (0, 48, 0, 0), strict=True)
    ]
    found = hopper.causal_each(queries, keys, values, self_contained(segments, 2048, queries.device))
    for segment in segments:
        if not segment.start:
            own = slice(segment.first, segment.first + segment.width)
            expected = causal(queries[own].float(), keys[own].float(), values[own].float())
            close(found[own], expected)
            assert torch.equal(found[own], hopper.causal(queries[own], keys[own], values[own]))


@pytest.mark.parametrize("width", [1024, 14336, 4864])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_are_quantised_row_by_row_as_two_passes_do(width, dtype) -> None:
    from pipeline.engine.kernels.triton_kernels import gate_and_quantise

    torch.manual_seed(0)
    states = torch.randn(300, 2 * width, dtype=dtype, device="cuda") * 3
    gate, up = states.float().chunk(2, -1)
    (found, scale), (expected, theirs) = gate_and_quantise(states), quantise(silu(gate) * up)
    assert torch.allclose(scale, theirs, rtol=1e-5)
    assert (found.float() * scale - expected.float() * theirs).norm() < 0.01 * (expected.float() * theirs).norm()
    states[7, 3] = torch.nan
    assert gate_and_quantise(states)[1].isnan().flatten().tolist() == [row == 7 for row in range(300)]


def test_narrow_heads_are_left_to_pytorch() -> None:
    settings = replace(PLAIN, prefill_kernels="cute")
    model = load_model(str(checkpoint("llama")), settings)
    assert Engine(model, PLAIN).shapes.prefill_kernels == "torch"
    with pytest.raises(ValueError, match="heads of 64 or 128"):
        Engine(model, settings)


def close(found, expected) -> None:
    assert ((found.float() - expected).norm() / expected.norm()).item() < 1e-2


def test_retries_under_a_penalty_are_those_of_the_plain_engine() -> None:
    """The penalty of each slot is read inside the CUDA graph."""
    sampling = Sampling(cut_repetition=True, repetition_penalty=0.5)  # below 1: what was said is said again
    folder, found = str(checkpoint("llama")), []
    for settings in (PLAIN, FAST):
        settings = replace(settings, dtype="float32", decode_kernel="triton", sampling=sampling)
        oracle = oracle_of(folder, settings)
        engine = Engine(oracle.model, settings)
        questions = mixed_questions(max_new_tokens=(480,))
        found.append([a.text for a in engine.generate(oracle.sample(q) for q in questions)])
        assert engine.statistics().num_retries > 0
    assert found[0] == found[1]


def test_an_8_bit_engine_is_close_to_the_16_bit_one(folder) -> None:
    question = mixed_questions(max_new_tokens=(1,))
    found = []
    for quantize in (None, "fp8"):
        settings = replace(FAST, quantize=quantize)
        oracle = oracle_of(folder, settings)
        answers = Engine(oracle.model, settings).generate(oracle.sample(q) for q in question)
        found.append([a.mean_logprob for a in answers])
    assert found[0] == pytest.approx(found[1], abs=0.2)


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_bitsandbytes_layers_answer_on_a_gpu(folder, quantize) -> None:
    pytest.importorskip("bitsandbytes")
    settings = replace(PLAIN, quantize=quantize, cuda_graphs=True)
    oracle = oracle_of(folder, settings)
    assert oracle.model.capturable == (quantize == "4bit")
    found = exact(Engine(oracle.model, settings), samples_of(oracle))
    assert all(text is not None for text, _ in found.values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("quantize", [None, "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_over_two_cards_every_answer_is_that_of_one(folder, dtype, quantize) -> None:
    found = []
    for num_devices in (1, 2):
        settings = replace(FAST, dtype=dtype, quantize=quantize, num_devices=num_devices)
        oracle = oracle_of(folder, settings)
        samples = samples_of(oracle) + prefixes.mixed_samples(oracle)
        found.append(exact(Engine(oracle.model, settings), samples))
    assert found[0] == found[1]


@pytest.mark.parametrize("settings", [PLAIN, FAST], ids=["plain", "graphs"])
def test_answers_with_a_form_are_of_it_and_cost_the_others_no_bit(folder, settings) -> None:
    """The step is cut before its sampler: masks come from the host while the network is at work."""
    oracle = oracle_of(folder, settings)
    samples = [replace(sample, prompts=sample.prompts[:1]) for sample in samples_of(oracle)]
    mixed = with_forms(samples, (None, YES_NO, WORD, RECEIPT))

    def answers(asked, **sampling):
        engine = Engine(oracle.with_text, replace(settings, sampling=Sampling(**sampling)))
        return {one.id: (one.text, one.mean_logprob, one.finish_reason) for one in engine.generate(asked)}

    found = answers(mixed, row_forms=True)
    assert found == answers(mixed[::-1], row_forms=True)
    assert answers(mixed[::5], row_forms=True) == {one.id: found[one.id] for one in mixed[::5]}
    plain = answers([one for one in mixed if one.prompts[0].form is None])
    assert plain == {id: found[id] for id in plain}
    for one in mixed:
        form, (text, _, reason) = one.prompts[0].form, found[one.id]
        assert form is None or reason == "length" or is_of(form, text)
