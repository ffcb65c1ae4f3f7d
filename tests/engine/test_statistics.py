"""The operations that statistics count are those that torch counts while transformers runs the same network."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.engine.arithmetic import arithmetic
from pipeline.engine.engine import Engine
from pipeline.engine.network.decoder import decoder_shape
from tests.engine.oracle import FP32, Question, load_oracle, picture


@pytest.mark.parametrize("backbone", ["mistral", "llama", "qwen2"])
def test_a_prompt_counts_as_much_as_torch_counts_for_it(backbone) -> None:
    oracle = load_oracle(backbone)
    question = Question(id="one", images=(picture((100, 80)),))
    inputs = oracle.inputs(question, question.texts[0])
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        oracle.model.network(**inputs, logits_to_keep=1)
    tiles, tokens = inputs["pixel_values"].shape[1], inputs["input_ids"].shape[1]
    config = oracle.model.network.config
    work = arithmetic(config, decoder_shape(config.get_text_config()), config.get_text_config().vocab_size)
    # torch counts attention as if it were not causal, and the patch embedding, which ours leaves out as too small.
    # transformers runs the last layer to its end for all tokens.
    ours = work.teraflop(tiles=tiles, tokens=tokens, pairs=tokens**2, sampled=1) + (tokens - 1) * work.last / 1e12
    assert ours == pytest.approx(counter.get_total_flops() / 1e12, rel=0.1)


def test_an_engine_counts_its_prompts_and_its_steps() -> None:
    oracle = load_oracle("llama")
    question = Question(id="one", images=(picture((100, 80)),), max_new_tokens=(1,))
    engine = Engine(oracle.model, FP32)
    list(engine.generate([oracle.sample(question)]))
    found = engine.statistics()
    assert found.possible_teraflop == 0  # the rate of a CPU is not measured
    shape = oracle.model.decoder.shape
    work = arithmetic(oracle.model.network.config, shape, oracle.model.num_tokens)
    length = found.num_prompt_tokens
    pairs = length * (length + 1) // 2
    assert found.teraflop == pytest.approx(work.teraflop(tiles=found.num_tiles, tokens=length, pairs=pairs, sampled=1))
