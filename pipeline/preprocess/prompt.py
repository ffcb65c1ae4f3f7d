"""Prompts: from a conversation about some images to token ids, every image already as long as its features."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from transformers import AutoProcessor, PreTrainedTokenizerBase

from pipeline.preprocess.conversation import Conversation, ask
from pipeline.preprocess.formats import FORMATS
from pipeline.preprocess.template import Render, hash_template, renderer
from schemas.errors import Refused, RowError
from schemas.sample import TokenIds

# Who speaks and where the images are, whatever the texts: which special tokens the template writes follows from it.
_Outline: TypeAlias = tuple[bool | None, tuple[tuple[str, tuple[bool, ...]], ...]]


class PromptBuilder:
    """Renders and tokenises prompts the way one checkpoint wants them.

    A special token that somebody wrote out in a text (`<image>`, `</s>`, `<|im_start|>`, ...) must not become that
    token: it is broken by a space after its first character, `< image>`. A prompt that still brings one in fails.
    """

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        image_token_id: int,
        context: int,
        render: Render,
        markers: tuple[str, ...] = (),  # tokens the renderer writes, special or not
        template_hash: str = "",
    ) -> None:
        self.template_hash = template_hash
        self.context = context
        self.image_token_id = image_token_id
        self._tokenizer = tokenizer
        self._render = render
        special = [*tokenizer.all_special_ids, *_added_special(tokenizer), *_ids_of(tokenizer, markers), image_token_id]
        self._literals = _pattern(tokenizer.convert_ids_to_tokens(special))
        # a letter that the tokenizer does not know becomes its unknown token: no reason to refuse a prompt
        self._special_ids = [id for id in set(special) if id != tokenizer.unk_token_id]
        self._own_special: dict[_Outline, list[int]] = {}
        self._check_template()

    @staticmethod
    def load(
        model: str, revision: str | None, *, image_token_id: int, context: int, template: str = "checkpoint"
    ) -> "PromptBuilder":
        """The tokenizer of a checkpoint, a folder or a hub id, with a template as `choose_template` gives it.

        Raises ValueError where the checkpoint lacks what is needed.
        """
        try:  # backend: the image processor is not used, and the default one needs torchvision
            processor = AutoProcessor.from_pretrained(
                model, revision=revision or "main", trust_remote_code=False, backend="pil"
            )
        except (OSError, ValueError) as error:
            raise Refused(f"model {model!r} must have a tokenizer and a processor config: {error}") from error
        tokenizer = processor.tokenizer
        own = processor.chat_template or tokenizer.chat_template
        return PromptBuilder(
            tokenizer=tokenizer,
            image_token_id=image_token_id,
            context=context,
            render=renderer(template, tokenizer, own),
            template_hash=hash_template(template, own),
            markers=FORMATS[template].markers if template in FORMATS else (),
        )

    def render(self, conversation: Conversation) -> str:
        """The string that is tokenised: one `<image>` an image, special tokens in the texts broken."""
        return self._render(conversation.with_texts(self._break))

    def token_ids(self, conversation: Conversation, image_tokens: Sequence[int], room: int = 1) -> TokenIds:
        """The prompt's ids, the `<image>` of each image repeated to its count; raises RowError("prompt", ...).

        They leave `room` new tokens in the context.
        """
        _check_conversation(conversation, len(image_tokens))
        ids = self._tokenise(self.render(conversation))
        self._check_special(ids, conversation)
        ids = expand(ids, self.image_token_id, image_tokens)
        assert np.count_nonzero(ids == self.image_token_id) == sum(image_tokens)
        if len(ids) + room > self.context:
            num_text = len(ids) - sum(image_tokens)
            parts = f"{num_text} text tokens + {sum(image_tokens)} image tokens + {room} new tokens"
            message = f"{parts} = {len(ids) + room} tokens, the model's context is {self.context}"
            raise RowError("prompt", "PromptTooLong", message)
        return ids

    def prefix(self, system: str | None) -> TokenIds:
        """What the prompts with this system message begin with, whatever they ask and with images or without."""
        asked = [replace(ask(text, num), system=system) for text, num in (("x", 1), ("x", 0), ("0", 0))]
        found = [self._tokenise(self.render(conversation)) for conversation in asked]
        return found[0][: common_length(found)]

    def _tokenise(self, rendered: str) -> TokenIds:
        bos = self._tokenizer.bos_token
        begun = bool(bos) and rendered.startswith(str(bos))  # by the template: the tokenizer would add a second one
        encoded = self._tokenizer(rendered, add_special_tokens=not begun, return_attention_mask=False, verbose=False)
        return np.asarray(encoded["input_ids"], np.int32)

    def _break(self, text: str) -> str:
        return self._literals.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _check_special(self, ids: TokenIds, conversation: Conversation) -> None:
        """Breaking literals suffices for plain tokenizers; this is for those that rewrite a text before they match."""
        found, expected = self._special_in(ids), self._expected_special(conversation)
        if found != expected:
            names = self._tokenizer.convert_ids_to_tokens(list((Counter(found) - Counter(expected)).keys()))
            message = f"the prompt must not bring in special tokens of the model, it does with {', '.join(names)}"
            raise RowError("prompt", "SpecialTokenInPrompt", message)

    def _special_in(self, ids: TokenIds) -> list[int]:
        found: list[int] = ids[np.isin(ids, self._special_ids)].tolist()
        return found

    def _expected_special(self, conversation: Conversation) -> list[int]:
        """The special tokens of a harmless conversation like it: those that the template itself writes."""
        outline = _outline(conversation)
        if outline not in self._own_special:
            harmless = self._render(conversation.with_texts(lambda _: "x"))
            if len(self._own_special) >= _OUTLINES:
                self._own_special.clear()
            self._own_special[outline] = self._special_in(self._tokenise(harmless))
        return self._own_special[outline]

    def _check_template(self) -> None:
        for num_images in (0, 1, 2):
            conversation = ask("x", num_images)
            try:
                found = self._expected_special(conversation).count(self.image_token_id)
            except RowError as error:
                raise Refused(error.failure.message) from error
            if found != num_images:
                raise Refused(
                    f"the chat template must write one image token (id {self.image_token_id}) an image, "
                    f"got {found} for {num_images} images"
                )


_OUTLINES = 4096  # kept at once


def common_length(prompts: Sequence[TokenIds]) -> int:
    """How many ids all of them begin with."""
    shortest = min(map(len, prompts))
    differs = np.any([prompts[0][:shortest] != ids[:shortest] for ids in prompts], axis=0)
    return int(differs.argmax()) if differs.any() else shortest


def expand(ids: TokenIds, image_token_id: int, image_tokens: Sequence[int]) -> TokenIds:
    """The ids with the k-th image token repeated to the k-th count.

    Repeating ids is the same as repeating the literal before tokenising, and twenty times as fast; tokenising the text
    between the images apart is not the same, as tokenizers treat the start of a text as the start of a word.
    """
    repeats = np.ones(len(ids), np.int64)
    repeats[ids == image_token_id] = image_tokens
    return np.repeat(ids, repeats)


def _check_conversation(conversation: Conversation, num_images: int) -> None:
    if conversation.num_images != num_images:
        raise RowError(
            "prompt",
            "ImageCountMismatch",
            f"the messages must have a place for every image of the row, they have {conversation.num_images} "
            f'of {{"type": "image"}} for {num_images} images',
        )
    if not conversation.question.strip():
        raise RowError("prompt", "EmptyPrompt", f"the prompt must not be empty or blank, got {conversation.question!r}")


def _outline(conversation: Conversation) -> _Outline:
    turns = tuple((turn.role, tuple(part is None for part in turn.parts)) for turn in conversation.turns)
    system = None if conversation.system is None else bool(conversation.system)  # None: the format may have its own
    return system, turns


def _ids_of(tokenizer: PreTrainedTokenizerBase, markers: tuple[str, ...]) -> list[int]:
    """The ids of a format's tokens; raises ValueError where the vocabulary has none of that name."""
    vocabulary = tokenizer.get_vocab()
    missing = [marker for marker in markers if marker not in vocabulary]
    if missing:
        raise Refused(f"--chat-template must suit the model, whose vocabulary has no {', '.join(missing)}")
    return [vocabulary[marker] for marker in markers]


def _added_special(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [id for id, token in tokenizer.added_tokens_decoder.items() if token.special]


def _pattern(literals: Iterable[str]) -> re.Pattern[str]:
    breakable = {literal for literal in literals if len(literal) > 1}
    return re.compile("|".join(map(re.escape, sorted(breakable, key=len, reverse=True))))  # the longest one first
