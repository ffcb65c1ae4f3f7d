"""Preprocessor: what turns encoded images and prompts into the parts of a sample, for one checkpoint."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import AutoConfig, LlavaNextConfig

from pipeline.preprocess.geometry import Anyres, num_image_tokens
from pipeline.preprocess.image import ImageLimits, decode, tile_image
from pipeline.preprocess.prompt import PromptBuilder
from schemas.sample import Prompt, Size, Tiles, no_tiles

# The features that a vision tower gives for a tile are its patches only with this strategy: CLIP puts a class token
# before them that `default` drops, SigLIP has none to drop. With the other one transformers cannot build the grid.
STRATEGIES = {"clip_vision_model": "default", "siglip_vision_model": "full"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What preprocessing must know of a checkpoint, for people to read as well."""

    model: str
    revision: str | None
    backbone: str  # model_type of the text config: mistral, llama, qwen2, ...
    anyres: Anyres
    image_token_id: int
    context: int  # tokens of prompt and answer together


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of one row, ready for the engine; the fields they share with Sample mean the same there."""

    image_sizes: tuple[Size, ...] = ()
    tiles_per_image: tuple[int, ...] = ()
    image_tokens: tuple[int, ...] = ()  # of each image
    tiles: Tiles = field(default_factory=no_tiles)
    image_sha256: str | None = None


class Preprocessor:
    """Decodes, tiles, renders and tokenises for one checkpoint; its methods raise RowError for what a row has wrong."""

    def __init__(self, *, facts: ModelFacts, prompts: PromptBuilder, limits: ImageLimits, max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self.facts = facts
        self._prompts = prompts
        self._limits = limits
        self._max_new_tokens = max_new_tokens

    @staticmethod
    def load(model: str, revision: str | None, limits: ImageLimits, max_new_tokens: int) -> "Preprocessor":
        """Read the config and the tokenizer, no weights, of a checkpoint: a folder or a hub id."""
        facts = read_facts(model, revision)
        prompts = PromptBuilder.load(model, revision, image_token_id=facts.image_token_id, context=facts.context)
        return Preprocessor(facts=facts, prompts=prompts, limits=limits, max_new_tokens=max_new_tokens)

    def load_images(self, images: Sequence[bytes]) -> Images:
        """Decode and tile the images of one row."""
        if not images:
            return Images()
        anyres = self.facts.anyres
        sizes, tiles = [], []
        for data in images:
            image = decode(data, self._limits)
            sizes.append(Size(image.width, image.height))
            tiles.append(tile_image(image, anyres))
        return Images(
            image_sizes=tuple(sizes),
            tiles_per_image=tuple(len(of_image) for of_image in tiles),
            image_tokens=tuple(num_image_tokens(size, anyres) for size in sizes),
            tiles=tiles[0] if len(tiles) == 1 else np.concatenate(tiles),
            image_sha256=hashlib.sha256(images[0]).hexdigest(),
        )

    def build_prompt(self, prompt_id: str, text: str, images: Images) -> Prompt:
        """Render and tokenise one question about `images`."""
        return Prompt(
            id=prompt_id,
            text=text,
            token_ids=self._prompts.token_ids(text, images.image_tokens, self._max_new_tokens),
            num_image_tokens=sum(images.image_tokens),
            max_new_tokens=self._max_new_tokens,
        )

    def render(self, text: str, num_images: int) -> str:
        """The prompt as the model will read it, with one image token an image: for people to look at."""
        return self._prompts.render(text, num_images)


def read_facts(model: str, revision: str | None) -> ModelFacts:
    """The facts in a checkpoint's config; raises ValueError where it is missing or not LLaVA-NeXT's."""
    try:
        config = AutoConfig.from_pretrained(model, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"model {model!r} must be a checkpoint's folder or a hub id: {error}") from error
    if not isinstance(config, LlavaNextConfig):
        raise ValueError(f"model {model!r} must be a LLaVA-NeXT checkpoint (llava_next), got {config.model_type!r}")
    vision: Any = config.vision_config  # typed as a dict as well, which they are no longer once loaded
    text: Any = config.text_config
    strategy = config.vision_feature_select_strategy
    if STRATEGIES.get(vision.model_type) != strategy:
        known = ", ".join(f"{tower} with {name!r}" for tower, name in STRATEGIES.items())
        raise ValueError(f"the vision tower must be {known}, got {vision.model_type} with {strategy!r} in {model!r}")
    return ModelFacts(
        model=model,
        revision=revision,
        backbone=text.model_type,
        anyres=Anyres(
            tile=vision.image_size,
            patch=vision.patch_size,
            grids=tuple(Size(width, height) for height, width in config.image_grid_pinpoints or ()),
        ),
        image_token_id=config.image_token_index,
        context=text.max_position_embeddings,
    )
