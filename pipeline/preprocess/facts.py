"""Facts: what a checkpoint's own files say of it, and nothing that had to be guessed."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.preprocess.files import load_config, load_generation_config
from pipeline.preprocess.formats import TextFacts, published_format
from pipeline.preprocess.geometry import Anyres
from pipeline.preprocess.pixels import PixelScale
from schemas.errors import Refused
from schemas.sample import Size

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig

# The features that a vision tower gives for a tile are its patches only with this strategy: CLIP puts a class token
# before them that `default` drops, SigLIP has none to drop. With the other one transformers cannot build the grid.
STRATEGIES = {"clip_vision_model": "default", "siglip_vision_model": "full"}

# What a published checkpoint's config leaves out: Llama-3 ends a text with one token and a turn with another, and the
# network draws either.
_MORE_END_TOKENS = {"llama3-8b": (128001,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Holds what preprocessing must know of a checkpoint, for people to read as well."""

    model: str
    revision: str | None
    text: TextFacts
    anyres: Anyres
    feature_strategy: str  # default drops the class token of a tile, full has none to drop
    image_token_id: int
    eos_token_ids: tuple[int, ...]  # any of them ends an answer
    pad_token_id: int | None
    context: int  # tokens of prompt and answer together
    pixels: PixelScale | None = None  # None where the image processor's settings were not asked for


def read_facts(model: str, revision: str | None) -> ModelFacts:
    """Read the facts in a checkpoint's configs; raises Refused where one is missing or cannot work."""
    config = load_config(model, revision)
    vision: Any = config.vision_config  # typed as a dict as well, which they are no longer once loaded
    text: Any = config.text_config
    generation = load_generation_config(model, revision)
    strategy = _checked_strategy(model, vision.model_type, config.vision_feature_select_strategy)
    for name in ("image_size", "patch_size"):
        _check_side(name, getattr(vision, name))
    _check_text(model, text)
    rows = text.vocab_size
    _check_ids("image_token_index", [config.image_token_index], rows)
    _check_feature_layers(config.vision_feature_layer, vision.num_hidden_layers)
    ends = end_token_ids(generation, text)
    _check_ids("eos_token_id", ends, rows)
    pads = _token_ids(generation, "pad_token_id")
    if text.pad_token_id is not None and not -rows <= text.pad_token_id < rows:  # torch refuses it as well, and later
        raise _no_row("pad_token_id", text.pad_token_id, rows)
    return ModelFacts(
        model=model,
        revision=revision,
        text=text_facts(text),
        anyres=Anyres(
            tile=vision.image_size,
            patch=vision.patch_size,
            grids=_grids(config.image_grid_pinpoints or ()),
        ),
        feature_strategy=strategy,
        image_token_id=config.image_token_index,
        eos_token_ids=ends,
        pad_token_id=next(iter(pads), None),
        context=_context(text),
    )


def with_image_tokens(facts: ModelFacts, share: float) -> ModelFacts:
    """Return the facts where images have a share of their tokens; raise Refused for a tower that cannot choose them."""
    if share < 1 and facts.feature_strategy != "default":
        tower = next(name for name, strategy in STRATEGIES.items() if strategy == facts.feature_strategy)
        raise Refused(f"--image-tokens needs a vision tower with a class token, {tower} has none: leave it out")
    return replace(facts, anyres=replace(facts.anyres, share=share))


def text_facts(text: "PreTrainedConfig") -> TextFacts:
    """Return what tells a text config's checkpoint from others."""
    whole: Any = text
    return TextFacts(
        backbone=whole.model_type,
        width=whole.hidden_size,
        layers=whole.num_hidden_layers,
        vocabulary=whole.vocab_size,
    )


def end_token_ids(generation: "GenerationConfig", text: "PreTrainedConfig") -> tuple[int, ...]:
    """Return the tokens that end an answer: those that the configs state, and those known of a published checkpoint."""
    stated = _token_ids(generation, "eos_token_id")
    more = _MORE_END_TOKENS.get(published_format(text_facts(text)) or "", ()) if stated else ()
    return tuple(dict.fromkeys((*stated, *more)))


def attention_window(text: "PreTrainedConfig") -> int | None:
    """Return how many tokens attention reaches back, where transformers limits it; raises Refused.

    A prompt and its answer that fit the window are attended as if there were none, and longer ones are errors of their
    rows. Mistral's window is every layer's. Qwen2's is that of the layers called sliding_attention, and none where all
    reach everything. Llama has none, whatever its config says.
    """
    whole: Any = text
    if whole.model_type not in ("mistral", "qwen2"):
        return None
    window: int | None = whole.sliding_window
    if whole.model_type == "qwen2":
        kinds = set(whole.layer_types)
        if unknown := kinds - {"full_attention", "sliding_attention"}:
            raise Refused(f"layer_types must be full_attention or sliding_attention, got {', '.join(sorted(unknown))}")
        if "sliding_attention" not in kinds:
            return None
        if window is None:
            raise Refused("layer_types of sliding_attention must have use_sliding_window and a sliding_window")
    if window is not None and window < 1:
        raise Refused(f"sliding_window must be at least 1, got {window}")
    return window


def _checked_strategy(model: str, tower: str, strategy: str) -> str:
    if STRATEGIES.get(tower) != strategy:
        known = ", ".join(f"{name} with {needed!r}" for name, needed in STRATEGIES.items())
        raise Refused(f"the vision tower must be {known}, got {tower} with {strategy!r} in {model!r}")
    return strategy


def _check_side(name: str, value: object) -> None:
    """Raise Refused for tiles or patches that are not square, or of no stated size."""
    if type(value) is not int:
        raise Refused(f"the vision tower's {name} must be one whole number, got {value!r}")


def _check_text(model: str, text: "PreTrainedConfig") -> None:
    """Raise Refused for a kind of config that lacks what every text backbone of LLaVA-NeXT has."""
    needed = ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings")
    if missing := [name for name in needed if not hasattr(text, name)]:
        raise Refused(f"the text_config of {model!r} must have {', '.join(missing)}, {text.model_type!r} has none")


def _grids(pinpoints: Iterable[Any]) -> tuple[Size, ...]:
    for one in pinpoints:
        if not isinstance(one, list | tuple) or len(one) != 2 or not all(isinstance(side, int) for side in one):
            raise Refused(f"image_grid_pinpoints must be pairs of height and width, got {one!r}")
    return tuple(Size(width, height) for height, width in pinpoints)


def _context(text: "PreTrainedConfig") -> int:
    context, window = getattr(text, "max_position_embeddings", None), attention_window(text)
    if not isinstance(context, int) or context < 1:
        raise Refused(f"max_position_embeddings must be at least 1, got {context!r}")
    return min(context, window or context)


def _check_feature_layers(stated: int | list[int], depth: int) -> None:
    """Raise Refused for a layer that the vision tower has not got; it has a state before the first one as well."""
    layers = [stated] if isinstance(stated, int) else stated
    if not layers or not all(-depth - 1 <= layer <= depth for layer in layers):
        rule = f"between {-depth - 1} and {depth}, as the vision tower has {depth} layers"
        raise Refused(f"vision_feature_layer must be {rule}, got {stated}")


def _check_ids(name: str, ids: Iterable[int], rows: int) -> None:
    for id in ids:
        if not 0 <= id < rows:
            raise _no_row(name, id, rows)


def _no_row(name: str, id: int, rows: int) -> Refused:
    return Refused(f"{name} must be a token of the network, whose embedding table has {rows} rows, got {id}")


def _token_ids(generation: "GenerationConfig", name: str) -> tuple[int, ...]:
    """Return the ids that the configs state under this name."""
    value: Any = getattr(generation, name)
    ids = [] if value is None else value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise Refused(f"{name} must be a token's id or a list of them, got {value!r}")
    return tuple(ids)
