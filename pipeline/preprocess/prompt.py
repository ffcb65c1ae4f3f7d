"""Prompts: from one question about some images to token ids, every image already as long as its features."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from transformers import AutoProcessor, PreTrainedTokenizerBase

from schemas.errors import RowError
from schemas.sample import TokenIds

# Text and number of images -> the string that the model was trained to see before its answer.
Render: TypeAlias = Callable[[str, int], str]


class PromptBuilder:
    """Renders and tokenises prompts the way one checkpoint wants them.

    A special token that somebody wrote out in a prompt (`<image>`, `</s>`, `<|im_start|>`, ...) must not become that
    token: it is broken by a space after its first character, `< image>`. A prompt that still brings one in fails.
    """

    def __init__(
        self, *, tokenizer: PreTrainedTokenizerBase, image_token_id: int, context: int, render: Render
    ) -> None:
        self.context = context
        self.image_token_id = image_token_id
        self._tokenizer = tokenizer
        self._render = render
        special = [*tokenizer.all_special_ids, *_added_special(tokenizer), image_token_id]
        self._literals = _pattern(tokenizer.convert_ids_to_tokens(special))
        # a letter that the tokenizer does not know becomes its unknown token: no reason to refuse a prompt
        self._special_ids = [id for id in set(special) if id != tokenizer.unk_token_id]
        self._own_special: dict[int, list[int]] = {}
        self._check_template()

    @staticmethod
    def load(model: str, revision: str | None, *, image_token_id: int, context: int) -> "PromptBuilder":
        """The tokenizer and chat template of a checkpoint, a folder or a hub id; raises ValueError without either."""
        try:  # backend: the image processor is not used, and the default one needs torchvision
            processor = AutoProcessor.from_pretrained(
                model, revision=revision or "main", trust_remote_code=False, backend="pil"
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"model {model!r} must have a tokenizer and a processor config: {error}") from error
        tokenizer = processor.tokenizer
        template = processor.chat_template or tokenizer.chat_template
        if template is None:
            raise ValueError(f"model {model!r} must have a chat template (chat_template.jinja), found none")
        return PromptBuilder(
            tokenizer=tokenizer,
            image_token_id=image_token_id,
            context=context,
            render=lambda text, num_images: render_template(tokenizer, template, text, num_images),
        )

    def render(self, text: str, num_images: int) -> str:
        """The string that is tokenised: one `<image>` an image, special tokens in the text broken."""
        return self._render(self._literals.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text), num_images)

    def token_ids(self, text: str, image_tokens: Sequence[int], max_new_tokens: int) -> TokenIds:
        """The prompt's ids, the `<image>` of each image repeated to its count; raises RowError("prompt", ...)."""
        if not text.strip():
            raise RowError("prompt", "EmptyPrompt", f"the prompt must not be empty or blank, got {text!r}")
        ids = self._tokenise(self.render(text, len(image_tokens)))
        self._check_special(ids, len(image_tokens))
        ids = expand(ids, self.image_token_id, image_tokens)
        assert np.count_nonzero(ids == self.image_token_id) == sum(image_tokens)
        if len(ids) + max_new_tokens > self.context:
            num_text = len(ids) - sum(image_tokens)
            parts = f"{num_text} text tokens + {sum(image_tokens)} image tokens + {max_new_tokens} new tokens"
            message = f"{parts} = {len(ids) + max_new_tokens} tokens, the model's context is {self.context}"
            raise RowError("prompt", "PromptTooLong", message)
        return ids

    def _tokenise(self, rendered: str) -> TokenIds:
        bos = self._tokenizer.bos_token
        begun = bool(bos) and rendered.startswith(str(bos))  # by the template: the tokenizer would add a second one
        encoded = self._tokenizer(rendered, add_special_tokens=not begun, return_attention_mask=False, verbose=False)
        return np.asarray(encoded["input_ids"], np.int32)

    def _check_special(self, ids: TokenIds, num_images: int) -> None:
        """Breaking literals suffices for plain tokenizers; this is for those that rewrite a text before they match."""
        found, expected = self._special_in(ids), self._expected_special(num_images)
        if found != expected:
            names = self._tokenizer.convert_ids_to_tokens(list((Counter(found) - Counter(expected)).keys()))
            message = f"the prompt must not bring in special tokens of the model, it does with {', '.join(names)}"
            raise RowError("prompt", "SpecialTokenInPrompt", message)

    def _special_in(self, ids: TokenIds) -> list[int]:
        found: list[int] = ids[np.isin(ids, self._special_ids)].tolist()
        return found

    def _expected_special(self, num_images: int) -> list[int]:
        """The special tokens of a harmless prompt: those that the template itself writes."""
        if num_images not in self._own_special:
            self._own_special[num_images] = self._special_in(self._tokenise(self._render("x", num_images)))
        return self._own_special[num_images]

    def _check_template(self) -> None:
        for num_images in (0, 1, 2):
            found = self._expected_special(num_images).count(self.image_token_id)
            if found != num_images:
                raise ValueError(
                    f"the chat template must write one image token (id {self.image_token_id}) an image, "
                    f"got {found} for {num_images} images"
                )


def render_template(tokenizer: PreTrainedTokenizerBase, template: str, text: str, num_images: int) -> str:
    """One user turn through a checkpoint's own chat template, images first, up to where the answer starts."""
    content: list[dict[str, str]] = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
    conversation: list[dict[str, Any]] = [{"role": "user", "content": content}]
    rendered = tokenizer.apply_chat_template(
        conversation, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return str(rendered)


def expand(ids: TokenIds, image_token_id: int, image_tokens: Sequence[int]) -> TokenIds:
    """The ids with the k-th image token repeated to the k-th count.

    Repeating ids is the same as repeating the literal before tokenising, and twenty times as fast; tokenising the text
    between the images apart is not the same, as tokenizers treat the start of a text as the start of a word.
    """
    repeats = np.ones(len(ids), np.int64)
    repeats[ids == image_token_id] = image_tokens
    return np.repeat(ids, repeats)


def _added_special(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [id for id, token in tokenizer.added_tokens_decoder.items() if token.special]


def _pattern(literals: Iterable[str]) -> re.Pattern[str]:
    breakable = {literal for literal in literals if len(literal) > 1}
    return re.compile("|".join(map(re.escape, sorted(breakable, key=len, reverse=True))))  # the longest one first
