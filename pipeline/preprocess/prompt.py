"""Prompts: from a conversation about some images to token ids, every image already as long as its features."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pipeline.preprocess.conversation import Conversation, ask
from pipeline.preprocess.formats import FORMATS
from pipeline.preprocess.own import THREE_TURNS
from pipeline.preprocess.parts import ModelParts
from pipeline.preprocess.template import Render, hash_template, renderer
from schemas.errors import Refused, RowError
from schemas.sample import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Who speaks and where the images are, whatever the texts: which special tokens the template writes follows from it.
_Outline: TypeAlias = tuple[bool | None, tuple[tuple[str, tuple[bool, ...]], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLimits:
    """Holds what a network says of tokens."""

    image_token_id: int
    context: int  # tokens of prompt and answer together
    rows: int  # of the embedding table


class PromptBuilder:
    """Renders and tokenises prompts the way one checkpoint wants them.

    A special token that somebody wrote out in a text (`<image>`, `</s>`, `<|im_start|>`, ...) must not become that
    token: it is broken by a space after its first character, `< image>`. A prompt that still brings one in fails.
    """

    def __init__(
        self,
        *,
        tokenizer: "PreTrainedTokenizerBase",
        limits: TokenLimits,
        render: Render,
        markers: tuple[str, ...] = (),  # tokens the renderer writes, special or not
        template_hash: str = "",
    ) -> None:
        self.template_hash = template_hash
        self.context = limits.context
        self.image_token_id = limits.image_token_id
        self._tokenizer = tokenizer
        self._render = render
        self._rows = limits.rows
        named = [*tokenizer.all_special_ids, *_added_special(tokenizer), *_ids_of(tokenizer, markers)]
        special = {*named, self.image_token_id, *self._turn_tokens()}
        self._literals = _pattern(tokenizer.convert_ids_to_tokens(list(special)))
        # a letter that the tokenizer does not know becomes its unknown token: no reason to refuse a prompt
        self._special_ids = [id for id in special if id != tokenizer.unk_token_id]
        self._own_special: dict[_Outline, list[int]] = {}
        self._asked: dict[tuple[Conversation, str], TokenIds] = {}
        self._most_letters: int | None = None
        self._before_answer: str | None = None
        self._check_template()

    @staticmethod
    def of(parts: ModelParts) -> "PromptBuilder":
        """Return the builder of a checkpoint's prompts; raises Refused where its template cannot render them."""
        facts, template, own = parts.facts, parts.template, parts.own_template
        return PromptBuilder(
            tokenizer=parts.tokenizer,
            limits=TokenLimits(image_token_id=facts.image_token_id, context=facts.context, rows=facts.text.vocabulary),
            render=renderer(template, parts.tokenizer, own),
            template_hash=hash_template(template, own),
            markers=FORMATS[template].markers if template in FORMATS else (),
        )

    def check_system(self, system: str) -> None:
        """Raise Refused where the template refuses or leaves out a system message."""
        for num_images in (0, 1):
            try:
                self._expected_special(replace(ask("x", num_images), system=system))
            except RowError as error:
                what = f"takes {system!r}: {error.failure.message}"
                if error.failure.type == _LEFT_OUT:
                    what = f"writes it, the model's leaves out {system!r}"
                raise Refused(f"--system must have a chat template that {what}") from error

    def render(self, conversation: Conversation) -> str:
        """Return the string that is tokenised: one `<image>` an image, special tokens in the texts broken."""
        return self._render(conversation.with_texts(self._break))

    def token_ids(
        self, conversation: Conversation, image_tokens: Sequence[int], room: int = 1, answer_prefix: str = ""
    ) -> TokenIds:
        """Return the prompt's ids, the `<image>` of each image repeated to its count; raises RowError("prompt", ...).

        They end in those that the answer begins with, and leave `room` new tokens in the context.
        """
        _check_conversation(conversation, len(image_tokens))
        ids = expand(self._ids_asked(conversation, answer_prefix), self.image_token_id, image_tokens)
        assert np.count_nonzero(ids == self.image_token_id) == sum(image_tokens)
        if len(ids) + room > self.context:
            num_text = len(ids) - sum(image_tokens)
            parts = f"{num_text} text tokens + {sum(image_tokens)} image tokens + {room} new tokens"
            message = f"{parts} = {len(ids) + room} tokens, the model's context is {self.context}"
            raise RowError("prompt", "PromptTooLong", message)
        return ids

    def _ids_asked(self, conversation: Conversation, answer_prefix: str) -> TokenIds:
        """Return the checked ids with one `<image>` an image: of what every row asks they are made once."""
        key = conversation, answer_prefix
        if (known := self._asked.get(key)) is not None:
            return known
        self._check_letters(conversation)
        ids = self._tokenise(self._begun(self.render(conversation), answer_prefix))
        self._check_special(ids, conversation)
        if len(conversation.turns) <= _TURNS and len(ids) <= _SHORT:
            if len(self._asked) >= _ASKED:
                self._asked.clear()
            self._asked[key] = ids
        return ids

    def num_prefix(self, answer_prefix: str) -> int:
        """Return how many of a prompt's last tokens are what the answer begins with; raise Refused where that would
        play a turn."""
        if not answer_prefix:
            return 0
        if self._break(answer_prefix) != answer_prefix:
            raise Refused(f"--answer-prefix must hold no special token of the model, got {answer_prefix!r}")
        rendered = self.render(ask("x", 0))
        both = self._tokenise(rendered), self._tokenise(self._begun(rendered, answer_prefix))
        return len(both[1]) - common_length(both)

    def _begun(self, rendered: str, answer_prefix: str) -> str:
        """Return a prompt with the beginning of its answer, behind the blank that the template has there if any."""
        if not answer_prefix:
            return rendered
        if self._before_answer is None:
            self._before_answer = self._blank_before_answers()
        blank = "" if rendered.endswith((" ", "\n")) else self._before_answer
        return rendered + blank + answer_prefix

    def _blank_before_answers(self) -> str:
        """Return what the template writes between where an answer begins and its text, in an earlier turn."""
        try:
            rendered = self._render(THREE_TURNS.with_texts(lambda text: f"x{text}x"))
        except RowError:  # a template need not take earlier turns
            return ""
        answer = next(part for turn in THREE_TURNS.turns if turn.role == "assistant" for part in turn.parts if part)
        before, found, _ = rendered.partition(f"x{answer}x")
        return " " if found and before.endswith(" ") else ""

    def prefix(self, system: str | None) -> TokenIds:
        """Return what the prompts with this system message begin with, whatever they ask and with images or without."""
        asked = [replace(ask(text, num), system=system) for text, num in (("x", 1), ("x", 0), ("0", 0))]
        found = [self._tokenise(self.render(conversation)) for conversation in asked]
        return found[0][: common_length(found)]

    def _tokenise(self, rendered: str) -> TokenIds:
        bos = self._tokenizer.bos_token
        begun = bool(bos) and rendered.startswith(str(bos))  # by the template: the tokenizer would add a second one
        encoded = self._tokenizer(rendered, add_special_tokens=not begun, return_attention_mask=False, verbose=False)
        ids = np.asarray(encoded["input_ids"], np.int32)
        if ids.max(initial=0) >= self._rows:  # of a tokenizer that is larger than the network's table
            names = ", ".join(self._tokenizer.convert_ids_to_tokens(sorted(set(ids[ids >= self._rows].tolist()))))
            message = f"the prompt must keep to the {self._rows} tokens of the network, it brings in {names}"
            raise RowError("prompt", "UnknownToken", message)
        return ids

    def _check_letters(self, conversation: Conversation) -> None:
        """Refuse what can be no prompt of the context, however it is tokenised, before it is rendered or tokenised."""
        if self._most_letters is None:
            longest = max(len(token.encode()) for token in self._tokenizer.get_vocab())
            self._most_letters = self.context * longest * _COMPOSED
        letters = sum(len(part or "") for turn in conversation.turns for part in turn.parts)
        letters += len(conversation.system or "")
        if letters > self._most_letters or len(conversation.turns) > self.context:
            message = (
                f"{letters} letters in {len(conversation.turns)} turns, the model's context is {self.context} tokens"
            )
            raise RowError("prompt", "PromptTooLong", message)

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
        """Return the special tokens of a harmless conversation like it: those that the template itself writes."""
        outline = _outline(conversation)
        if outline not in self._own_special:
            expected = self._special_in(self._tokenise(self._render_harmless(conversation)))
            if len(conversation.turns) > _TURNS:
                return expected
            if len(self._own_special) >= _OUTLINES:
                self._own_special.clear()
            self._own_special[outline] = expected
        return self._own_special[outline]

    def _render_harmless(self, conversation: Conversation) -> str:
        """Return the conversation with a word of its own instead of every text; raises RowError where the template
        leaves one out, and so would leave out the text."""
        words: list[str] = []

        def word(_: str) -> str:
            words.append(f"x{len(words)}x")
            return words[-1]

        harmless = conversation.with_texts(word)
        rendered = self._render(harmless)
        if "'type': 'text'" in rendered:
            raise RowError("prompt", "TemplateError", "the chat template writes a list of parts where it takes texts")
        lost = [number for number, one in enumerate(words) if one not in rendered.lower()]
        if lost:
            in_turns = sum(part is not None for turn in harmless.turns for part in turn.parts)
            what = "the system message" if lost[0] >= in_turns else f"text {lost[0] + 1} of {in_turns} of the turns"
            raise RowError("prompt", _LEFT_OUT, f"the chat template must write every text, it leaves out {what}")
        return rendered

    def _turn_tokens(self) -> set[int]:
        """Return the added tokens that the template writes, whatever the tokenizer's flag says of them: whoever could
        write them in a text could play a turn."""
        probes = [ask("x", 0), ask("x", 1), THREE_TURNS]
        written: set[int] = set()
        for probe in [*probes, *(replace(probe, system="x") for probe in probes)]:
            try:
                written.update(self._tokenise(self._render(probe)).tolist())
            except RowError:  # a template need not take all of them
                continue
        added = self._tokenizer.added_tokens_decoder
        return {id for id in written if id in added and _can_mark(str(added[id].content))}

    def _check_template(self) -> None:
        for num_images in (0, 1, 2):
            conversation = ask("x", num_images)
            try:
                found = self._expected_special(conversation).count(self.image_token_id)
            except RowError as error:
                raise Refused(f"{error.failure.message}; set --chat-template") from error
            if found != num_images:
                raise Refused(
                    f"the chat template must write one image token (id {self.image_token_id}) an image, "
                    f"got {found} for {num_images} images"
                )


_OUTLINES = 4096  # kept at once
_LEFT_OUT = "TextLeftOut"
_TURNS = 64  # of the longest that is kept
_ASKED, _SHORT = 256, 2048  # prompts whose ids are kept at once, and the tokens of the longest
_COMPOSED = 4  # letters that a tokenizer may make one of before it begins: combining accents, syllables


def common_length(prompts: Sequence[TokenIds]) -> int:
    """Return how many ids all of them begin with."""
    shortest = min(map(len, prompts))
    differs = np.any([prompts[0][:shortest] != ids[:shortest] for ids in prompts], axis=0)
    return int(differs.argmax()) if differs.any() else shortest


def expand(ids: TokenIds, image_token_id: int, image_tokens: Sequence[int]) -> TokenIds:
    """Return the ids with the k-th image token repeated to the k-th count.

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
            f"the messages must have a placeholder for every image of the row, they have {conversation.num_images} "
            f'of {{"type": "image"}} for {num_images} images',
        )
    if not conversation.question.strip():
        raise RowError("prompt", "EmptyPrompt", f"the prompt must not be empty or blank, got {conversation.question!r}")


def _outline(conversation: Conversation) -> _Outline:
    turns = tuple((turn.role, tuple(part is None for part in turn.parts)) for turn in conversation.turns)
    system = None if conversation.system is None else bool(conversation.system)  # None: the format may have its own
    return system, turns


def _ids_of(tokenizer: "PreTrainedTokenizerBase", markers: tuple[str, ...]) -> list[int]:
    """Return the ids of a format's tokens; raises ValueError where the vocabulary has none of that name."""
    vocabulary = tokenizer.get_vocab()
    missing = [marker for marker in markers if marker not in vocabulary]
    if missing:
        raise Refused(f"--chat-template must suit the model, whose vocabulary has no {', '.join(missing)}")
    return [vocabulary[marker] for marker in markers]


def _can_mark(token: str) -> bool:
    """Return whether a token can open or close a turn: blanks and mere words are in every text."""
    return len(token) > 1 and not token.isspace() and not token.strip().isalnum()


def _added_special(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    return [id for id, token in tokenizer.added_tokens_decoder.items() if token.special]


def _pattern(literals: Iterable[str]) -> re.Pattern[str]:
    breakable = {literal for literal in literals if len(literal) > 1}
    return re.compile("|".join(map(re.escape, sorted(breakable, key=len, reverse=True))))  # the longest one first
