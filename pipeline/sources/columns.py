"""Columns: which column of the input is the image, the id and the prompt or messages, and which ride along."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
from pyarrow import types

from pipeline.sources.arrow_types import (
    ImageKind,
    image_kind,
    is_binary,
    is_id,
    is_list,
    is_llava,
    is_messages,
    is_prompt,
    is_text,
    is_value,
    plain_type,
)
from pipeline.sources.convention import CONVENTION, NAMES, Convention, Role
from pipeline.sources.kept import can_be_kept
from schemas.answer import ANSWER_SCHEMA
from schemas.errors import Refused

OPTIONS = "batch:options"  # the column that formats of requests with options of their own give them in
REFERENCE = "reference"  # what the answers call the column of the texts that are right
# What an image shows, in the datasets that people have: never asked unless a flag says so.
CAPTIONS = ("text", "texts", "caption", "captions", "alt_text")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnChoices:
    """Holds what the user said of the columns; None is found by convention, "" is that there is none.

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
    image_root: str | None = None  # what paths of images are relative to; None: their file's folder
    json_schema: str | None = None  # the form of each row's answer; never a prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An input column that is copied to the answers under `name`."""

    name: str
    column: str
    type: pa.DataType


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Holds the columns found. `image` is None where the input files are the images, or messages name those there are.

    `id` is None where ids are made.
    """

    image: str | None = None
    image_kind: ImageKind | None = None
    id: str | None = None
    prompt: str | None = None
    messages: str | None = None
    ignored: tuple[str, ...] = ()  # could be taken for what to ask, and are not asked
    llava: bool = False  # whether messages are LLaVA's {from, value}, by their type
    values: tuple[str, ...] = ()  # that the job's prompts name, and `json_schema`
    json_schema: str | None = None  # the form of each row's answer
    keep: tuple[Kept, ...] = ()
    options: str | None = None  # what every row asks of its own answer, as JSON
    image_root: str | None = None  # what paths of images are relative to; None: their file's folder
    schema: pa.Schema = dataclasses.field(default=pa.schema([]), compare=False, repr=False)  # of all columns there are
    missed: frozenset[str] = frozenset()  # names in lower case that would have had a role, had any file had them

    def image_alone(self) -> str | None:
        """Return the image column where it is nothing else."""
        others = (self.id, self.prompt, self.messages, *self.values, *(kept.column for kept in self.keep))
        return None if self.image in others else self.image

    def ids_alone(self) -> "Columns":
        """Return the id column and no other."""
        return Columns(id=self.id, schema=self.schema)

    def used(self) -> list[str]:
        """Return the input columns that are read, each once."""
        named = (self.image, self.id, self.prompt, self.messages, self.options)
        names = (*named, *self.values, *(kept.column for kept in self.keep))
        return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSchema:
    """The schema that one file's footer states, and why columns in it are not what they seem."""

    url: str
    schema: pa.Schema
    disputed: Mapping[str, str] = dataclasses.field(default_factory=dict)


def find_columns(files: Sequence[FileSchema], choices: ColumnChoices, convention: Convention = CONVENTION) -> Columns:
    """Return the columns of these files, which must agree on them; else raise Refused, which names the choices and the
    flag.

    A column of a conventional name is used or refused, whatever its type and whichever of the files have it.
    """
    found = _Found(schema=_common_schema(files), files=tuple(files), convention=convention)
    asked = _find_asked(found.without(choices.reference).without(choices.json_schema), choices)
    image = _find_image(found, choices, needed=asked["messages"] is None)
    messages = asked["messages"]
    columns = Columns(
        image=image,
        image_kind=image_kind(found.type_of(image)) if image else None,
        id=_find(found, "id", choices.id),
        prompt=asked["prompt"],
        messages=messages,
        llava=messages is not None and is_llava(found.type_of(messages)),
        values=_find_values(found.schema, choices),
        json_schema=choices.json_schema,
        keep=_find_kept(found, choices.keep, _find_reference(found.schema, choices.reference)),
    )
    for file in files:
        _check_file(file, columns, found)
    return replace(
        columns,
        ignored=_ignored(found.schema, columns),
        schema=found.schema,
        image_root=choices.image_root,
        options=OPTIONS if OPTIONS in found.schema.names else None,
        missed=_missed(columns, choices, convention),
    )


def _missed(columns: Columns, choices: ColumnChoices, convention: Convention) -> frozenset[str]:
    """Return the names of roles that were looked for and not found."""
    asks = columns.prompt is None and columns.messages is None and not choices.own_prompts
    looked_for: dict[Role, bool] = {
        "image": columns.image is None and choices.image is None,
        "id": columns.id is None and choices.id is None,
        "prompt": asks and choices.prompt is None,
        "messages": asks and choices.messages is None,
    }
    roles = [role for role, is_so in looked_for.items() if is_so]
    return frozenset(name for role in roles for names in convention.of(role) for name in names)


def describe_columns(columns: Columns) -> list[str]:
    """Return what was found, a line a role, for people."""
    whole_files = columns.image is None and columns.messages is None
    made = "made from the file's path" if whole_files else "made from the file and the row's position"
    no_column = "the files themselves" if whole_files else "none but those that messages name"
    lines = [
        f"image: column {columns.image!r} ({columns.image_kind})" if columns.image else f"image: {no_column}",
        f"id: column {columns.id!r}" if columns.id else f"id: {made}",
        _describe_asked(columns),
    ]
    lines += [f"prompt: names column {name!r}" for name in columns.values if name != columns.json_schema]
    lines += [] if columns.json_schema is None else [f"form: column {columns.json_schema!r}, a JSON schema"]
    return [*lines, *(f"keep: column {kept.column!r} as {kept.name!r}" for kept in columns.keep)]


def _describe_asked(columns: Columns) -> str:
    advice = "".join(
        f" (column {name!r} is ignored; --{_asking_role(name)}-column {name} asks it)" for name in columns.ignored
    )
    if columns.messages:
        last = ": the last question of each row, without the answer after it" if columns.llava else ""
        return f"messages: column {columns.messages!r}{last}{advice}"
    return f"prompt: column {columns.prompt!r}{advice}" if columns.prompt else f"prompt: the job's{advice}"


def _asking_role(name: str) -> Role:
    return "messages" if name.lower() in NAMES["messages"] else "prompt"


def columns_of_files(schema: pa.Schema, choices: ColumnChoices) -> Columns:
    """Return the columns that a job uses of input files that are its images; raise Refused where it wants others."""
    named = {role: getattr(choices, role) for role in NAMES}
    given = [f"--{role}-column {name}" for role, name in named.items() if name]
    if given:
        raise Refused(f"{given[0]} needs a table as input: image files have no columns but {_listed(schema)}")
    found = _Found(schema=schema, files=(FileSchema(url="image files", schema=schema),))
    keep = _find_kept(found, choices.keep, _find_reference(schema, choices.reference))
    values = _find_values(schema, choices)
    return Columns(values=values, json_schema=choices.json_schema, keep=keep, schema=schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """All columns that any of the files has."""

    schema: pa.Schema
    files: tuple[FileSchema, ...]
    convention: Convention = CONVENTION

    def without(self, name: str | None) -> "_Found":
        """Return all but one of them."""
        return replace(self, schema=pa.schema([field for field in self.schema if field.name != name]))

    def type_of(self, name: str) -> pa.DataType:
        """Return the type that the first file gives it."""
        return self.schema.field(name).type

    def url_of(self, name: str) -> str:
        """Return the first file that gives it this type."""
        having = (file for file in self.files if name in file.schema.names)
        return next(file.url for file in having if file.schema.field(name).type == self.type_of(name))


def _common_schema(files: Sequence[FileSchema]) -> pa.Schema:
    """Return every column of the files with the first type that one gives it; null only where none gives another."""
    found: dict[str, pa.DataType] = {}
    for file in files:
        for field in file.schema:
            if file.schema.get_field_index(field.name) < 0:
                raise Refused(
                    f"{file.url} has more than one column {field.name!r}; columns must have names of their own"
                )
            if types.is_null(found.get(field.name, pa.null())):
                found[field.name] = field.type
    return pa.schema([pa.field(name, type) for name, type in found.items()])


def _check_file(file: FileSchema, columns: Columns, found: _Found) -> None:
    kept = {one.column: one.type for one in columns.keep}
    for name in columns.used():
        if name not in file.schema.names:
            raise Refused(
                f"{file.url} must have one column {name!r} as {found.url_of(name)} has, got {_listed(file.schema)}"
            )
        if name in file.disputed:
            raise Refused(f"column {name!r} of {file.url} {file.disputed[name]}")
        here, there = file.schema.field(name).type, found.type_of(name)
        if types.is_null(here) or here == there:
            continue
        alike = plain_type(here) == plain_type(there) if name in kept else _family(here) == _family(there)
        if not alike:
            raise Refused(
                f"column {name!r} must be {there} in every file as in {found.url_of(name)}, {file.url} has {here}"
            )


def _family(type: pa.DataType) -> str:
    """Name the types that are read alike: string and large_string, or integers of any size."""
    return "integer" if types.is_integer(type) else (image_kind(type) or str(plain_type(type)))


def _find(found: _Found, role: Role, name: str | None) -> str | None:
    """Return the column of a role as the user named it, or by its own name."""
    if name is None:
        return _only(role, _candidates(found, role))
    return _named(found.schema, role, name) if name else None


def _named(schema: pa.Schema, role: Role, name: str) -> str:
    _check_name(schema, f"--{role}-column", name)
    type = schema.field(name).type
    if not _SUITS[role](type):
        raise Refused(f"--{role}-column {name} must be {_WANTED[role]}, got {type}")
    return name


def _check_name(schema: pa.Schema, flag: str, name: str) -> None:
    if name not in schema.names:
        near = difflib.get_close_matches(name, schema.names, n=1)
        advice = f"did you mean {near[0]!r}? " if near else ""
        raise Refused(f"{flag} {name}: no such column; {advice}The columns are {_listed(schema)}")


_WANTED: dict[Role, str] = {
    "image": "bytes, a string (a path or URI) or a struct with bytes or path, or a list of these",
    "id": "a string, an integer, a decimal, a date or a UUID",
    "prompt": "a string",
    "messages": "JSON text or a list of structs with role and content or with from and value, and no bytes in them",
}
_SUITS: dict[Role, Callable[[pa.DataType], bool]] = {
    "image": lambda type: image_kind(type) is not None,
    "id": is_id,
    "prompt": is_prompt,
    "messages": is_messages,
}


def _candidates(found: _Found, role: Role) -> list[str]:
    """Return the columns with a name of this role; refuses those of a type that it cannot have. A column without any
    value is none."""
    fields = [field for field in found.schema if not types.is_null(field.type)]
    tiers = ([field for field in fields if field.name.lower() in names] for names in found.convention.of(role))
    named = next(filter(None, tiers), [])
    for field in named:
        if not _SUITS[role](field.type):
            raise Refused(
                f"column {field.name!r} must be {_WANTED[role]} to be the {role}, {found.url_of(field.name)} has "
                f"{field.type}; set --{role}-column to another, or to '' for none"
            )
    return [field.name for field in named]


def _only(role: Role, candidates: list[str]) -> str | None:
    if len(candidates) > 1:
        choices = ", ".join(map(repr, candidates))
        raise Refused(f"more than one column could be the {role}: {choices}; set --{role}-column to one of them")
    return candidates[0] if candidates else None


def _find_asked(found: _Found, choices: ColumnChoices) -> dict[Literal["prompt", "messages"], str | None]:
    """Return what every row asks by itself: a prompt, or messages; neither where the job asks."""
    prompt, messages = choices.prompt or None, choices.messages or None
    if prompt or messages or choices.own_prompts:
        return {
            "prompt": prompt and _named(found.schema, "prompt", prompt),
            "messages": messages and _named(found.schema, "messages", messages),
        }
    prompts = [] if choices.prompt == "" else _candidates(found, "prompt")
    conversations = [] if choices.messages == "" else _candidates(found, "messages")
    if conversations and prompts:
        raise Refused(
            f"both {conversations[0]!r} and {prompts[0]!r} could be what to ask; "
            "set --messages-column or --prompt-column"
        )
    if not conversations and not prompts:
        _refuse_null(found.schema, choices)
    return {"prompt": _only("prompt", prompts), "messages": _only("messages", conversations)}


def _refuse_null(schema: pa.Schema, choices: ColumnChoices) -> None:
    """Refuse a column of questions that has none: the job's own must not be asked without a word."""
    roles: tuple[tuple[Role, str | None], ...] = (("prompt", choices.prompt), ("messages", choices.messages))
    for role, choice in roles:
        for field in schema:
            if choice is None and field.name.lower() in NAMES[role]:
                raise Refused(
                    f"column {field.name!r} must be {_WANTED[role]} to be the {role}, it is null in every file; "
                    f"give a --prompt, or set --{role}-column to '' for none"
                )


def _ignored(schema: pa.Schema, columns: Columns) -> tuple[str, ...]:
    """List columns that somebody may take for what is asked: of questions where others are asked, and of captions."""
    names = (*NAMES["prompt"], *NAMES["messages"], *CAPTIONS)
    return tuple(name for name in schema.names if name.lower() in names and name not in columns.used())


def _find_image(found: _Found, choices: ColumnChoices, *, needed: bool) -> str | None:
    """Find it by name, else take the only column whose type can be nothing but an image."""
    image = _find(found, "image", choices.image)
    if image is None and choices.image is None:
        others = {name for role in NAMES if role != "image" for names in found.convention.of(role) for name in names}
        named = (field for field in found.schema if field.name.lower() not in others)
        image = _only("image", [field.name for field in named if _only_an_image(field.type)])
    if image is None and needed:
        raise Refused(f"no image column found, set --image-column; the columns are {_listed(found.schema)}")
    return image


def _only_an_image(type: pa.DataType) -> bool:
    if is_list(type):
        return _only_an_image(type.value_type)
    return is_binary(type) or image_kind(type) == "struct"


def _find_values(schema: pa.Schema, choices: ColumnChoices) -> tuple[str, ...]:
    for name in choices.values:
        _check_name(schema, "--prompt with", name)
        type = schema.field(name).type
        if not is_value(type):
            raise Refused(f"--prompt with {name} must name a column of text or numbers, got {type}")
    if choices.json_schema is None:
        return choices.values
    _check_name(schema, "--json-schema-column", choices.json_schema)
    if not is_text(schema.field(choices.json_schema).type):
        type = schema.field(choices.json_schema).type
        raise Refused(f"--json-schema-column {choices.json_schema} must be a string, the JSON of a schema, got {type}")
    return tuple(dict.fromkeys((*choices.values, choices.json_schema)))


def _find_reference(schema: pa.Schema, name: str | None) -> tuple[Kept, ...]:
    if name is None:
        return ()
    _check_name(schema, "--reference-column", name)
    if not is_text(schema.field(name).type):
        raise Refused(f"--reference-column {name} must be a string, got {schema.field(name).type}")
    return (Kept(name=REFERENCE, column=name, type=schema.field(name).type),)


def _find_kept(found_in: _Found, keep: tuple[str, ...], others: tuple[Kept, ...]) -> tuple[Kept, ...]:
    schema = found_in.schema
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
        found[name] = Kept(name=name, column=column, type=_kept_type(found_in, column))
    return tuple(found.values())


def _kept_type(found: _Found, column: str) -> pa.DataType:
    type = found.type_of(column)
    if not can_be_kept(type):
        raise Refused(f"--keep {column}: columns of {type} cannot be copied, as in {found.url_of(column)}")
    return type


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
