"""Fewer image tokens: the rule in plain torch over transformers' own tower, token for token, and in any company."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlavaNextForConditionalGeneration

from demo.checkpoint import Shape
from pipeline.engine.engine import Engine
from pipeline.engine.network.features import shown_patches
from pipeline.engine.network.load import load_model
from pipeline.engine.network.selection import tiles_over_base
from pipeline.engine.network.vision import normalise
from pipeline.preprocess.geometry import Anyres, kept_tokens, num_image_tokens, num_tiles
from schemas.engine import EngineSettings
from schemas.errors import Refused
from schemas.sample import Sample, Size
from tests.engine.oracle import SIZES, Oracle, Question, mixed_questions, picture
from tests.tiny import build, checkpoint

SHARE = 0.4
FEWER = EngineSettings(dtype="float32", image_tokens=SHARE)
CROWDED = replace(FEWER, slots=5, prefill_tokens=1024, bucket=32, tiles_per_call=8, look_ahead=64)
TEXTS = ("What is this?", "Where is it?", "How many are there?")


@pytest.fixture(scope="module")
def fewer() -> Oracle:
    folder = str(checkpoint())
    return Oracle(load_model(folder, FEWER), folder)


def shrunk(oracle: Oracle, sample: Sample) -> Sample:
    """The sample, each of its images with as many tokens as are kept."""
    image, anyres = oracle.model.image_token_id, oracle.model.vision.anyres
    whole = [num_image_tokens(size, replace(anyres, share=1.0)) for size in sample.image_sizes]
    kept = [num_image_tokens(size, anyres) for size in sample.image_sizes]
    prompts = []
    for prompt in sample.prompts:
        at = np.flatnonzero(prompt.token_ids == image)
        starts = np.cumsum([0, *whole[:-1]])
        dropped = [at[start + few : start + all] for start, few, all in zip(starts, kept, whole, strict=True)]
        ids = np.delete(prompt.token_ids, np.concatenate(dropped))
        prompts.append(replace(prompt, token_ids=ids, num_image_tokens=sum(kept)))
    return replace(sample, prompts=tuple(prompts))


@pytest.fixture(scope="module")
def network() -> LlavaNextForConditionalGeneration:
    """transformers' own, with attention that can be looked at."""
    return LlavaNextForConditionalGeneration.from_pretrained(
        str(checkpoint()), dtype=torch.float32, attn_implementation="eager"
    ).eval()


def plainly(oracle: Oracle, network: LlavaNextForConditionalGeneration, sample: Sample) -> torch.Tensor:
    """The features of the kept patches, by the rule as it is told in words."""
    found, first_tile, anyres = [], 0, oracle.model.vision.anyres
    side = anyres.patches_per_side
    for size, count in zip(sample.image_sizes, sample.tiles_per_image, strict=True):
        tiles = torch.from_numpy(sample.tiles[first_tile : first_tile + count].copy())
        first_tile += count
        tower = network.model.vision_tower
        seen = tower(normalise(tiles, oracle.model.vision._scale), output_hidden_states=True, output_attentions=True)
        layer = network.config.vision_feature_layer
        features = network.model.multi_modal_projector(seen.hidden_states[layer][:, 1:])
        last = seen.attentions[len(seen.hidden_states) + layer - 1][:, :, 0, 1:].sum(1)
        first = seen.attentions[0][:, :, 0, 1:].sum(1)
        budget = kept_tokens(size, anyres)
        best = sorted(range(side * side), key=lambda i: (-last[0, i].item(), i))[: budget.base]
        found += [features[0, i] for i in sorted(best)]
        found += [features[tile, i] for tile, i in grid_patches(first, last, size, anyres, budget.grid)]
    return torch.stack(found)


def grid_patches(first, last, size: Size, anyres: Anyres, seats: int) -> list[tuple[int, int]]:
    """Tile and patch of those that are kept of the grid, in reading order, seat by seat."""
    side, tiles = anyres.patches_per_side, len(last) - 1
    over = tiles_over_base(size, anyres)
    half = sorted(range(side * side), key=lambda i: (-first[0, i].item(), i))[: side * side // 2]
    votes = [sum(over[i] == tile for i in half) for tile in range(tiles)]
    index, owners = shown_patches(size, anyres)
    places = list(zip((owners + 1).tolist(), (index % (side * side)).tolist(), strict=True))
    best = sorted(range(len(places)), key=lambda n: (-last[places[n]].item(), n))
    waiting = {tile: [n for n in best if places[n][0] == tile + 1] for tile in range(tiles)}
    taken: list[int] = []
    counts = [0] * tiles
    for _ in range(seats):
        tile = max((t for t in range(tiles) if waiting[t]), key=lambda t: (votes[t] / (2 * counts[t] + 1), -t))
        taken.append(waiting[tile].pop(0))
        counts[tile] += 1
    return [places[n] for n in sorted(taken)]


def test_answers_are_those_of_transformers_over_the_patches_that_the_rule_keeps(fewer: Oracle, network) -> None:
    questions = [*mixed_questions(), Question(id="two", images=(picture((300, 60), 3), picture((64, 90), 4)))]
    samples = [shrunk(fewer, fewer.sample(question)) for question in questions]
    answers = list(Engine(fewer.model, CROWDED).generate(samples))
    for sample, answer in zip(samples, answers, strict=True):
        ids = torch.from_numpy(sample.prompts[0].token_ids.astype(np.int64))[None]
        with torch.inference_mode():
            embedded = network.get_input_embeddings()(ids)
            embedded[0, ids[0] == fewer.model.image_token_id] = plainly(fewer, network, sample)
            tokens = network.generate(inputs_embeds=embedded, max_new_tokens=12, do_sample=False)[0].tolist()
        assert answer.text == " ".join(str(id) for id in tokens if id not in fewer.model.stop_ids)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_has_the_numbers_that_it_has_alone(dtype) -> None:
    settings, folder = replace(CROWDED, dtype=dtype), str(checkpoint())
    oracle = Oracle(load_model(folder, settings), folder)
    questions = [*mixed_questions(max_new_tokens=(6,))]
    questions += [replace(one, id=f"{one.id}-thrice", texts=TEXTS) for one in questions[:3]]
    questions += [Question(id="none"), Question(id="two", images=(picture((300, 60), 3), picture((64, 90), 4)))]
    samples = [shrunk(oracle, one) if len(one.tiles) else one for one in map(oracle.sample, questions)]

    def exact(engine: Engine, rows: list[Sample]):
        return {(one.id, one.prompt_id): (one.text, one.mean_logprob) for one in engine.generate(rows)}

    together = exact(Engine(oracle.model, settings), samples)
    alone = {}
    for sample in reversed(samples):
        alone |= exact(Engine(oracle.model, settings), [sample])
    assert alone == together


@pytest.mark.parametrize("size", [*SIZES, (1, 5000), (5000, 1), (336, 336)])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.4, 0.99])
def test_an_image_keeps_its_share_of_tokens_whatever_its_shape(size, share) -> None:
    anyres = Anyres(tile=56, patch=14, grids=tuple(Size(56 * w, 56 * h) for h, w in ((1, 2), (2, 1), (2, 2), (1, 3))))
    image = Size(*size)
    whole, kept = num_image_tokens(image, anyres), num_image_tokens(image, replace(anyres, share=share))
    assert 1 <= kept <= max(1, math.floor(share * whole))
    over = tiles_over_base(image, anyres)
    assert len(over) == 16
    assert 0 <= over.min() <= over.max() < num_tiles(image, anyres) - 1


def test_a_tower_without_a_class_token_is_refused_by_name() -> None:
    folder = str(build(Shape()))
    model = load_model(folder, EngineSettings(dtype="float32"))
    config = model.network.config
    config.vision_feature_select_strategy = "full"
    config.vision_config.model_type = "siglip_vision_model"
    with pytest.raises(Refused, match="siglip_vision_model has none"):
        type(model.vision)(model.network, model.vision._scale, SHARE)
