"""Which checkpoint a model name means, and what proves that it is still the same one."""

import hashlib
from pathlib import Path

from transformers import AutoConfig

DEMO = Path(__file__).parents[1] / "demo" / "model"
_END = 2**20  # bytes hashed at either end of a file: a safetensors header, and the last weights


def locate(model: str) -> str:
    """What transformers loads for a `--model`: the bundled folder for `demo`, else the folder or hub id itself."""
    return str(DEMO) if model == "demo" else model


def pin(model: str, revision: str | None) -> str:
    """The commit of a hub model, or a hash of a local folder: what a resume compares. Raises ValueError.

    A local file counts with its name, size and first and last MiB: ten seconds for 200 GB, and a retrained or truncated
    checkpoint shows.
    """
    folder = Path(locate(model))
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ValueError(f"--model must be a checkpoint folder with a config.json, {model!r} has none")
        return _hash_folder(folder)
    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
    except OSError as error:
        raise ValueError(f"--model {model!r} is neither a folder here nor to be had from the hub: {error}") from error
    return str(config._commit_hash)


def _hash_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
            digest.update(_ends(path))
    return digest.hexdigest()


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(_END)
        file.seek(max(_END, path.stat().st_size - _END))
        return head + file.read()
