"""Chat templates: which one a job renders its prompts with, and how. The choice is made here and nowhere else."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from pipeline.preprocess.conversation import Conversation, Part
from pipeline.preprocess.formats import FORMATS, TextFacts, published_format, render_format
from schemas.errors import Refused, RowError

# A conversation -> the string that the model was trained to see before its answer.
Render: TypeAlias = Callable[[Conversation], str]

CHECKPOINT = "checkpoint"


def choose_template(choice: str, text: TextFacts) -> str:
    """What `--chat-template` comes to: a format's name, `checkpoint`, or the text of a Jinja template.

    `auto` is the format of a published checkpoint that has this text backbone, and the checkpoint's own template where
    there is none. What this returns it returns as it is: it can be asked again, on another machine.
    """
    if choice == "auto":
        return published_format(text) or CHECKPOINT
    if choice == CHECKPOINT or choice in FORMATS or is_template(choice):
        return choice
    if choice.endswith((".jinja", ".jinja2", ".j2")):
        return _read_template(choice)
    known = ", ".join(("auto", CHECKPOINT, *FORMATS))
    raise Refused(f"--chat-template must be one of {known}, or a .jinja file, got {choice!r}")


def describe_template(template: str) -> str:
    """What `choose_template` chose, in a word or two."""
    if is_template(template):
        return f"a Jinja template of {len(template)} characters"
    return "the checkpoint's own template" if template == CHECKPOINT else f"format {template}"


def is_template(text: str) -> bool:
    """Whether this is a Jinja template's text, not the name of something."""
    return "{{" in text or "{%" in text


def hash_template(template: str, own: str | None) -> str:
    """What proves that two runs rendered alike; `own` is the checkpoint's template."""
    written = repr(FORMATS[template]) if template in FORMATS else own if template == CHECKPOINT else template
    return hashlib.sha256((written or "").encode()).hexdigest()[:16]


def renderer(template: str, tokenizer: PreTrainedTokenizerBase, own: str | None) -> Render:
    """The function that renders with what `choose_template` chose; `own` is the checkpoint's template."""
    if template in FORMATS:
        format = FORMATS[template]
        return lambda conversation: render_format(format, conversation)
    jinja = own if template == CHECKPOINT else template
    if jinja is None:
        raise Refused("the model must have a chat template (chat_template.jinja), found none; set --chat-template")
    return lambda conversation: render_jinja(tokenizer, jinja, conversation)


def render_jinja(tokenizer: PreTrainedTokenizerBase, template: str, conversation: Conversation) -> str:
    """The conversation through a Jinja chat template, up to where the answer starts."""
    try:
        rendered = tokenizer.apply_chat_template(
            _messages(conversation), chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise RowError("prompt", "TemplateError", f"the chat template refuses the messages: {error}") from error
    return str(rendered)


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    """What templates take: they drop a content that is not a list without a word."""
    system = [{"role": "system", "content": [_part(conversation.system)]}] if conversation.system else []
    turns = [{"role": turn.role, "content": [_part(part) for part in turn.parts]} for turn in conversation.turns]
    return [*system, *turns]


def _part(part: Part) -> dict[str, str]:
    return {"type": "image"} if part is None else {"type": "text", "text": part}


def _read_template(path: str) -> str:
    try:
        template = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise Refused(f"--chat-template {path} must be a Jinja file: {error}") from error
    if not is_template(template):
        raise Refused(f"--chat-template {path} must be a Jinja file, it has neither {{{{ nor {{% in it")
    return template
