"""The engine's batched answers to the bundled pictures are what transformers generates for one picture at a time."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from demo.pictures import BROKEN, FOLDER
from demo.questions import READ
from demo.score import MODEL
from pipeline.engine.engine import Engine
from pipeline.preprocess.image import ImageLimits, decode
from pipeline.preprocess.preprocessor import Preprocessor
from schemas.engine import EngineSettings
from schemas.sample import Sample

LIMITS = ImageLimits()
MOST = 64  # tokens of an answer
QUESTION = READ[0]
FILES = sorted(set(json.loads((FOLDER / "truth.json").read_text())) - {BROKEN})
UNLIKE = ("label-cable.bmp", "label-jam.png", "receipt-cafe.png", "shapes-three.png")  # prompts of four lengths


class Transformers:
    """The checkpoint as transformers loads it, in float32, with no code of the pipeline but the image decoder."""

    def __init__(self) -> None:
        self.processor = AutoProcessor.from_pretrained(MODEL, backend="pil")
        self.network = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()

    def answers(self, images: list[Image.Image], padding_side: str = "left") -> list[str]:
        """One call of generate; right padding stands between each shorter prompt and its answer."""
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        prompt = self.processor.apply_chat_template(message, add_generation_prompt=True)
        self.processor.tokenizer.padding_side = padding_side
        inputs = self.processor(images=images, text=[prompt] * len(images), padding=True, return_tensors="pt")
        with torch.inference_mode():
            tokens = self.network.generate(**inputs, max_new_tokens=MOST, do_sample=False)
        return self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def transformers() -> Transformers:
    return Transformers()


@pytest.fixture(scope="module")
def alone(transformers: Transformers) -> dict[str, str]:
    """transformers' own answer to each picture, one picture a call."""
    return {file: transformers.answers([image(file)])[0] for file in FILES}


def image(file: str) -> Image.Image:
    return decode((FOLDER / file).read_bytes(), LIMITS)


def engine_answers(files: list[str], batch_size: int) -> dict[str, str | None]:
    preprocessor = Preprocessor.load(str(MODEL), None, LIMITS, MOST)
    engine = Engine.load(str(MODEL), settings=EngineSettings(dtype="float32", batch_size=batch_size))
    found = {answer.id: answer.text for answer in engine.generate(sample(preprocessor, file) for file in files)}
    engine.close()
    return found


def sample(preprocessor: Preprocessor, file: str) -> Sample:
    images = preprocessor.load_images([(FOLDER / file).read_bytes()])
    return Sample(
        id=file,
        prompts=(preprocessor.build_prompt("read", QUESTION, images),),
        image_sizes=images.image_sizes,
        tiles_per_image=images.tiles_per_image,
        tiles=images.tiles,
        image_sha256=images.image_sha256,
    )


def test_in_a_batch_every_bundled_picture_gets_transformers_answer_to_it_alone(alone: dict[str, str]) -> None:
    assert engine_answers(FILES, batch_size=8) == alone


def test_transformers_padding_on_the_right_changes_answers_and_ours_are_those_on_the_left(
    transformers: Transformers, alone: dict[str, str]
) -> None:
    images = [image(file) for file in UNLIKE]
    left, right = (transformers.answers(images, side) for side in ("left", "right"))
    assert left != right
    assert left == list(engine_answers(list(UNLIKE), len(UNLIKE)).values()) == [alone[file] for file in UNLIKE]
