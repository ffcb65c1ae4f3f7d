"""Parts: what preprocessing works by, read of a checkpoint once and sent to whoever preprocesses.

Reading them takes the half of transformers, some seconds of a core; having them takes its tokenizers alone.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.preprocess.facts import ModelFacts, read_facts, with_image_tokens
from pipeline.preprocess.files import load_processor
from pipeline.preprocess.own import own_template
from pipeline.preprocess.pixels import read_pixels
from pipeline.preprocess.template import CHECKPOINT, choose_template
from schemas.errors import Refused

if TYPE_CHECKING:
    from transformers import LlavaNextProcessor, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """Holds what preprocessing needs of a checkpoint."""

    facts: ModelFacts
    tokenizer: "PreTrainedTokenizerBase"
    template: str  # as `choose_template` gives it
    own_template: str | None = None  # the checkpoint's, where `template` says that it is used


def read_parts(model: str, revision: str | None, template: str = "auto", image_tokens: float = 1.0) -> ModelParts:
    """Read the parts, no weights, of a checkpoint: a folder or a hub id. Raises Refused where one does not suit."""
    facts = with_image_tokens(read_facts(model, revision), image_tokens)
    processor = load_processor(model, revision)
    pixels = read_pixels(processor.image_processor, facts.anyres)
    facts = replace(facts, anyres=replace(facts.anyres, resample=pixels.resample), pixels=pixels.scale)
    return parts_of(processor, facts, choose_template(template, facts, processor))


def parts_of(processor: "LlavaNextProcessor", facts: ModelFacts, template: str = CHECKPOINT) -> ModelParts:
    """Return the parts of what has been read, with a template as `choose_template` gives it; raises Refused where the
    checkpoint lacks what is needed."""
    _check_tokens(processor, facts)
    own = own_template(processor) if template == CHECKPOINT else None
    return ModelParts(facts=facts, tokenizer=processor.tokenizer, template=template, own_template=own)


def _check_tokens(processor: "LlavaNextProcessor", facts: ModelFacts) -> None:
    """Raise Refused where tokenizer and config mean different tokens by an image, or where no token ends an answer."""
    id, literal = processor.image_token_id, processor.image_token
    if id != facts.image_token_id:
        raise Refused(
            f"image_token_index must be the id of the processor's image_token {literal!r}, which is {id}, "
            f"got {facts.image_token_id}"
        )
    if not facts.eos_token_ids and processor.tokenizer.eos_token_id is None:
        raise Refused("the checkpoint must name an eos_token_id (generation_config.json or config.json), none found")
