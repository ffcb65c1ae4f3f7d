"""Conversations: the turns that a model reads before its answer, and how a row's `messages` become them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any, Literal, TypeAlias

from schemas.errors import RowError
from schemas.request import ImageRef

Part: TypeAlias = str | None  # a text; None is an image placeholder

_KINDS = ("image", "image_url")  # types of parts that are images
_SOURCES = ("url", "path", "image", "image_url", "base64")  # how such a part names its image
_OTHERS = ("data", "source")  # how parts of other makers do
_IMAGE = "<image>"  # in a text of LLaVA's own data
_ROLES = {"human": "user", "gpt": "assistant"}  # as LLaVA's own data calls them
_ROLES_SHOWN = 99


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of the user or the assistant, texts and images in their order."""

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """User and assistant in turns, the user first and last.

    `system` None leaves the system message to the format, "" is none at all. `uris` are those of the images that the
    messages name themselves, one a placeholder; None stands for the row's own images.
    """

    turns: tuple[Turn, ...]
    system: str | None = None
    uris: tuple[str | None, ...] = ()

    @property
    def num_images(self) -> int:
        """Count the image placeholders of all turns."""
        return sum(turn.parts.count(None) for turn in self.turns)

    @property
    def question(self) -> str:
        """Return the text of the last turn: what the answer is to."""
        return " ".join(part for part in self.turns[-1].parts if part is not None)

    def with_texts(self, change: Callable[[str], str]) -> "Conversation":
        """Return the same conversation with every text changed."""
        turns = tuple(
            replace(turn, parts=tuple(part if part is None else change(part) for part in turn.parts))
            for turn in self.turns
        )
        return replace(self, turns=turns, system=change(self.system) if self.system else self.system)


def ask(text: str, num_images: int) -> Conversation:
    """Return one question about some images, which come before it."""
    return Conversation(turns=(Turn(role="user", parts=(*[None] * num_images, text)),))


def parse_messages(text: str) -> Conversation:
    """Return the conversation in the JSON text of a list of {role, content}; raises RowError("prompt", ...).

    Content is a text, or a list of parts: {"type": "text", "text": ...}, {"type": "image"} for the row's next image,
    {"type": "image_url", "image_url": {"url": ...}} or {"type": "image", "url": ...} for one that is named. `<image>`
    in a text is text.

    Messages of {from, value} are LLaVA's own training data: `<image>` in them is an image, and an answer after the last
    question is what was to be learnt, so it is left out.
    """
    messages = _parse_json(text)
    if any(map(_is_llava, messages)):
        messages = _without_last_answer([_from_llava(message) for message in messages])
    uris = tuple(_uri(part) for part in _image_parts(messages))
    system = None
    if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
        system = _system(messages[0])
        messages = messages[1:]
    turns = tuple(_turn(message) for message in messages)
    found = [turn.role for turn in turns]
    if found != [("user", "assistant")[number % 2] for number in range(len(turns))] or len(turns) % 2 == 0:
        order = ", ".join(found[:_ROLES_SHOWN]) or "no user"
        raise _bad(f"after the system message user and assistant must alternate, the user first and last, got {order}")
    return Conversation(turns=turns, system=system, uris=uris)


def images_in_order(conversation: Conversation, images: Sequence[ImageRef]) -> tuple[ImageRef, ...]:
    """Return the images of a row in the order of their placeholders, those that its messages name among its own; raises
    RowError("prompt", ...) where a placeholder or an image is left over."""
    own = conversation.uris.count(None)
    if own == len(conversation.uris):
        return tuple(images)  # placeholders are counted where the prompt is built
    if own != len(images):
        raise RowError(
            "prompt",
            "ImageCountMismatch",
            "the messages must have a placeholder for every image of the row, they name "
            f'{len(conversation.uris) - own} themselves and have {own} of {{"type": "image"}} for {len(images)} images',
        )
    rest = iter(images)
    return tuple(next(rest) if uri is None else ImageRef(uri=uri) for uri in conversation.uris)


def _parse_json(text: str) -> list[Any]:
    try:
        messages = json.loads(text)
        json.dumps(messages, ensure_ascii=False).encode()  # an escaped half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise _bad(f"messages must be JSON text, {_shown(text)} is not: {error}") from error
    if not isinstance(messages, list) or not messages:
        raise _bad(f"messages must be a list of at least one message, got {_shown(messages)}")
    return messages


def _is_llava(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") is None and "from" in message


def _from_llava(message: object) -> object:
    """Return a message of {from, value} as one of {role, content}."""
    if not isinstance(message, dict) or not _is_llava(message):
        return message
    speaker, value = message["from"], message.get("value")
    role = _ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return {"role": role, "content": _llava_parts(value) if isinstance(value, str) else value}


def _llava_parts(value: str) -> list[dict[str, str]]:
    """Return texts and images as LLaVA was trained on them: one image comes first, several stay where they stand."""
    texts = value.split(_IMAGE)
    if len(texts) == 2:
        texts = ["", "".join(texts).strip()]
    parts: list[dict[str, str]] = []
    for number, text in enumerate(texts):
        parts += [{"type": "image"}] if number else []
        text = text.removeprefix("\n") if number else text  # chat formats write a line break after an image
        parts += [{"type": "text", "text": text}] if text else []
    return parts


def _without_last_answer(messages: list[Any]) -> list[Any]:
    last = messages[-1]
    return messages[:-1] if isinstance(last, dict) and last.get("role") == "assistant" else messages


def _system(message: dict[str, Any]) -> str:
    parts = _parts(message)
    if None in parts:
        raise _bad("a system message must be text, it has an image")
    return "".join(part for part in parts if part is not None)


def _turn(message: object) -> Turn:
    if not isinstance(message, dict) or "role" not in message:
        raise _bad(f"a message must have a role and content, got {_shown(message)}")
    role = message["role"]
    if role not in ("user", "assistant"):
        raise _bad(f"a role must be user or assistant, or system in the first message, got {_shown(role)}")
    parts = _parts(message)
    if not parts:
        raise _bad(f"a message must have content, the {role}'s has none")
    if role == "assistant" and None in parts:
        raise _bad("an image must be in a user's message, it is in an assistant's")
    return Turn(role=role, parts=parts)


def _parts(message: dict[str, Any]) -> tuple[Part, ...]:
    content = message.get("content")
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, list):
        raise _bad(f"content must be a text or a list of parts, got {_shown(content)}")
    return _joined([_part(part) for part in content])


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    """Return the parts with texts side by side as one: a special token cut in two must not come together later."""
    runs = groupby(parts, key=lambda part: part is None)
    joined = [[None] * len(list(run)) if is_image else ["".join(map(str, run))] for is_image, run in runs]
    return tuple(chain.from_iterable(joined))


def _part(part: object) -> Part:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") in _KINDS:
        return None
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise _bad(f'a part must be {{"type": "image"}} or {{"type": "text", "text": ...}}, got {_shown(part)}')


def _image_parts(messages: object) -> Iterator[dict[str, Any]]:
    """Yield the parts that are images, of whatever JSON there is."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") in _KINDS:
                yield part


def _uri(part: dict[str, Any]) -> str | None:
    """Return where the part's image is; None where that is not said."""
    named = _named(part)
    if not named and part["type"] == "image":
        return None
    text = named[0][0].get(named[0][1]) if len(named) == 1 else None
    if not isinstance(text, str) or not text or named[0][1] in _OTHERS:
        raise _bad(
            'a part must be {"type": "image"}, that with one of url, path and base64, or '
            f'{{"type": "image_url", "image_url": {{"url": ...}}}}, got {_shown(part)}'
        )
    is_bare = named[0][1] == "base64" and not text.startswith("data:")
    return f"data:;base64,{text}" if is_bare else text


def _named(part: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return the fields that say where the part's image is, each as an object and its name there; nulls say nothing."""
    found = []
    for name in (*_SOURCES, *_OTHERS):
        value = part.get(name)
        if isinstance(value, dict) and any(inner is not None for inner in value.values()):
            found.append((value, "url"))
        elif value is not None and not isinstance(value, dict):
            found.append((part, name))
    return found


def _bad(message: str) -> RowError:
    return RowError("prompt", "BadMessages", message)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
