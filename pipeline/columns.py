"""Columns: which column of the input is the image, the id and the prompt or messages, and which ride along."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from pyarrow import types

from pipeline.column_types import ImageKind, image_kind, is_messages, is_text
from schemas.answer import ANSWER_SCHEMA
from schemas.errors import Refused

Role = Literal["image", "id", "prompt", "messages"]

# Looked for in any case (URL, url); where two of a role are there, the user must say which.
NAMES: dict[Role, tuple[str, ...]] = {
    "image": (
        *("image", "images", "image_bytes", "img", "jpg", "jpeg", "png", "webp", "bytes"),
        *("image_url", "image_uri", "image_path", "url", "uri", "path"),
    ),
    "id": ("id", "key", "question_id", "sample_id", "uid"),
    "prompt": ("prompt", "question"),
    "messages": ("messages", "conversation", "conversations"),
}
REFERENCE = "reference"  # what the answers call the column of the texts that are right
# Often a caption and not a question, so it is the prompt only where there is no better name.
WEAK_PROMPT_NAMES = ("text",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnChoices:
    """What the user said of the columns; None is found by convention.

    `own_prompts` says that the job has prompts of its own: then only a prompt column named by the user counts.
    `values` are the columns that these prompts name.
    """

    image: str | None = None
    id: str | None = None
    prompt: str | None = None
    messages: str | None = None
    keep: tuple[str, ...] = ()
    own_prompts: bool = False
    values: tuple[str, ...] = ()
    reference: str | None = None  # the texts that are right; kept as REFERENCE, and never a prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An input column that is copied to the answers under `name`."""

    name: str
    column: str
    type: pa.DataType


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What was found. `image` is None where the input files are the images, or messages name those there are.

    `id` is None where ids are made.
    """

    image: str | None = None
    image_kind: ImageKind | None = None
    id: str | None = None
    prompt: str | None = None
    messages: str | None = None
    ignored_prompt: str | None = None  # would be the prompt if the job had none
    values: tuple[str, ...] = ()  # that the job's prompts name
    keep: tuple[Kept, ...] = ()

    def used(self) -> list[str]:
        """The input columns that are read, each once."""
        named = (self.image, self.id, self.prompt, self.messages)
        names = (*named, *self.values, *(kept.column for kept in self.keep))
        return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSchema:
    """The schema that one file's footer states."""

    url: str
    schema: pa.Schema


def find_columns(files: Sequence[FileSchema], choices: ColumnChoices) -> Columns:
    """The columns of these files, which must agree on them; else a ValueError that names the choices and the flag."""
    schema = _common_schema(files)
    others = pa.schema([field for field in schema if field.name != choices.reference])
    asked = _find_asked(others, choices)
    image = _named(schema, "image", choices.image) or _find_image(schema, needed=asked["messages"] is None)
    prompts = _candidates(others, "prompt")
    columns = Columns(
        image=image,
        image_kind=image_kind(schema.field(image).type) if image else None,
        id=_named(schema, "id", choices.id) or _only("id", _candidates(schema, "id")),
        **asked,
        ignored_prompt=prompts[0] if prompts and asked["prompt"] is None else None,
        values=_find_values(schema, choices.values),
        keep=_find_kept(schema, choices.keep, _find_reference(schema, choices.reference)),
    )
    for file in files:
        _check_file(file, columns, files[0].url, schema)
    return columns


def describe_columns(columns: Columns) -> list[str]:
    """What was found, a line a role, for people."""
    whole_files = columns.image is None and columns.messages is None
    made = "made from the file's path" if whole_files else "made from the file and the row's position"
    no_column = "the files themselves" if whole_files else "none but those that messages name"
    lines = [
        f"image: column {columns.image!r} ({columns.image_kind})" if columns.image else f"image: {no_column}",
        f"id: column {columns.id!r}" if columns.id else f"id: {made}",
        _describe_asked(columns),
    ]
    lines += [f"prompt: names column {name!r}" for name in columns.values]
    return [*lines, *(f"keep: column {kept.column!r} as {kept.name!r}" for kept in columns.keep)]


def _describe_asked(columns: Columns) -> str:
    ignored = columns.ignored_prompt
    advice = f" (column {ignored!r} is ignored; --prompt-column {ignored} asks it)" if ignored else ""
    if columns.messages:
        return f"messages: column {columns.messages!r}{advice}"
    return f"prompt: column {columns.prompt!r}" if columns.prompt else f"prompt: the job's{advice}"


def refuse_choices(choices: ColumnChoices) -> None:
    """Raise ValueError where columns are named but the input files are images, which have none."""
    named = {role: getattr(choices, role) for role in NAMES}
    given = [f"--{role}-column {name}" for role, name in named.items() if name]
    given += [f"--reference-column {choices.reference}"] if choices.reference else []
    given += [f"--keep {name}" for name in choices.keep] + [f"--prompt with {name}" for name in choices.values]
    if given:
        raise Refused(f"{given[0]} needs Parquet input: image files have no columns")


def _common_schema(files: Sequence[FileSchema]) -> pa.Schema:
    """The first file's columns; one that is all null there (type null) has the first real type that a file gives."""
    fields = []
    for field in files[0].schema:
        if files[0].schema.get_field_index(field.name) < 0:
            raise Refused(
                f"{files[0].url} has more than one column {field.name!r}; columns must have names of their own"
            )
        real = (file.schema.field(field.name) for file in files if field.name in file.schema.names)
        fields.append(next((other for other in real if not types.is_null(other.type)), field))
    return pa.schema(fields)


def _check_file(file: FileSchema, columns: Columns, first_url: str, schema: pa.Schema) -> None:
    kept = {one.column for one in columns.keep}
    for name in columns.used():
        if file.schema.names.count(name) != 1:
            raise Refused(f"{file.url} must have one column {name!r} as {first_url} has, got {_listed(file.schema)}")
        here, there = file.schema.field(name).type, schema.field(name).type
        if types.is_null(here) or here == there:
            continue
        if name in kept or _family(here) != _family(there):
            raise Refused(f"column {name!r} must be {there} in every file, {file.url} has {here}")


def _family(type: pa.DataType) -> str:
    """Types that are read alike: string and large_string, or integers of any size."""
    return "integer" if types.is_integer(type) else (image_kind(type) or str(type))


def _named(schema: pa.Schema, role: Role, name: str | None) -> str | None:
    if name is None:
        return None
    _check_name(schema, f"--{role}-column", name)
    type = schema.field(name).type
    if not _suits(role, type):
        raise Refused(f"--{role}-column {name} must be {_WANTED[role]}, got {type}")
    return name


def _check_name(schema: pa.Schema, flag: str, name: str) -> None:
    if name not in schema.names:
        near = difflib.get_close_matches(name, schema.names, n=1)
        advice = f"did you mean {near[0]!r}? " if near else ""
        raise Refused(f"{flag} {name}: no such column; {advice}The columns are {_listed(schema)}")


_WANTED: dict[Role, str] = {
    "image": "bytes, a string (a path or URI) or a struct with bytes or path, or a list of these",
    "id": "a string or an integer",
    "prompt": "a string",
    "messages": "JSON text or a list of structs with role and content, and no bytes in them",
}


def _suits(role: Role, type: pa.DataType) -> bool:
    match role:
        case "image":
            return image_kind(type) is not None
        case "id":
            return is_text(type) or bool(types.is_integer(type))
        case "prompt":
            return is_text(type)
        case "messages":
            return is_messages(type)


def _candidates(schema: pa.Schema, role: Role) -> list[str]:
    def having(names: tuple[str, ...]) -> list[str]:
        return [field.name for field in schema if field.name.lower() in names and _suits(role, field.type)]

    return having(NAMES[role]) or (having(WEAK_PROMPT_NAMES) if role == "prompt" else [])


def _only(role: Role, candidates: list[str]) -> str | None:
    if len(candidates) > 1:
        choices = ", ".join(map(repr, candidates))
        raise Refused(f"more than one column could be the {role}: {choices}; set --{role}-column to one of them")
    return candidates[0] if candidates else None


def _find_asked(schema: pa.Schema, choices: ColumnChoices) -> dict[Literal["prompt", "messages"], str | None]:
    """What every row asks by itself: a prompt, or messages; neither where the job asks."""
    prompt, messages = _named(schema, "prompt", choices.prompt), _named(schema, "messages", choices.messages)
    if prompt or messages or choices.own_prompts:
        return {"prompt": prompt, "messages": messages}
    prompts, conversations = _candidates(schema, "prompt"), _candidates(schema, "messages")
    if conversations and prompts and prompts[0].lower() not in WEAK_PROMPT_NAMES:
        raise Refused(
            f"both {conversations[0]!r} and {prompts[0]!r} could be what to ask; "
            "set --messages-column or --prompt-column"
        )
    messages = _only("messages", conversations)
    return {"prompt": None if messages else _only("prompt", prompts), "messages": messages}


def _find_image(schema: pa.Schema, *, needed: bool) -> str | None:
    """By name, else the only column whose type can be nothing but an image."""
    typed = [field.name for field in schema if image_kind(field.type) in _ONLY_IMAGES]
    found = _only("image", _candidates(schema, "image") or typed)
    if found is None and needed:
        raise Refused(f"no image column found, set --image-column; the columns are {_listed(schema)}")
    return found


_ONLY_IMAGES = ("bytes", "struct", "list of bytes", "list of struct")


def _find_values(schema: pa.Schema, names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        _check_name(schema, "--prompt with", name)
        type = schema.field(name).type
        if types.is_nested(type) or image_kind(type) == "bytes":
            raise Refused(f"--prompt with {name} must name a column of text or numbers, got {type}")
    return names


def _find_reference(schema: pa.Schema, name: str | None) -> tuple[Kept, ...]:
    if name is None:
        return ()
    _check_name(schema, "--reference-column", name)
    if not is_text(schema.field(name).type):
        raise Refused(f"--reference-column {name} must be a string, got {schema.field(name).type}")
    return (Kept(name=REFERENCE, column=name, type=schema.field(name).type),)


def _find_kept(schema: pa.Schema, keep: tuple[str, ...], others: tuple[Kept, ...]) -> tuple[Kept, ...]:
    found = {other.name: other for other in others}
    for text in keep:
        new, equals, old = text.partition("=")
        name, column = (new, old) if equals and text not in schema.names else (text, text)
        if not name:
            raise Refused(f"--keep must be name or new=old, got {text!r}")
        _check_name(schema, "--keep", column)
        if name in ANSWER_SCHEMA.names:
            raise Refused(
                f"--keep {text}: the answers have a column {name!r} already; write --keep input_{column}={column}"
            )
        if name in found:
            raise Refused(f"--keep {text}: {name!r} is kept twice; give one of them another name as new=old")
        found[name] = Kept(name=name, column=column, type=schema.field(column).type)
    return tuple(found.values())


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
