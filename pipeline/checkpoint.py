"""Which checkpoint a model name means, and what proves that it is still the same one."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from schemas.errors import Refused

DEMO = Path(__file__).parents[1] / "demo" / "model"
_END = 2**20  # bytes hashed at either end of a file: a safetensors header, and the last weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What proves a checkpoint: the commit of a hub model; or a folder's hash, and that of each file."""

    hash: str
    files: dict[str, str] = field(default_factory=dict)  # chat template, tokenizer, weights, ... by name


def locate(model: str) -> str:
    """What transformers loads for a `--model`: the bundled folder for `demo`, else the folder or hub id itself."""
    return str(DEMO) if model == "demo" else model


def pin(model: str, revision: str | None) -> Pin:
    """What a resume compares. Raises ValueError where there is no such model.

    A local file counts with its name, size and first and last MiB: ten seconds for 200 GB, and a retrained or truncated
    checkpoint shows.
    """
    folder = Path(locate(model))
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise Refused(f"--model must be a checkpoint folder with a config.json, {model!r} has none")
        for path in sorted(folder.glob("*.safetensors")):
            _check_whole(path)
        return _pin_folder(folder)
    from transformers import AutoConfig  # a second that a local checkpoint does not need

    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
    except OSError as error:
        raise Refused(f"--model {model!r} is neither a folder here nor to be had from the hub: {error}") from error
    return Pin(hash=str(config._commit_hash))


def hash_code(folder: Path = Path(__file__).parent) -> str:
    """A hash of the code that decides what a row's answer is: preprocessing, engine and stages."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("preprocess/*.py"), *folder.glob("engine/*.py"), folder / "stages.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _check_whole(path: Path) -> None:
    """Raise ValueError where a safetensors file is not as long as its header says: a copy that was broken off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = file.read(header_bytes) if header_bytes < size else b""
    try:
        tensors = json.loads(header)
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise Refused(f"{path} must be a whole safetensors file, its header cannot be read: copy it again") from error
    wanted = 8 + header_bytes + max(ends, default=0)
    if size != wanted:
        raise Refused(f"{path} must have {wanted:,} bytes as its header says, it has {size:,}: copy it again")


def _pin_folder(folder: Path) -> Pin:
    files = {
        path.relative_to(folder).as_posix(): _hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return Pin(hash=hashlib.sha256(repr(files).encode()).hexdigest(), files=files)


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256(f"{path.stat().st_size}\n".encode())
    with path.open("rb") as file:
        digest.update(file.read(_END))
        file.seek(max(_END, path.stat().st_size - _END))
        digest.update(file.read())
    return digest.hexdigest()[:16]
