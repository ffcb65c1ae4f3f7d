"""The usage that transformers' documentation shows: `generate` over left-padded batches, in order."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.engine.network.load import LoadedModel
from pipeline.engine.network.vision import normalise
from pipeline.preprocess.pixels import PixelScale
from schemas.sample import Sample

BATCH = 32
SCALE = PixelScale(factor=1 / 255, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


def transformers_rate(loaded: LoadedModel, samples: Sequence[Sample]) -> float:
    """Measure images per second; a batch runs until its longest answer ends, for every sample's first prompt."""
    began = time.perf_counter()
    for i in range(0, len(samples), BATCH):
        _generate(loaded, samples[i : i + BATCH])
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
    return len(samples) / (time.perf_counter() - began)


@torch.inference_mode()
def _generate(loaded: LoadedModel, samples: Sequence[Sample]) -> None:
    prompts = [sample.prompts[0] for sample in samples]
    length = max(len(prompt.token_ids) for prompt in prompts)
    token_ids = torch.zeros(len(prompts), length, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        token_ids[row, length - len(prompt.token_ids) :] = torch.from_numpy(prompt.token_ids)
    mask = torch.tensor([[0] * (length - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts])
    tiles = torch.cat([torch.from_numpy(sample.tiles) for sample in samples]).to(loaded.device)
    sizes = torch.tensor([(size.height, size.width) for sample in samples for size in sample.image_sizes])
    longest = max(prompt.max_new_tokens for prompt in prompts)
    network: Any = loaded.network
    network.generate(
        input_ids=token_ids.to(loaded.device),
        attention_mask=mask.to(loaded.device),
        pixel_values=normalise(tiles, SCALE).to(network.dtype),
        image_sizes=sizes,
        do_sample=False,
        min_new_tokens=longest,
        max_new_tokens=longest,
        pad_token_id=0,
    )
