"""The training forward pass is transformers' own, with less work."""

import random

import numpy as np
import pytest
import torch
from transformers import LlavaNextForConditionalGeneration

from demo.checkpoint import BOS, IMAGE, USER, Shape, anyres_of, build_model, build_processor, byte_tokenizer
from demo.examples import IGNORED, byte_ids, feature_order, make_batch, make_example, prefix_room
from demo.fonts import Family
from demo.network import Trainee, losses, to_tensors
from demo.questions import ask
from demo.render import render
from pipeline.preprocess.geometry import num_image_tokens
from schemas.sample import Size
from tests.demo.conftest import stock_of

SHAPE = Shape(feature_layer=-1)
ANYRES = anyres_of(SHAPE)


def trainee() -> Trainee:
    tokenizer = byte_tokenizer()
    images = build_processor(SHAPE, tokenizer).image_processor
    return Trainee(build_model(SHAPE, len(tokenizer), 0), images.image_mean, images.image_std).eval()


def examples(family: Family) -> list:
    rng = random.Random(4)
    pictures = [render(rng, stock_of(family, SHAPE), 1.0) for _ in range(12)]
    made = [make_example(p, ask(rng, p.content, reword=True), ANYRES) for p in pictures]
    return [(p, e) for p, e in zip(pictures, made, strict=True) if len(e.tiles) == 5]


def own_logits(model: LlavaNextForConditionalGeneration, tiles: torch.Tensor, ids: list[int], size: Size):
    return model(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        pixel_values=tiles,
        image_sizes=torch.tensor([[size.height, size.width]]),
    ).logits[0]


def test_bytes_have_the_ids_that_the_tokenizer_gives_them() -> None:
    text = "".join(map(chr, range(32, 127))) + "\n\u00e9\u20ac"
    assert byte_tokenizer()(text, add_special_tokens=False)["input_ids"] == byte_ids(text)


def test_features_are_as_many_as_the_models_image_tokens() -> None:
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 900, (300, 2)).tolist():
        size = Size(width, height)
        shown = feature_order(size, ANYRES)
        assert len(shown) == num_image_tokens(size, ANYRES)
        assert len(set(shown[shown < -1].tolist())) == (shown < -1).sum()


def test_every_question_gets_transformers_own_logits(family: Family) -> None:
    network = trainee()
    rows = examples(family)
    batch = to_tensors(make_batch([e for _, e in rows], prefix_room(5, ANYRES)))
    with torch.no_grad():
        logits, _ = network(batch)
        for row, (picture, example) in enumerate(rows):
            tiles = (torch.from_numpy(example.tiles).permute(0, 3, 1, 2).float() - network.mean) / network.std
            features = len(example.sources) - 3
            for number in range(1, len(example.kinds) + 1):
                mine = example.segments == number
                prefix = [BOS, USER, *[IMAGE] * features, *byte_ids("\n")]
                ids = [*prefix, *example.tokens[mine].tolist()]
                expected = own_logits(network.model, tiles, ids, Size(*picture.image.size))[len(prefix) :]
                torch.testing.assert_close(logits[row][mine], expected, atol=2e-5, rtol=1e-4)


def test_the_gradients_are_transformers_own(family: Family) -> None:
    network = trainee()
    picture, example = examples(family)[0]
    mine = example.segments == 1
    answers = example.labels[mine] != IGNORED
    network(to_tensors(make_batch([example], prefix_room(5, ANYRES))))[0][0][mine][answers].square().sum().backward()
    found = {name: p.grad.clone() for name, p in network.model.named_parameters() if p.grad is not None}
    network.zero_grad()
    tiles = (torch.from_numpy(example.tiles).permute(0, 3, 1, 2).float() - network.mean) / network.std
    prefix = [BOS, USER, *[IMAGE] * (len(example.sources) - 3), *byte_ids("\n")]
    ids = [*prefix, *example.tokens[mine].tolist()]
    own_logits(network.model, tiles, ids, Size(*picture.image.size))[len(prefix) :][answers].square().sum().backward()
    expected = {name: p.grad for name, p in network.model.named_parameters() if p.grad is not None}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_a_probe_asks_for_the_letters_that_stand_on_its_patch(family: Family) -> None:
    for picture, example in examples(family):
        told = example.letters[example.letters > 0]
        assert len(told) <= len(picture.letters)
        assert bool(len(told)) == bool(picture.letters)
        assert example.probes.max() < 5 * ANYRES.patches_per_side**2


def test_questions_weigh_between_equal_tokens_and_equal_answers(family: Family) -> None:
    _, example = examples(family)[0]
    for number in range(1, len(example.kinds) + 1):
        mine = (example.segments == number) & (example.labels != IGNORED)
        assert example.weights[mine].sum() == pytest.approx(mine.sum() ** 0.5, rel=1e-5)


def test_both_losses_are_finite_and_positive(family: Family) -> None:
    batch = to_tensors(make_batch([e for _, e in examples(family)], prefix_room(5, ANYRES)))
    for loss in losses(*trainee()(batch), batch):
        assert 0 < float(loss) < 20
