"""Facts: what a checkpoint's own files say of it, and nothing that had to be guessed."""

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, GenerationConfig, LlavaNextConfig, PreTrainedConfig

from pipeline.preprocess.formats import TextFacts, published_format
from pipeline.preprocess.geometry import Anyres
from schemas.errors import Refused
from schemas.sample import Size

# The features that a vision tower gives for a tile are its patches only with this strategy: CLIP puts a class token
# before them that `default` drops, SigLIP has none to drop. With the other one transformers cannot build the grid.
STRATEGIES = {"clip_vision_model": "default", "siglip_vision_model": "full"}

# What a published checkpoint's config leaves out: Llama-3 ends a text with one token and a turn with another, and the
# network draws either.
_MORE_END_TOKENS = {"llama3-8b": (128001,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What preprocessing must know of a checkpoint, for people to read as well."""

    model: str
    revision: str | None
    text: TextFacts
    anyres: Anyres
    feature_strategy: str  # default drops the class token of a tile, full has none to drop
    image_token_id: int
    eos_token_ids: tuple[int, ...]  # any of them ends an answer
    pad_token_id: int | None
    context: int  # tokens of prompt and answer together


def read_facts(model: str, revision: str | None) -> ModelFacts:
    """The facts in a checkpoint's config; raises ValueError where it is missing or not LLaVA-NeXT's."""
    try:
        config = AutoConfig.from_pretrained(model, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise Refused(f"model {model!r} must be a checkpoint's folder or a hub id: {error}") from error
    if not isinstance(config, LlavaNextConfig):
        raise Refused(f"model {model!r} must be a LLaVA-NeXT checkpoint (llava_next), got {config.model_type!r}")
    vision: Any = config.vision_config  # typed as a dict as well, which they are no longer once loaded
    text: Any = config.text_config
    generation = _read_generation(model, revision)
    return ModelFacts(
        model=model,
        revision=revision,
        text=text_facts(text),
        anyres=Anyres(
            tile=vision.image_size,
            patch=vision.patch_size,
            grids=tuple(Size(width, height) for height, width in config.image_grid_pinpoints or ()),
        ),
        feature_strategy=_checked_strategy(model, vision.model_type, config.vision_feature_select_strategy),
        image_token_id=config.image_token_index,
        eos_token_ids=end_token_ids(generation, text),
        pad_token_id=next(iter(_token_ids(generation, text, "pad_token_id")), None),
        context=text.max_position_embeddings,
    )


def text_facts(text: PreTrainedConfig) -> TextFacts:
    """What tells a text config's checkpoint from others."""
    whole: Any = text
    return TextFacts(
        backbone=whole.model_type,
        width=whole.hidden_size,
        layers=whole.num_hidden_layers,
        vocabulary=whole.vocab_size,
    )


def end_token_ids(generation: GenerationConfig | None, text: PreTrainedConfig) -> tuple[int, ...]:
    """The tokens that end an answer: those that the configs state, and those known of a published checkpoint."""
    stated = _token_ids(generation, text, "eos_token_id")
    more = _MORE_END_TOKENS.get(published_format(text_facts(text)) or "", ()) if stated else ()
    return tuple(dict.fromkeys((*stated, *more)))


def _checked_strategy(model: str, tower: str, strategy: str) -> str:
    if STRATEGIES.get(tower) != strategy:
        known = ", ".join(f"{name} with {needed!r}" for name, needed in STRATEGIES.items())
        raise Refused(f"the vision tower must be {known}, got {tower} with {strategy!r} in {model!r}")
    return strategy


def _read_generation(model: str, revision: str | None) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(model, revision=revision or "main")
    except OSError:  # a checkpoint need not have one: its config says the same
        return None


def _token_ids(generation: GenerationConfig | None, text: PreTrainedConfig, name: str) -> tuple[int, ...]:
    """The ids that the generation config states under this name, else the text config's."""
    stated = [getattr(config, name, None) for config in (generation, text)]
    value: int | list[int] = next((one for one in stated if one is not None), [])
    return (value,) if isinstance(value, int) else tuple(value)
