"""Preprocessor: what turns encoded images and prompts into the parts of a sample, for one checkpoint."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from pipeline.preprocess.conversation import Conversation, ask
from pipeline.preprocess.geometry import num_image_tokens
from pipeline.preprocess.image import ImageLimits, Room, decode, tile_image
from pipeline.preprocess.page_renderer import PageRenderer
from pipeline.preprocess.parts import ModelParts, read_parts
from pipeline.preprocess.pdf import PdfPage
from pipeline.preprocess.prompt import PromptBuilder
from pipeline.preprocess.strips import cut_page
from schemas.errors import Refused, RowError
from schemas.sample import Prompt, Size, Strip, Tiles, no_tiles

EncodedImage: TypeAlias = bytes | memoryview | PdfPage


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of one row, ready for the engine; the fields they share with Sample mean the same there."""

    image_sizes: tuple[Size, ...] = ()
    tiles_per_image: tuple[int, ...] = ()
    image_tokens: tuple[int, ...] = ()  # of each image
    tiles: Tiles = field(default_factory=no_tiles)
    image_sha256: str | None = None
    strips: tuple[Strip, ...] = ()  # of the one image, whose tiles and tokens these are then

    def views(self) -> list["Images"]:
        """Return the images as prompts are to be made for them: all at once, or each strip for itself."""
        return (
            [replace(self, image_tokens=(count,), strips=()) for count in self.image_tokens] if self.strips else [self]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Describes how a job wants its prompts rendered."""

    template: str = "auto"  # as `choose_template` takes it
    system: str | None = None  # for conversations without one; None leaves it to the format, "" is none at all
    answer_prefix: str = ""  # what every answer begins with


class Preprocessor:
    """Decodes, tiles, renders and tokenises for one checkpoint; its methods raise RowError for what a row has wrong."""

    def __init__(
        self,
        parts: ModelParts,
        *,
        limits: ImageLimits,
        max_new_tokens: int,
        chat: Chat | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise Refused(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self.facts = parts.facts
        self._prompts = prompts = PromptBuilder.of(parts)
        self._limits = limits
        self._draw = PageRenderer(
            max_pixels=limits.max_pixels, max_aspect=limits.max_aspect, seconds=limits.page_seconds
        )
        self._max_new_tokens = max_new_tokens
        self._chat = chat or Chat()
        if self._chat.system:
            prompts.check_system(self._chat.system)
        self._prefix = prompts.prefix(self._chat.system)
        self._num_prefix = prompts.num_prefix(self._chat.answer_prefix)

    @staticmethod
    def load(
        model: str,
        revision: str | None,
        limits: ImageLimits,
        max_new_tokens: int,
        chat: Chat | None = None,
        image_tokens: float = 1.0,
    ) -> "Preprocessor":
        """Read the config and the tokenizer, no weights, of a checkpoint: a folder or a hub id."""
        chat = chat or Chat()
        parts = read_parts(model, revision, chat.template, image_tokens)
        return Preprocessor(parts, limits=limits, max_new_tokens=max_new_tokens, chat=chat)

    def describe(self) -> dict[str, Any]:
        """Return what run.json says of the model: its facts, and the hash of what renders its prompts."""
        return {**asdict(self.facts), "chat_template_hash": self._prompts.template_hash}

    def check_num_images(self, num_images: int) -> None:
        """Raise RowError where so many images leave no room in the context, however small they are."""
        least = int(num_images * self.facts.anyres.patches_per_side**2 * self.facts.anyres.share)
        if least >= self.facts.context:
            message = (
                f"{num_images} images are at least {least} image tokens, the model's context is {self.facts.context}"
            )
            raise RowError("prompt", "PromptTooLong", message)

    def load_images(self, images: Iterable[EncodedImage], room: Room | None = None) -> Images:
        """Decode or render, and tile, the images of one row, one at a time; where it is one alone, into `room`."""
        encoded = iter(images)
        first = next(encoded, None)
        if first is None:
            return Images()
        return self._tiled(map(self._pixels, chain([first], encoded)), first, room)

    def _tiled(self, images: Iterable[Image.Image], first: EncodedImage, room: Room | None) -> Images:
        anyres, context = self.facts.anyres, self.facts.context
        sizes, tokens, tiles = list[Size](), list[int](), list[Tiles]()
        for image in images:
            sizes.append(Size(image.width, image.height))
            tokens.append(num_image_tokens(sizes[-1], anyres))
            if sum(tokens) >= context:  # before more of them are tiled
                message = f"{len(sizes)} images are {sum(tokens)} image tokens, the model's context is {context}"
                raise RowError("prompt", "PromptTooLong", message)
            tiles.append(tile_image(image, anyres, None if tiles else room))
        return Images(
            image_sizes=tuple(sizes),
            tiles_per_image=tuple(len(of_image) for of_image in tiles),
            image_tokens=tuple(tokens),
            tiles=tiles[0] if len(tiles) == 1 else np.concatenate(tiles),
            image_sha256=_sha256(first),
        )

    def load_page(self, page: EncodedImage, room: Room | None = None) -> Images:
        """Decode or render one image and tile it, in strips where `cut_page` says so; else into `room`."""
        anyres = self.facts.anyres
        image = self._pixels(page)
        spans = cut_page(image, anyres)
        if not spans:
            return self._tiled([image], page, room)
        parts = [image.crop((span.left, span.top, span.right or image.width, span.bottom)) for span in spans]
        tiles = [tile_image(part, anyres) for part in parts]
        return Images(
            image_sizes=(Size(image.width, image.height),),
            tiles_per_image=(sum(map(len, tiles)),),
            image_tokens=tuple(num_image_tokens(Size(part.width, part.height), anyres) for part in parts),
            tiles=np.concatenate(tiles),
            image_sha256=_sha256(page),
            strips=tuple(
                Strip(top=span.top, bottom=span.bottom, num_tiles=len(own), left=span.left, right=span.right)
                for span, own in zip(spans, tiles, strict=True)
            ),
        )

    def _pixels(self, image: EncodedImage) -> Image.Image:
        if isinstance(image, PdfPage):
            return self._draw(image)
        return decode(image, self._limits)

    def build_prompt(self, prompt_id: str, text: str, images: Images) -> Prompt:
        """Render and tokenise one question about `images`."""
        return self.build_conversation(prompt_id, ask(text, len(images.image_tokens)), images)

    def build_conversation(self, prompt_id: str, conversation: Conversation, images: Images) -> Prompt:
        """Render and tokenise a conversation with a placeholder for each of `images`."""
        prefix = self._chat.answer_prefix
        asked = self._with_system(conversation)
        token_ids = self._prompts.token_ids(asked, images.image_tokens, answer_prefix=prefix)
        return Prompt(
            id=prompt_id,
            text=conversation.question,
            token_ids=token_ids,
            num_image_tokens=sum(images.image_tokens),
            num_common=len(self._prefix) if np.array_equal(token_ids[: len(self._prefix)], self._prefix) else 0,
            max_new_tokens=min(self._max_new_tokens, self.facts.context - len(token_ids)),
            answer_prefix=prefix,
            num_prefix=self._num_prefix,
        )

    def render(self, conversation: Conversation) -> str:
        """Return the prompt as the model will read it, with one image token an image: for people to look at."""
        return self._prompts.render(self._with_system(conversation))

    def _with_system(self, conversation: Conversation) -> Conversation:
        return replace(conversation, system=self._chat.system) if conversation.system is None else conversation


def _sha256(image: EncodedImage) -> str:
    return image.sha256() if isinstance(image, PdfPage) else hashlib.sha256(image).hexdigest()
