"""transformers by itself, one question at a time: makes the engine's samples and knows their answers."""

from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, PreTrainedTokenizerFast

from pipeline.engine.engine import Engine
from pipeline.engine.network.load import LoadedModel, load_model
from schemas.engine import EngineSettings, Sampling
from schemas.sample import Prompt, Sample, Size, no_tiles
from tests.tiny import checkpoint

SIZES = ((100, 80), (40, 200), (300, 60), (56, 56), (33, 500), (7, 5), (160, 160))
FP32 = EngineSettings(dtype="float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a row asks; several texts make several prompts about the same images."""

    id: str
    images: tuple[Image.Image, ...] = ()
    texts: tuple[str, ...] = ("What is this?",)
    max_new_tokens: tuple[int, ...] = field(default=(12,))


class Spelled:
    """Decodes token ids to their numbers, so that equal texts are equal tokens."""

    @staticmethod
    def decode(token_ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(map(str, token_ids))


class Oracle:
    """A checkpoint's own processor around the network that the engine runs."""

    def __init__(self, model: LoadedModel, folder: str) -> None:
        self.model = replace(model, tokenizer=cast(PreTrainedTokenizerFast, Spelled()))
        self.with_text = model
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil")

    def engine(self, settings: EngineSettings = FP32, **sampling) -> Engine:
        return Engine(self.model, replace(settings, sampling=Sampling(**sampling)))

    def inputs(self, question: Question, text: str):
        prompt = "<user>" + "<image>\n" * len(question.images) + text + "<assistant>"
        images = list(question.images) or None
        return self.processor(images=images, text=prompt, return_tensors="pt")

    def token_ids(self, question: Question, index: int = 0, **settings) -> list[int]:
        """The new tokens of transformers' own generate for one prompt of the question."""
        inputs = self.inputs(question, question.texts[index])
        limits = {"max_new_tokens": question.max_new_tokens[index % len(question.max_new_tokens)], "do_sample": False}
        with torch.inference_mode():
            output = self.model.network.generate(**inputs, **(limits | settings))
        return output[0, inputs["input_ids"].shape[1] :].tolist()

    def spelled(self, question: Question, index: int = 0, **settings) -> str:
        """The same as the engine spells it: without an end token."""
        stops = self.model.stop_ids
        return " ".join(str(i) for i in self.token_ids(question, index, **settings) if i not in stops)

    def logprob(self, question: Question, token_ids: list[int]) -> float:
        """The mean log-probability of an answer, from one pass over prompt and answer without any cache."""
        inputs = self.inputs(question, question.texts[0])
        ids = torch.cat([inputs["input_ids"], torch.tensor([token_ids])], dim=1)
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            logprobs = self.model.network(**inputs).logits[0, -len(token_ids) - 1 : -1].log_softmax(-1)
        return logprobs.gather(1, ids[0, -len(token_ids) :, None]).mean().item()

    def sample(self, question: Question) -> Sample:
        tiles = [self._tiles(image) for image in question.images]
        return Sample(
            id=question.id,
            prompts=tuple(self._prompt(question, i) for i in range(len(question.texts))),
            image_sizes=tuple(Size(*image.size) for image in question.images),
            tiles_per_image=tuple(len(image) for image in tiles),
            tiles=np.concatenate(tiles) if tiles else no_tiles(),
        )

    def _prompt(self, question: Question, index: int) -> Prompt:
        ids = self.inputs(question, question.texts[index])["input_ids"][0].numpy().astype(np.int32)
        return Prompt(
            id=f"p{index}",
            text=question.texts[index],
            token_ids=ids,
            num_image_tokens=int((ids == self.model.image_token_id).sum()),
            max_new_tokens=question.max_new_tokens[index % len(question.max_new_tokens)],
        )

    def _tiles(self, image: Image.Image) -> np.ndarray:
        """The processor's tiles before it rescales and normalises them: whole numbers up to 255."""
        raw = self.processor.image_processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
        tiles = raw["pixel_values"][0].transpose(0, 2, 3, 1)
        assert (tiles == tiles.astype(np.uint8)).all()
        return tiles.astype(np.uint8)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A random picture of (width, height) pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def mixed_questions(**fields) -> list[Question]:
    """Every size once, with questions of unequal length."""
    return [
        Question(id=f"row-{i}", images=(picture(size, i),), texts=("What is this? " * (1 + i % 3),), **fields)
        for i, size in enumerate(SIZES)
    ]


def load_oracle(backbone) -> Oracle:
    folder = str(checkpoint(backbone))
    return Oracle(load_model(folder, FP32), folder)
