"""One batch from prompts to answers: prefill once, then a token a row and step, through transformers' own modules."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from pipeline.engine.batch import Batch, Row, left_pad
from pipeline.engine.draft import Draft
from pipeline.engine.model import LoadedModel
from pipeline.engine.sampling import Sampler
from pipeline.engine.vision import Features
from schemas.answer import Generation
from schemas.engine import Sampling


@torch.inference_mode()
def generate_batch(
    model: LoadedModel, rows: Sequence[Row], features: Sequence[Features], sampling: Sampling
) -> list[Generation]:
    """The generations of `rows`, whose images have the given features; the batch ends with its longest answer."""
    batch = left_pad([row.prompt.token_ids for row in rows])
    sampler = Sampler(model, sampling, rows, batch)
    drafts = [Draft(model, sampling, row) for row in rows]
    steps = _Steps(model, batch)
    logits = steps.forward(_merge(model, batch, rows, features))
    while True:
        draw = sampler.draw(logits)
        for draft, token_id, logprob in zip(drafts, draw.token_ids.tolist(), draw.logprobs.tolist(), strict=True):
            draft.add(token_id, logprob)
        if all(draft.finish_reason for draft in drafts):
            return [draft.generation() for draft in drafts]
        logits = steps.forward(model.embed(draw.token_ids[:, None]))


def _merge(model: LoadedModel, batch: Batch, rows: Sequence[Row], features: Sequence[Features]) -> Tensor:
    """(rows, length, width) embeddings, image tokens replaced by their features."""
    places = (batch.token_ids == model.image_token_id) & batch.mask.bool()
    # A total would hide a row with one too few beside a row with one too many, and shift the features of both.
    for row, found, images in zip(rows, places.sum(1).tolist(), features, strict=True):
        assert found == row.prompt.num_image_tokens == sum(map(len, images)), (row.sample.id, row.prompt.id, found)
    embeddings = model.embed(batch.token_ids.to(model.device))
    flat = [image for images in features for image in images]
    if flat:
        embeddings[places.to(model.device)] = torch.cat(flat).to(embeddings.dtype)
    return embeddings


class _Steps:
    """The keys and values of a batch so far, with the mask and the positions that go with them."""

    def __init__(self, model: LoadedModel, batch: Batch) -> None:
        self._network = model.network
        self._cache = DynamicCache(config=model.network.config.get_text_config())
        self._mask = batch.mask.to(model.device)
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)  # padding in front of a row moves none of its tokens

    def forward(self, embeddings: Tensor) -> Tensor:
        """Append (rows, new, width) embeddings and give the logits after the last of them, (rows, vocabulary)."""
        output = self._network.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        logits: Tensor = self._network.lm_head(output.last_hidden_state[:, -1])
        return logits
