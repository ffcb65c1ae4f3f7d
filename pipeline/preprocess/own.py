"""A checkpoint's own chat template: which it is, how it renders, and whether it is a published checkpoint's."""

import re
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from pipeline.preprocess.conversation import Conversation, Part, Turn, ask
from pipeline.preprocess.facts import ModelFacts
from pipeline.preprocess.files import reason_of
from pipeline.preprocess.formats import FORMATS, ChatFormat, render_format
from schemas.errors import Refused, RowError

if TYPE_CHECKING:
    from transformers import LlavaNextProcessor, PreTrainedTokenizerBase

DEFAULT = "default"
THREE_TURNS = Conversation(
    turns=(
        Turn(role="user", parts=(None, "What?")),
        Turn(role="assistant", parts=("A cat.",)),
        Turn(role="user", parts=("Sure?",)),
    )
)
_PROBES = (ask("What is this?", 1), ask("What is this?", 0), THREE_TURNS)
# In these the templates that were shipped with the published checkpoints are known to differ from what those were
# trained on: line breaks before a text and after a turn, and how an earlier answer ends.
_SHIPPED_OTHERWISE = re.compile(r"</s>|<\\s>| ")


def named_templates(processor: "LlavaNextProcessor") -> dict[str, str]:
    """Return the checkpoint's templates by name; the only one is called default."""
    found: Any = processor.chat_template or processor.tokenizer.chat_template or {}
    if isinstance(found, str):
        return {DEFAULT: found}
    if isinstance(found, list) and all(isinstance(one, dict) for one in found):  # as tokenizer_config.json has them
        found = {one.get("name"): one.get("template") for one in found}
    if not isinstance(found, dict) or not all(isinstance(one, str) for pair in found.items() for one in pair):
        raise Refused(f"the model's chat_template must be a text, or texts by name, got {type(found).__name__}")
    return found


def own_template(processor: "LlavaNextProcessor") -> str | None:
    """Return the checkpoint's template, of several the one called default; raise Refused where none of them is."""
    named = named_templates(processor)
    if named and DEFAULT not in named:
        names = ", ".join(sorted(named))
        raise Refused(f"of the model's chat templates one must be called default, found {names}; set --chat-template")
    return named.get(DEFAULT)


def difference(format: str, facts: ModelFacts, processor: "LlavaNextProcessor") -> str | None:
    """Return how a checkpoint of a published one's shape differs from it: in its chat template or its end tokens.

    None says that the format is the checkpoint's: it has the template that was shipped, that of the text backbone,
    which knows of no images, or none.
    """
    end, ends = FORMATS[format].end, _end_tokens(facts, processor.tokenizer)
    if end not in ends:
        return f"answers end with {', '.join(ends) or 'nothing'}, other than in the published {format} format"
    named = named_templates(processor)
    if not named or _is_shipped(named.get(DEFAULT, ""), FORMATS[format], processor):
        return None
    return f"it differs from the {format} format"


def describe_ends(facts: ModelFacts, processor: "LlavaNextProcessor") -> str | None:
    """Describe which tokens end an answer, where the tokenizer names another than the configs; those count, as in
    transformers."""
    own = processor.tokenizer.eos_token_id
    if own is None or not facts.eos_token_ids or own in facts.eos_token_ids:
        return None
    stated = ", ".join(_end_tokens(facts, processor.tokenizer))
    return f"{stated}, as the checkpoint's configs say; its tokenizer's {processor.tokenizer.eos_token} ends none"


def render_jinja(tokenizer: "PreTrainedTokenizerBase", template: str, conversation: Conversation) -> str:
    """Render the conversation by a Jinja chat template, up to where the answer starts; raise RowError."""
    return _render(tokenizer, template, _messages(conversation))


def _render(tokenizer: "PreTrainedTokenizerBase", template: str, messages: list[dict[str, Any]]) -> str:
    try:
        rendered = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise RowError("prompt", "TemplateError", f"the chat template refuses the messages: {error}") from error
    except Exception as error:  # a template is a program: TypeError, ZeroDivisionError, RecursionError, ...
        message = f"the chat template cannot render the messages: {reason_of(error)}"
        raise RowError("prompt", "TemplateError", message) from error
    return str(rendered)


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return what templates take: they drop a content that is not a list without a word."""
    system = [{"role": "system", "content": [_part(conversation.system)]}] if conversation.system else []
    turns = [{"role": turn.role, "content": [_part(part) for part in turn.parts]} for turn in conversation.turns]
    return [*system, *turns]


def _part(part: Part) -> dict[str, str]:
    return {"type": "image"} if part is None else {"type": "text", "text": part}


def _end_tokens(facts: ModelFacts, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    ids = list(facts.eos_token_ids) or [tokenizer.eos_token_id]
    return [str(tokenizer.convert_ids_to_tokens(id)) for id in ids if id is not None]


def _is_shipped(own: str, format: ChatFormat, processor: "LlavaNextProcessor") -> bool:
    """Return whether a template renders as the one that was shipped with the format's checkpoints, or is the text
    backbone's: one that takes texts alone, and writes a question as the format does."""
    tokenizer: PreTrainedTokenizerBase = processor.tokenizer
    try:
        rendered = [render_jinja(tokenizer, own, probe) for probe in _PROBES]
    except RowError:
        rendered = [""]
    if str(processor.image_token) in rendered[0]:
        return _same(rendered, format, tokenizer)
    question = _PROBES[1]
    try:
        texts = _render(tokenizer, own, [{"role": "user", "content": question.question}])
    except RowError:
        return False
    return _plain(texts, tokenizer) in _formatted(format, question, tokenizer)


def _same(rendered: list[str], format: ChatFormat, tokenizer: "PreTrainedTokenizerBase") -> bool:
    pairs = zip(rendered, _PROBES, strict=True)
    return all(_plain(found, tokenizer) in _formatted(format, probe, tokenizer) for found, probe in pairs)


def _formatted(format: ChatFormat, probe: Conversation, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the probe in the format, with its own system message and without."""
    without = Conversation(turns=probe.turns, system="")
    return [_plain(render_format(format, one), tokenizer) for one in (probe, without)]


def _plain(rendered: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    begun = rendered.removeprefix(str(tokenizer.bos_token or "")).replace("\n", "")
    return " ".join(part for part in _SHIPPED_OTHERWISE.split(begun) if part)
