"""Chat templates: which one a job renders its prompts with, and how. The choice is made here and nowhere else."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from pipeline.preprocess.conversation import Conversation
from pipeline.preprocess.facts import ModelFacts
from pipeline.preprocess.files import load_processor
from pipeline.preprocess.formats import FORMATS, published_format, render_format
from pipeline.preprocess.own import difference, named_templates, own_template, render_jinja
from pipeline.storage.local_files import read_text
from schemas.errors import Refused
from schemas.job import TEMPLATE_SUFFIXES

if TYPE_CHECKING:
    from transformers import LlavaNextProcessor, PreTrainedTokenizerBase

# A conversation -> the string that the model was trained to see before its answer.
Render: TypeAlias = Callable[[Conversation], str]

CHECKPOINT = "checkpoint"


def choose_template(choice: str, facts: ModelFacts, processor: "LlavaNextProcessor | None" = None) -> str:
    """Return what `--chat-template` comes to: a format's name, `checkpoint`, or the text of a Jinja template.

    `auto` is the checkpoint's own template; but for a published checkpoint, with the template it was shipped with or
    none, the format it was trained in. What this returns it returns as it is: it can be asked again, on another
    machine. The processor is read where it is needed and not given.
    """
    if choice == "auto":
        format = published_format(facts.text)
        if format is None:
            return CHECKPOINT
        return _own_or(format, facts, processor or load_processor(facts.model, facts.revision))
    if choice == CHECKPOINT or choice in FORMATS or is_template(choice):
        return choice
    if choice.endswith(TEMPLATE_SUFFIXES):
        return _read_template(choice)
    known = ", ".join(("auto", CHECKPOINT, *FORMATS))
    raise Refused(f"--chat-template must be one of {known}, or a .jinja file, got {choice!r}")


def _own_or(format: str, facts: ModelFacts, processor: "LlavaNextProcessor") -> str:
    differs = difference(format, facts, processor)
    if differs is None:
        return format
    if not named_templates(processor):
        raise Refused(f"--chat-template must say how the model is asked, which has no chat template: {differs}")
    return CHECKPOINT


def describe_template(template: str, facts: ModelFacts, processor: "LlavaNextProcessor") -> str:
    """Describe what `choose_template` chose, and how a checkpoint of a published one's shape differs from it."""
    if is_template(template):
        return f"a Jinja template of {len(template)} characters{_by_the_clock(template)}"
    format = published_format(facts.text)
    differs = difference(format, facts, processor) if format else None
    if template == CHECKPOINT:
        asks = f" ({differs}, which --chat-template {format} asks in)" if differs else ""
        return f"the checkpoint's own template{_by_the_clock(own_template(processor))}{asks}"
    return f"format {template}" + (f" (the checkpoint may be asked otherwise: {differs})" if differs else "")


def _by_the_clock(jinja: str | None) -> str:
    """Return what is to be said of a template that asks for the time, as Llama-3.1's does."""
    return ", which writes the date: rows of another day are asked otherwise" if "strftime_now" in (jinja or "") else ""


def is_template(text: str) -> bool:
    """Return whether this is a Jinja template's text, not the name of something."""
    return "{{" in text or "{%" in text


def hash_template(template: str, own: str | None) -> str:
    """Return what proves that two runs rendered alike; `own` is the checkpoint's template."""
    written = repr(FORMATS[template]) if template in FORMATS else own if template == CHECKPOINT else template
    return hashlib.sha256((written or "").encode()).hexdigest()[:16]


def renderer(template: str, tokenizer: "PreTrainedTokenizerBase", own: str | None) -> Render:
    """Return the function that renders with what `choose_template` chose; `own` is the checkpoint's template."""
    if template in FORMATS:
        format = FORMATS[template]
        return lambda conversation: render_format(format, conversation)
    jinja = own if template == CHECKPOINT else template
    if jinja is None:
        raise Refused("the model must have a chat template (chat_template.jinja), found none; set --chat-template")
    return lambda conversation: render_jinja(tokenizer, jinja, conversation)


def _read_template(path: str) -> str:
    try:
        template = read_text(path)
    except (OSError, ValueError) as error:
        raise Refused(f"--chat-template {path} must be a Jinja file: {error}") from error
    if not is_template(template):
        raise Refused(f"--chat-template {path} must be a Jinja file, it has neither {{{{ nor {{% in it")
    return template
