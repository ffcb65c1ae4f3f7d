"""Columns: which column of the input is the image, the id and the prompt, and which are copied to the answers."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from pyarrow import types

from schemas.answer import ANSWER_SCHEMA

Role = Literal["image", "id", "prompt"]
ImageKind = Literal["bytes", "uri", "struct"]

# Looked for in any case (URL, url); where two of a role are there, the user must say which.
NAMES: dict[Role, tuple[str, ...]] = {
    "image": (
        *("image", "image_bytes", "img", "jpg", "jpeg", "png", "webp", "bytes"),
        *("image_url", "image_uri", "image_path", "url", "uri", "path"),
    ),
    "id": ("id", "key", "question_id", "sample_id", "uid"),
    "prompt": ("prompt", "question"),
}
# Often a caption and not a question, so it is the prompt only where there is no better name.
WEAK_PROMPT_NAMES = ("text",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnChoices:
    """What the user said of the columns; None is found by convention.

    `own_prompts` says that the job has prompts of its own: then only a prompt column named by the user counts.
    """

    image: str | None = None
    id: str | None = None
    prompt: str | None = None
    keep: tuple[str, ...] = ()
    own_prompts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An input column that is copied to the answers under `name`."""

    name: str
    column: str
    type: pa.DataType


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What was found. `image` is None where the input files are the images; `id` None where ids are made."""

    image: str | None = None
    image_kind: ImageKind | None = None
    id: str | None = None
    prompt: str | None = None
    ignored_prompt: str | None = None  # would be the prompt if the job had none
    keep: tuple[Kept, ...] = ()

    def used(self) -> list[str]:
        """The input columns that are read, each once."""
        names = (self.image, self.id, self.prompt, *(kept.column for kept in self.keep))
        return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSchema:
    """The schema that one file's footer states."""

    url: str
    schema: pa.Schema


def find_columns(files: Sequence[FileSchema], choices: ColumnChoices) -> Columns:
    """The columns of these files, which must agree on them; else a ValueError that names the choices and the flag."""
    schema = _common_schema(files)
    image = _named(schema, "image", choices.image) or _find_image(schema)
    prompts = _candidates(schema, "prompt")
    prompt = _named(schema, "prompt", choices.prompt)
    if prompt is None and not choices.own_prompts:
        prompt = _only("prompt", prompts)
    columns = Columns(
        image=image,
        image_kind=image_kind(schema.field(image).type),
        id=_named(schema, "id", choices.id) or _only("id", _candidates(schema, "id")),
        prompt=prompt,
        ignored_prompt=prompts[0] if prompts and prompt is None else None,
        keep=_find_kept(schema, choices.keep),
    )
    for file in files:
        _check_file(file, columns, files[0].url, schema)
    return columns


def describe_columns(columns: Columns) -> list[str]:
    """What was found, a line a role, for people."""
    made = "made from the file's path" if columns.image is None else "made from the file and the row's position"
    lines = [
        f"image: column {columns.image!r} ({columns.image_kind})" if columns.image else "image: the files themselves",
        f"id: column {columns.id!r}" if columns.id else f"id: {made}",
        f"prompt: column {columns.prompt!r}" if columns.prompt else "prompt: the job's",
    ]
    if columns.ignored_prompt:
        lines[-1] += (
            f" (column {columns.ignored_prompt!r} is ignored; --prompt-column {columns.ignored_prompt} asks it)"
        )
    return [*lines, *(f"keep: column {kept.column!r} as {kept.name!r}" for kept in columns.keep)]


def refuse_choices(choices: ColumnChoices) -> None:
    """Raise ValueError where columns are named but the input files are images, which have none."""
    named = {"--image-column": choices.image, "--id-column": choices.id, "--prompt-column": choices.prompt}
    given = [f"{flag} {name}" for flag, name in named.items() if name] + [f"--keep {name}" for name in choices.keep]
    if given:
        raise ValueError(f"{given[0]} needs Parquet input: image files have no columns")


def image_kind(type: pa.DataType) -> ImageKind | None:
    """How a column of this type holds an image; None where it cannot."""
    if types.is_binary(type) or types.is_large_binary(type):
        return "bytes"
    if is_text(type):
        return "uri"
    if types.is_struct(type) and {"bytes", "path"} & {field.name for field in type}:
        return "struct"
    return None


def is_text(type: pa.DataType) -> bool:
    """Whether a column of this type holds strings, dictionary-encoded ones too."""
    value = type.value_type if types.is_dictionary(type) else type
    return bool(types.is_string(value) or types.is_large_string(value))


def _common_schema(files: Sequence[FileSchema]) -> pa.Schema:
    """The first file's columns; one that is all null there (type null) has the first real type that a file gives."""
    fields = []
    for field in files[0].schema:
        if files[0].schema.get_field_index(field.name) < 0:
            raise ValueError(
                f"{files[0].url} has more than one column {field.name!r}; columns must have names of their own"
            )
        real = (file.schema.field(field.name) for file in files if field.name in file.schema.names)
        fields.append(next((other for other in real if not types.is_null(other.type)), field))
    return pa.schema(fields)


def _check_file(file: FileSchema, columns: Columns, first_url: str, schema: pa.Schema) -> None:
    kept = {one.column for one in columns.keep}
    for name in columns.used():
        if file.schema.names.count(name) != 1:
            raise ValueError(f"{file.url} must have one column {name!r} as {first_url} has, got {_listed(file.schema)}")
        here, there = file.schema.field(name).type, schema.field(name).type
        if types.is_null(here) or here == there:
            continue
        if name in kept or _family(here) != _family(there):
            raise ValueError(f"column {name!r} must be {there} in every file, {file.url} has {here}")


def _family(type: pa.DataType) -> str:
    """Types that are read alike: string and large_string, or integers of any size."""
    return "integer" if types.is_integer(type) else (image_kind(type) or str(type))


def _named(schema: pa.Schema, role: Role, name: str | None) -> str | None:
    if name is None:
        return None
    _check_name(schema, f"--{role}-column", name)
    type = schema.field(name).type
    if not _suits(role, type):
        raise ValueError(f"--{role}-column {name} must be {_WANTED[role]}, got {type}")
    return name


def _check_name(schema: pa.Schema, flag: str, name: str) -> None:
    if name not in schema.names:
        near = difflib.get_close_matches(name, schema.names, n=1)
        advice = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{flag} {name}: no such column; {advice}The columns are {_listed(schema)}")


_WANTED: dict[Role, str] = {
    "image": "bytes, a string (a path or URI) or a struct with bytes or path",
    "id": "a string or an integer",
    "prompt": "a string",
}


def _suits(role: Role, type: pa.DataType) -> bool:
    match role:
        case "image":
            return image_kind(type) is not None
        case "id":
            return is_text(type) or bool(types.is_integer(type))
        case "prompt":
            return is_text(type)


def _candidates(schema: pa.Schema, role: Role) -> list[str]:
    def having(names: tuple[str, ...]) -> list[str]:
        return [field.name for field in schema if field.name.lower() in names and _suits(role, field.type)]

    return having(NAMES[role]) or (having(WEAK_PROMPT_NAMES) if role == "prompt" else [])


def _only(role: Role, candidates: list[str]) -> str | None:
    if len(candidates) > 1:
        choices = ", ".join(map(repr, candidates))
        raise ValueError(f"more than one column could be the {role}: {choices}; set --{role}-column to one of them")
    return candidates[0] if candidates else None


def _find_image(schema: pa.Schema) -> str:
    """By name, else the only column whose type can be nothing but an image."""
    typed = [field.name for field in schema if image_kind(field.type) in ("bytes", "struct")]
    found = _only("image", _candidates(schema, "image") or typed)
    if found is None:
        raise ValueError(f"no image column found, set --image-column; the columns are {_listed(schema)}")
    return found


def _find_kept(schema: pa.Schema, keep: tuple[str, ...]) -> tuple[Kept, ...]:
    found: dict[str, Kept] = {}
    for text in keep:
        new, equals, old = text.partition("=")
        name, column = (new, old) if equals and text not in schema.names else (text, text)
        if not name:
            raise ValueError(f"--keep must be name or new=old, got {text!r}")
        _check_name(schema, "--keep", column)
        if name in ANSWER_SCHEMA.names:
            raise ValueError(
                f"--keep {text}: the answers have a column {name!r} already; write --keep input_{column}={column}"
            )
        if name in found:
            raise ValueError(f"--keep {text}: {name!r} is kept twice; give one of them another name as new=old")
        found[name] = Kept(name=name, column=column, type=schema.field(column).type)
    return tuple(found.values())


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
