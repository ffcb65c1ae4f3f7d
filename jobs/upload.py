"""Upload: what travels with a command to a cluster: this code, and the files of this machine that the command names."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.execution.submission import Upload
from schemas.errors import Refused

CODE = ("jobs", "pipeline", "schemas", "llava_batch", "pyproject.toml", "constraints.txt")
DEMO = "demo/model"  # 16 MB that only --model demo needs
_ROOT = Path(__file__).parents[1]
_FOLDER = "submitted"  # of the files that flags name
_FILE_FLAGS = ("--config", "--chat-template", "--json-schema", "--openings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A token of a command that names a file of this machine: what stands before the name, and the file."""

    before: str
    file: Path


@contextmanager
def staged(job: Sequence[str], also: Sequence[str] = (), *, demo: bool) -> Iterator[tuple[Upload, list[str]]]:
    """Yield what the command needs of this machine, in a folder, and the command as it is there.

    That is the code, the bundled model where it is asked for, the files that flags name, and `also`: files that
    its settings name, relative to here, and find there under the same names.
    """
    with tempfile.TemporaryDirectory(prefix="llava-batch-") as name:
        folder = Path(name)
        for one in (*CODE, *((DEMO,) if demo else ())):
            _copy(_ROOT / one, folder / one)
        arguments, files = _with_files(job, folder)
        files += [_carry(one, folder) for one in also]
        digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files))
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield Upload(folder=folder, num_bytes=num_bytes, files_hash=digest.hexdigest()), arguments


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    elif source.exists():
        shutil.copy(source, target)


def _carry(name: str, folder: Path) -> Path:
    """Copy a file to where its name leads from there; refuse one that would be outside, or in the code's place."""
    target = folder / name
    if ".." in Path(name).parts or (target.exists() and target.read_bytes() != Path(name).read_bytes()):
        raise Refused(f"a file that --config names must be below this folder and not in the code's place, got {name}")
    _copy(Path(name), target)
    return target


def _with_files(job: Sequence[str], folder: Path) -> tuple[list[str], list[Path]]:
    """Return the command with the names that its files have there, and these files."""
    arguments, files, flag = [], [], ""
    for number, token in enumerate(job):
        if token.startswith("--"):
            flag = token.partition("=")[0]
        named = _named_in(token, flag)
        if named is not None:
            there = _place_for(named.file, folder, number)
            files.append(folder / there)
            token = named.before + there
        arguments.append(token)
    return arguments, files


def _place_for(file: Path, folder: Path, number: int) -> str:
    """Copy a file that a flag names; return its name there, which is the same in whatever place the flag stands."""
    there = f"{_FOLDER}/{file.name}"
    if (folder / there).exists() and (folder / there).read_bytes() != file.read_bytes():
        there = f"{_FOLDER}/{number}-{file.name}"
    _copy(file, folder / there)
    return there


def _named_in(token: str, flag: str) -> Named | None:
    """Return the file that is named by a flag of files, or by `@FILE` or `name=@FILE` as a prompt."""
    before = f"{flag}=" if token.startswith(f"{flag}=") else ""
    value = token[len(before) :]
    if flag == "--prompt" and "@" in value:
        name, mark, value = value.partition("@")
        before += name + mark
    elif flag not in _FILE_FLAGS:
        return None
    return Named(before=before, file=Path(value)) if is_file(value) else None


def is_file(name: str) -> bool:
    """Return whether there is a file of this name; a text that is too long for one is none."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False
