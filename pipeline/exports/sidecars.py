"""Sidecars: a .txt of the caption beside each image, as programs that train on pictures look for it."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Literal

from pipeline.exports.destination import check_inside, put_file, safe_name
from pipeline.exports.names import Collision, find_collision, without_suffix
from pipeline.exports.rows import Choice, Run
from pipeline.storage import filesystem as fs
from pipeline.storage.local_files import read_text
from schemas.errors import Refused
from schemas.wording import printable, typed

Exists = Literal["skip", "overwrite", "append", "prepend"]
PromptsAs = Literal["lines", "files"]
OPENINGS = Path(__file__).with_name("openings.txt")
_THREADS = 16
_AT_ONCE = 1_024
_JOINS = re.compile(r"^(?:[\s,:;]|that\b)+")  # between an opening and what the caption says


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarOptions:
    """The way that captions become files."""

    prefix: str = ""
    suffix: str = ""
    openings: tuple[str, ...] = ()  # lower case, the longest first
    exists: Exists = "skip"
    prompts_as: PromptsAs = "lines"
    newlines: Literal["space", "keep"] = "space"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """One file that is to be there, below the destination, and its text."""

    name: str
    text: str


@dataclass(slots=True)
class Written:
    """Numbers of files that were written, and of those that are as they were."""

    files: int = 0
    left: int = 0


def write_sidecars(run: Run, destination: str, choice: Choice, options: SidecarOptions) -> Written:
    """Write the sidecars of the chosen rows below a folder; the same again changes nothing."""
    path = fs.local_path(destination)
    if path is not None and os.path.lexists(path) and not os.path.isdir(path):
        raise Refused(f"DEST must be a folder, {destination} is none: choose another")
    refuse_same_names(run, choice)
    written = Written()
    with ThreadPoolExecutor(_THREADS) as pool:
        sidecars = sidecars_of(run, choice, options)
        while some := list(islice(sidecars, _AT_ONCE)):
            done = list(pool.map(lambda one: _put(destination, one, options.exists), some))
            written.files += sum(done)
            written.left += len(done) - sum(done)
    return written


def sidecars_of(run: Run, choice: Choice, options: SidecarOptions) -> Iterator[Sidecar]:
    """Yield the sidecars of the chosen rows, in the order of the input."""
    for id, of_row in groupby(
        run.chosen(choice, ["id", "prompt_id", "text"]), key=lambda row: str(row["id"])
    ):  # answers of one row follow each other
        texts = [(row["prompt_id"], caption_of(row["text"], options)) for row in of_row if row["text"] is not None]
        stem = safe_name(without_suffix(id))
        if options.prompts_as == "files":
            yield from (Sidecar(name=f"{stem}.{safe_name(prompt)}.txt", text=text) for prompt, text in texts)
        elif texts:
            yield Sidecar(name=f"{stem}.txt", text="\n".join(text for _, text in texts))


def caption_of(text: str, options: SidecarOptions) -> str:
    """Return an answer as a caption: its opening stripped, its lines joined, prefix and suffix around it."""
    text = text.strip()
    text = " ".join(text.split()) if options.newlines == "space" else text
    return f"{options.prefix}{strip_opening(text, options.openings)}{options.suffix}"


def strip_opening(text: str, openings: Sequence[str]) -> str:
    """Return the text without the longest opening that it begins with; the text itself where nothing would be left."""
    lower = text.lower()
    for opening in openings:
        if lower.startswith(opening) and not lower[len(opening) : len(opening) + 1].isalnum():
            rest = _JOINS.sub("", text[len(opening) :])
            return rest[0].upper() + rest[1:] if rest.strip(".!") else text
    return text


def read_openings(path: Path) -> tuple[str, ...]:
    """Return the openings that a file lists, the longest first; raises Refused where it cannot be read."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Refused(f"--openings {typed(path)}: the file cannot be read: {reason}") from error
    found = {" ".join(line.lower().split()) for line in lines if line.strip() and not line.startswith("#")}
    return tuple(sorted(found, key=lambda opening: (-len(opening), opening)))


def refuse_same_names(run: Run, choice: Choice) -> None:
    """Raise Refused where the captions of two images would be one file, as those of a.jpg and a.png."""

    def names() -> Iterator[tuple[str, str]]:
        for id, _ in groupby(str(row["id"]) for row in run.chosen(choice, ["id"])):
            yield safe_name(without_suffix(id)), id

    found: Collision | None = find_collision(names)
    if found is not None:
        first, second = (printable(id) for id in found.ids[:2])
        raise Refused(
            f"images must differ in more than the end of their names, {first} and {second} would both have the "
            f"sidecar {printable(found.name)}.txt: rename one of them"
        )


def _put(destination: str, sidecar: Sidecar, exists: Exists) -> bool:
    """Write one sidecar; return whether anything was written."""
    url = fs.join(destination, sidecar.name)
    path = fs.local_path(url)
    if path is not None:
        check_inside(fs.local_path(destination) or "", path)
    if exists == "overwrite":
        before: str | None = None
    else:
        before = _read(url, path, exists)
    if before is not None and exists == "skip":
        return False
    text = sidecar.text if before is None else _JOINED[exists](before, sidecar.text)
    if text == before:
        return False
    put_file(url, text.encode())
    return True


def _read(url: str, path: str | None, exists: Exists) -> str | None:
    """Return what is in a sidecar that is there, None where none is; raises Refused for what is no text."""
    if exists == "skip":
        return "" if (os.path.lexists(path) if path is not None else fs.exists(url)) else None
    if path is not None and os.path.islink(path):
        raise Refused(f"{printable(path)} must be a file to add a caption to, it is a link")
    try:
        return fs.read_bytes(url).decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise Refused(f"{printable(url)} must be UTF-8 text to add a caption to it, it is not") from error


def _appended(before: str, text: str) -> str:
    kept = before.rstrip("\n")
    return before if kept == text or kept.endswith(f"\n{text}") else f"{kept}\n{text}" if kept else text


def _prepended(before: str, text: str) -> str:
    return before if before == text or before.startswith(f"{text}\n") else f"{text}\n{before}" if before else text


_JOINED: dict[str, Callable[[str, str], str]] = {"append": _appended, "prepend": _prepended}
