"""Config: a YAML file of settings, read strictly: what is no setting in it is refused with file, line and key."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from schemas.errors import Refused
from schemas.named_files import read_named
from schemas.wording import typed

_MOST_VALUES = 100_000  # with every alias written out
_DEEPEST = 50
_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML's safe types without dates: `2026-11-25` and `=` are text, as people mean them."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag in _TAGS or tag == _MERGE]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one file, and where in it each of them stands."""

    path: Path
    settings: dict[str, Any]
    root: yaml.Node | None = field(repr=False)

    def at(self, *path: str | int) -> str:
        """Return `--config job.yaml, line 3`, the line of the value at this path or of the nearest around it."""
        return f"--config {self.path}, line {self._node(path).start_mark.line + 1}" if self.root else str(self.path)

    def check(self, name: str, hint: object) -> None:
        """Refuse a value that is of another type than its setting: YAML's `yes`, `3` and `null` are no texts."""
        value = self.settings[name]
        try:
            TypeAdapter[object](cast(type, hint)).validate_json(to_json(value), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            rule = first["msg"][0].lower() + first["msg"][1:]
            advice = self._quoted(name, *first["loc"]) if first["type"] == "string_type" else ""
            path: tuple[str | int, ...] = (name, *(one for one in first["loc"] if isinstance(one, int)))
            raise Refused(f"{self.at(*path)}: {name}: {rule}, got {self.shown(*path)}{advice}") from error

    def shown(self, *path: str | int) -> str:
        """Return a value as it stands in the file, and as what YAML reads it where that is no text."""
        node = self._node(path)
        if not isinstance(node, yaml.ScalarNode):
            return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        if node.tag == _TEXT:
            return repr(node.value)
        kind = node.tag.rpartition(":")[2]
        return f"{node.value or 'nothing'}, which YAML reads as {kind}"

    def _quoted(self, *path: str | int) -> str:
        """Return what to do where a text was wanted and YAML reads none in what stands there."""
        node = self._node(path)
        return f': text must be in quotes ("{node.value}")' if isinstance(node, yaml.ScalarNode) else ""

    def _node(self, path: tuple[str | int, ...]) -> yaml.Node:
        node = self.root
        assert node is not None
        for step in path:
            below = _below(node, step)
            if below is None:
                break
            node = below
        return node


def is_storage_option(name: str) -> bool:
    """Return whether a key says how stores are reached: it is no setting of any command, and may be in every file."""
    return name.replace("-", "_") == "storage_option"


def storage_options(config: Config) -> tuple[str, ...]:
    """Return how the file says that stores are reached, as --storage-option does; raise Refused for what is no text."""
    options: list[str] = []
    for name in filter(is_storage_option, config.settings):
        value = config.settings[name]
        config.check(name, tuple[str, ...] if isinstance(value, list) else str)
        options += value if isinstance(value, list) else [value]
    return tuple(options)


def read_config(path: Path) -> Config:
    """Read a file of settings. Raises Refused in one line that names the file, and the line where there is one."""
    data = _read(path)
    try:
        root = _compose(path, data)
    except yaml.YAMLError as error:
        raise Refused(f"--config {path}{_line_of(error)}: not YAML: {_reason_of(error)}") from error
    if root is None:  # nothing but comments
        return Config(path=path, settings={}, root=None)
    if not isinstance(root, yaml.MappingNode):
        raise Refused(f"--config {path} must be a mapping of settings, it is a {_kind(root)}")
    _check_nodes(path, root)
    return Config(path=path, settings=_construct(path, root), root=root)


def _read(path: Path) -> bytes:
    try:
        return read_named(path)
    except OSError as error:
        raise Refused(f"--config {typed(path)} cannot be read: {error.strerror}") from error


def _compose(path: Path, data: bytes) -> yaml.Node | None:
    """Compose the document once its events have shown that it is neither too deep nor too large."""
    depth, values = 0, 0
    sizes: dict[str, int] = {}  # of what an anchor stands for, aliases written out
    open_at: list[tuple[str | None, int]] = []  # anchor and number of values before, of what is not closed yet
    for event in yaml.parse(data, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_at.append((event.anchor, values))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_at.pop()
            sizes |= {anchor: values - before} if anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_at):
                raise Refused(f"--config {path}{_line(event)}: *{event.anchor} stands for what it is in: no end")
            values += sizes.get(event.anchor or "", 1)
        depth, values = len(open_at), values + 1
        if depth > _DEEPEST or values > _MOST_VALUES:
            most = f"{_DEEPEST} levels" if depth > _DEEPEST else f"{_MOST_VALUES:,} values"
            raise Refused(f"--config {path}{_line(event)}: settings have at most {most}, these have more")
    root: yaml.Node | None = yaml.compose(data, Loader=_Loader)
    return root


def _check_nodes(path: Path, root: yaml.Node) -> None:
    """Refuse tags of other types, keys that are no text, and keys that are there twice."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        _check_text(path, node)
        if node.tag not in _TAGS:
            raise Refused(f"--config {path}{_line(node)}: a setting has no tag, got {node.tag}")
        if isinstance(node, yaml.MappingNode):
            _check_keys(path, node)
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _check_text(path: Path, node: yaml.Node) -> None:
    r"""Refuse half of a surrogate pair, which "\ud800" is in quotes: no text, and no file or output may hold it."""
    if isinstance(node, yaml.ScalarNode) and node.value.encode("utf-8", "ignore").decode() != node.value:
        raise Refused(f"--config {path}{_line(node)}: it must be text that can be written as UTF-8, got {node.value!r}")


def _check_keys(path: Path, node: yaml.MappingNode) -> None:
    names: set[str] = set()
    for key, _ in node.value:
        _check_text(path, key)
        if key.tag == _MERGE:
            continue
        if key.tag != _TEXT:
            raise Refused(f"--config {path}{_line(key)}: a key must be text, in quotes where YAML reads none in it, "
                          f"got {key.value if isinstance(key, yaml.ScalarNode) else 'a ' + _kind(key)}")  # fmt: skip
        if key.value in names:
            raise Refused(f"--config {path}{_line(key)}: {key.value} is there twice")
        names.add(key.value)


def _construct(path: Path, root: yaml.MappingNode) -> dict[str, Any]:
    loader = _Loader("")
    try:
        settings: dict[str, Any] = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:  # what `<<` merges is no mapping
        raise Refused(f"--config {path}{_line_of(error)}: {_reason_of(error)}") from error
    except ValueError as error:  # digits that no number has
        raise Refused(f"--config {path} has a number that cannot be read: {error}") from error
    return settings


def _below(node: yaml.Node, step: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        found: yaml.Node = node.value[step]
        return found
    return None


def _kind(node: yaml.Node) -> str:
    return (
        "list" if isinstance(node, yaml.SequenceNode) else "mapping" if isinstance(node, yaml.MappingNode) else "text"
    )


def _line(at: yaml.Node | yaml.Event) -> str:
    assert at.start_mark is not None  # of an event that was read
    return f", line {at.start_mark.line + 1}"


def _line_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _reason_of(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return f"it must be UTF-8 text, {error.reason} at byte {error.position}"

    def parts() -> Iterator[str | None]:
        yield from (getattr(error, name, None) for name in ("context", "problem", "reason"))

    return ", ".join(part for part in parts() if part) or "it cannot be read"
