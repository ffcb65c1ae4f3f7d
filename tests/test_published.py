"""From rows to tokens for each published checkpoint: ours are those that transformers gives by itself."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.engine.network.load import load_model
from pipeline.preprocess.facts import read_facts
from pipeline.preprocess.template import choose_template
from pipeline.stages.preprocess import Preprocess
from schemas.job import JobSettings
from schemas.request import ImageRef, Request, requests_to_table
from schemas.sample import table_to_samples
from tests.chats import ONE_QUESTION, QUESTION, THREE_TURNS
from tests.engine.oracle import FP32, Oracle
from tests.images import encoded
from tests.published import PUBLISHED, Published, spelling_tokenizer, write_config, write_shrunk

NEW_TOKENS = 8
FOUR = ("What is shown?", "Where?", "How many are there, and why?", "Read it.")
# Of one colour each: scaling them is exact, whoever does it, so that the tokens can be equal with Pillow's as well.
PICTURES = (Image.new("RGB", (90, 60), (200, 30, 90)), Image.new("RGB", (40, 170), (10, 120, 240)))
IMAGE = {"type": "image"}

CHECKPOINTS = [pytest.param(one, id=one.name) for one in PUBLISHED]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """A published checkpoint with small weights, and transformers' own answers to it."""

    published: Published
    folder: Path
    judge: Oracle

    def answers(self, *requests: Request, prompts: tuple[str, ...] = ()) -> list[str]:
        """The tokens of every answer, as numbers, through our stage and our engine, all rows at once."""
        settings = {
            "input": ("a",),
            "output": "o",
            "model": str(self.folder),
            "max_new_tokens": NEW_TOKENS,
            "chat_template": self.published.format,
            "prompt": prompts,
        }
        samples = table_to_samples(Preprocess(JobSettings.model_validate(settings))(requests_to_table(requests)))
        engine = self.judge.engine()
        answers = list(engine.generate(samples))
        engine.close()
        return [str(answer.text) for answer in answers]

    def expected(self, rendered: str, num_images: int) -> str:
        """The tokens of transformers' processor and generate for the written-out prompt, but for the end token."""
        inputs = self.judge.processor(images=list(PICTURES[:num_images]) or None, text=rendered, return_tensors="pt")
        unused = list(range(self.judge.model.num_tokens, self.published.text["vocab_size"]))
        with torch.inference_mode():
            output = self.judge.model.network.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, suppress_tokens=unused
            )
        tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
        return " ".join(str(token) for token in tokens if token not in self.judge.model.stop_ids)


@pytest.fixture(scope="module", params=CHECKPOINTS)
def shrunk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shrunk:
    folder = tmp_path_factory.mktemp(request.param.name)
    write_shrunk(request.param, folder)
    return Shrunk(published=request.param, folder=folder, judge=Oracle(load_model(str(folder), FP32), str(folder)))


def row(id: str, num_images: int, **asked: str) -> Request:
    return Request(id=id, images=tuple(ImageRef(data=encoded(image)) for image in PICTURES[:num_images]), **asked)


def test_rows_with_one_two_and_no_images_and_three_turns_share_a_batch(shrunk: Shrunk) -> None:
    one, three = ONE_QUESTION[shrunk.published.format], THREE_TURNS[shrunk.published.format]
    turns = [
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    found = shrunk.answers(
        row("one image", 1, prompt=QUESTION),
        row("two images", 2, prompt=QUESTION),
        row("no image", 0, prompt=QUESTION),
        row("three turns", 1, messages=json.dumps(turns)),
    )
    expected = [
        shrunk.expected(one, 1),
        shrunk.expected(one.replace("<image>\n", "<image>\n<image>\n"), 2),
        shrunk.expected(one.replace("<image>\n", ""), 0),
        shrunk.expected(three, 1),
    ]
    assert found == expected
    assert len(set(expected)) == len(expected)


def test_four_prompts_about_an_image_are_answered_as_if_asked_alone(shrunk: Shrunk) -> None:
    found = shrunk.answers(row("a", 1), prompts=FOUR)
    one = ONE_QUESTION[shrunk.published.format]
    assert found == [shrunk.expected(one.replace(QUESTION, prompt), 1) for prompt in FOUR]
    assert len(set(found)) > 1


@pytest.mark.parametrize("published", CHECKPOINTS)
def test_the_whole_config_is_recognised(published: Published, tmp_path: Path) -> None:
    write_config(published, tmp_path, shrunk=False, tokenizer=spelling_tokenizer(published))
    facts = read_facts(str(tmp_path), None)
    assert ONE_QUESTION[choose_template("auto", facts)] == ONE_QUESTION[published.format]
    assert facts.image_token_id == published.image_token_id == published.special["<image>"]
    ends = {published.special[token] for token in (published.eos, "<|end_of_text|>") if token in published.special}
    assert set(facts.eos_token_ids) == ends  # Llama-3's config leaves out the second
    assert (facts.anyres.tile, facts.anyres.patch, len(facts.anyres.grids)) == (336, 14, 5)
    assert facts.context == published.text["max_position_embeddings"]
