"""The bundled pictures: every file has its truth, opens through the pipeline, and is answered as transformers would."""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText

from demo.checkpoint import PAD, byte_tokenizer
from demo.heldout import read_items
from demo.pictures import BROKEN, FOLDER, PAGES, SCENES
from demo.score import MODEL, to_samples
from pipeline.engine.engine import Engine
from pipeline.preprocess.image import ImageLimits, decode
from schemas.engine import EngineSettings
from schemas.errors import RowError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TRUTH = json.loads((FOLDER / "truth.json").read_text())


def test_every_file_has_its_truth() -> None:
    files = {path.name for path in FOLDER.iterdir()} - {"truth.json"}
    assert files == set(TRUTH)
    assert len(files) == 24


def test_only_the_broken_file_cannot_be_decoded() -> None:
    failed = []
    for file in TRUTH:
        try:
            decode((FOLDER / file).read_bytes(), ImageLimits())
        except RowError:
            failed.append(file)
    assert failed == [file for file, prompts in TRUTH.items() if not prompts] == [BROKEN]


@pytest.mark.parametrize("picture", [*PAGES, *SCENES], ids=lambda picture: picture.file)
def test_a_picture_stands_upright_in_the_size_it_was_drawn(picture: object) -> None:
    image = decode((FOLDER / picture.file).read_bytes(), ImageLimits())
    assert (image.width, image.height) == (picture.size.width, picture.size.height)


def test_the_engine_answers_as_transformers_does_and_right_padding_would_not() -> None:
    items = [item for item in read_items() if item.kind in ("read", "caption")][::40]
    samples = to_samples(MODEL, items)
    engine = Engine.load(str(MODEL), settings=EngineSettings(dtype="float32", batch_size=8))
    said = [answer.text for answer in engine.generate(samples)]
    network = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()
    assert said == [alone(network, sample, pads=0) for sample in samples]
    assert said != [alone(network, sample, pads=40) for sample in samples]


def alone(network: torch.nn.Module, sample: object, pads: int) -> str:
    """transformers' own answer to one image, with so many pads put where they do harm: behind the prompt."""
    mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (MEAN, STD))
    prompt = sample.prompts[0]
    ids = [*prompt.token_ids.tolist(), *[PAD] * pads]
    mask = [1] * len(prompt.token_ids) + [0] * pads
    size = sample.image_sizes[0]
    tokens = network.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.tensor([mask]),
        pixel_values=(torch.from_numpy(sample.tiles.copy()).permute(0, 3, 1, 2).float() - mean) / std,
        image_sizes=torch.tensor([[size.height, size.width]]),
        max_new_tokens=300,
        do_sample=False,
    )
    return byte_tokenizer().decode(tokens[0, len(ids) :], skip_special_tokens=True)
