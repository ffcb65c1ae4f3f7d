"""Random workloads, by seed: whatever is asked together, a row has the numbers it has alone, and all memory is free."""

import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.engine.admit import admit, group
from pipeline.engine.engine import Engine
from pipeline.engine.kernels.pages import num_pages
from pipeline.engine.model_runner import ModelRunner
from pipeline.engine.network.load import LoadedModel, load_model
from pipeline.engine.network.vision import normalise
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.shapes import resolve_shapes
from pipeline.stages.engine_settings import sampling_of
from pipeline.stages.preprocess import Preprocess
from schemas.engine import EngineSettings
from schemas.job import JobSettings
from schemas.request import ImageRef, Request, requests_to_table
from schemas.sample import Prompt, Sample, table_to_samples
from tests.images import encoded, noise
from tests.tiny import checkpoint

SIZES = ((1, 1), (1, 900), (900, 2), (56, 56), (57, 111), (40, 200), (168, 50), (100, 80), (2, 7))
WORDS = ("What", "is", "this?", "über", "日本", "\n", "🙂", "<image>", "</s>", "<user>", "e\u0301", "0")
SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["a"]}'
# Ways that exclude each other of saying what an answer is and where it ends.
ENDS = (
    {},
    {"stop": ("e", "<user>", "\n"), "min_new_tokens": 3},
    {"json_schema": SCHEMA},
    {"choices": ("yes", "no", "perhaps")},
    {"bad_words": ("e", "é")},
    {"answer_prefix": "It is"},
    {"cut_repetition": True},
)
DRAWN = ({}, {"temperature": 0.8, "top_p": 0.9}, {"temperature": 2.0, "top_k": 5, "num_answers": 3, "seed": 2**40})


@functools.cache
def model_of(backbone, dtype) -> LoadedModel:
    return load_model(str(checkpoint(backbone)), EngineSettings(dtype=dtype))


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "plain": encoded,
    "lossy": lambda picture: encoded(picture, "JPEG"),
    "palette": lambda picture: encoded(picture.quantize(16)),
    "cmyk": lambda picture: encoded(picture.convert("CMYK"), "JPEG"),
    "16 bits": lambda picture: encoded(Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)),
    "moving": lambda picture: encoded(picture, "GIF", save_all=True, append_images=[noise(9, 9)]),
    "clear": lambda picture: encoded(Image.merge("RGBA", (*picture.split(), picture.convert("L")))),
    "cut": lambda picture: encoded(picture)[:60],
    "none": lambda picture: b"",
}


def image(draw: random.Random) -> bytes:
    """An image file of any shape and kind, lying on any side; some can be read by nobody."""
    picture, kind = noise(*draw.choice(SIZES), seed=draw.randrange(99)), draw.choice((*KINDS, "turned", *["plain"] * 4))
    if kind in KINDS:
        return KINDS[kind](picture)
    exif = Image.Exif()
    exif[0x0112] = draw.randint(1, 8)
    return encoded(picture, "JPEG", exif=exif)


def text(draw: random.Random) -> str:
    return "Say " + " ".join(draw.choice(WORDS) for _ in range(draw.randint(0, 9)))


def messages(draw: random.Random, num_images: int) -> str:
    """A conversation of one to three questions, its images anywhere in them."""
    turns, num_turns = [], draw.randint(0, 2)
    for number in range(num_turns + 1):
        here = num_images if number == num_turns else draw.randint(0, num_images)
        num_images -= here
        parts = [{"type": "image"}] * here + [{"type": "text", "text": text(draw)} for _ in range(draw.randint(1, 2))]
        draw.shuffle(parts)
        turns += [{"role": "user", "content": parts}, {"role": "assistant", "content": text(draw)}]
    system = [{"role": "system", "content": text(draw)}] if draw.random() < 0.3 else []
    return json.dumps(system + turns[:-1])


def job(draw: random.Random, backbone: str, **changes: object) -> JobSettings:
    settings = {"input": ("x",), "output": "y", "model": str(checkpoint(backbone))}
    settings |= {"max_new_tokens": draw.choice((3, 9, 9, 24)), "system": draw.choice((None, "", "Be brief. " * 8))}
    settings |= {"repetition_penalty": draw.choice((1, 1, 1.3)), "logprobs": draw.choice((None, None, 2))}
    if draw.random() < 0.5:
        settings["prompt"] = tuple(f"q{i}={text(draw)}" for i in range(draw.randint(1, 3)))
    return JobSettings.model_validate({**settings, **draw.choice(ENDS), **draw.choice(DRAWN), **changes})


def rows(draw: random.Random) -> list[Request]:
    """Rows of up to four images with questions of their own, some of which cannot be answered."""
    found = []
    for number in range(draw.randint(2, 5)):
        images = tuple(ImageRef(data=image(draw)) for _ in range(draw.choice((0, 1, 1, 1, 2, 4))))
        asked = {"messages": messages(draw, len(images))} if draw.random() < 0.5 else {"prompt": text(draw)}
        options = json.dumps({"max_tokens": draw.choice((1, 2, 3, 99))}) if draw.random() < 0.2 else None
        found.append(Request(id=f"row-{number}", images=images, options=options, **asked))
    return found


def engine_settings(draw: random.Random, samples: Sequence[Sample], **fixed) -> EngineSettings:
    """Settings of an engine that is just large enough for the rows, or a little too small for some."""
    lengths = [len(p.token_ids) + p.max_new_tokens for s in samples for p in s.prompts]
    bucket = draw.choice((16, 32))
    capacity = max(16, min(1024, max(lengths) - draw.choice((0, 0, 1, 20))))
    least = num_pages(-(-capacity // bucket) * bucket)
    return EngineSettings(
        slots=draw.choice((1, 2, 7, 17)),
        pages=least + draw.choice((0, 0, 1, 2 * least)),
        capacity=capacity,
        bucket=bucket,
        prefill_tokens=draw.choice((None, 64, 1024)),
        tiles_per_call=draw.choice((1, 3, 8)),
        kv_cache_dtype=draw.choice((None, None, "int8")),
        **fixed,
    )


def in_company(draw: random.Random, model: LoadedModel, settings: EngineSettings, samples: Sequence[Sample]):
    """Answers, by sample and prompt, of rows that come one after the other while others leave, in any order; their
    tokens are read at once, or late as on a GPU."""
    shapes = resolve_shapes(model, settings)
    scheduler = Scheduler(ModelRunner(model, settings.sampling, shapes), shapes, on_gpu=draw.random() < 0.5)
    coming = [*samples, *(replace(sample, id=f"{sample.id}, gone") for sample in samples[:3])]
    draw.shuffle(coming)
    there = []
    while coming or not scheduler.is_idle:
        for sample in [coming.pop() for _ in range(min(len(coming), draw.randint(0, 2)))]:
            own = admit(sample, model, settings.sampling, shapes, caller=draw.randint(0, 1))
            scheduler.add(group(own, model.image_token_id, shapes))
            there.append((sample, own))
        gone = [one for sample, own in there for one in own if sample.id.endswith("gone")]
        scheduler.abort(gone if draw.random() < 0.1 else ())
        scheduler.step(more_to_come=bool(coming) and draw.random() < 0.5)
    assert (scheduler.running, scheduler.num_free_pages) == ((), shapes.pages)
    answers = [one.answer() for sample, own in there for one in own if not sample.id.endswith("gone")]
    return {(answer.id, answer.prompt_id): answer for answer in answers}


@pytest.mark.parametrize("seed", range(6))
def test_a_row_has_the_numbers_it_has_alone(seed: int) -> None:
    draw = random.Random(seed)
    backbone = draw.choice(("llama", "mistral", "qwen2"))
    settings, requests = job(draw, backbone), rows(draw)
    preprocess = Preprocess(settings)
    samples = table_to_samples(preprocess(requests_to_table(requests)))
    for request, sample in zip(requests, samples, strict=True):
        (alone,) = table_to_samples(preprocess(requests_to_table([request])))
        assert repr(alone) == repr(sample)
        assert np.array_equal(alone.tiles, sample.tiles)
    dtype = draw.choice(("float32", "bfloat16"))
    model, fixed = model_of(backbone, dtype), {"dtype": dtype, "sampling": sampling_of(settings)}
    shaped = engine_settings(draw, samples, **fixed)
    engine = Engine(model, shaped)
    expected = [answer for sample in samples for answer in engine.generate([sample])]
    assert [(one.id, one.prompt_id) for one in expected] == [(s.id, p.id) for s in samples for p in s.prompts]
    assert in_company(draw, model, shaped, samples) == {(one.id, one.prompt_id): one for one in expected}
    assert list(engine.generate(samples)) == expected


def transformers_text(model: LoadedModel, sample: Sample, prompt: Prompt, penalty: float) -> str:
    """What transformers' own generate says to a prompt, over the sample's tiles."""
    ids, inputs = torch.tensor(prompt.token_ids[None].astype(np.int64)), {}
    if len(sample.tiles):
        tiles = normalise(torch.from_numpy(sample.tiles.copy()), model.vision._scale).split(sample.tiles_per_image)
        sizes = torch.tensor([[size.height, size.width] for size in sample.image_sizes])
        inputs = {"pixel_values": torch.nn.utils.rnn.pad_sequence(list(tiles), batch_first=True), "image_sizes": sizes}
    with torch.inference_mode():
        found = model.network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=prompt.max_new_tokens,
            do_sample=False,
            repetition_penalty=float(penalty),
            **inputs,
        )
    return str(model.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("seed", range(100, 102))
def test_greedy_answers_are_those_of_transformers_one_by_one(seed: int) -> None:
    draw = random.Random(seed)
    backbone = draw.choice(("llama", "mistral", "qwen2"))
    plain = {name: JobSettings.model_fields[name].default for way in (*ENDS, *DRAWN) for name in way}
    settings, requests = job(draw, backbone, **plain), rows(draw)
    samples = table_to_samples(Preprocess(settings)(requests_to_table(requests)))
    model, sampling = model_of(backbone, "float32"), sampling_of(settings)
    shaped = replace(engine_settings(draw, samples, dtype="float32", sampling=sampling), kv_cache_dtype=None)
    asked = [(sample, prompt) for sample in samples for prompt in sample.prompts]
    for answer, (sample, prompt) in zip(Engine(model, shaped).generate(samples), asked, strict=True):
        if answer.status == "ok":
            told = replace(prompt, max_new_tokens=answer.num_generated_tokens or 1)
            assert answer.text == transformers_text(model, sample, told, settings.repetition_penalty)
