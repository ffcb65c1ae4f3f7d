"""The Hugging Face Hub: the commit that an hf:// path stands for, and where a model's files can be read."""

import json
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.weights.headers import INDEX, SINGLE


def at_commit(url: str) -> str:
    """`url` in the commit that its repository is at now, where it is on the hub and has commits; any other as it is.

    Raises OSError: FileNotFoundError where there is no such repository or revision.
    """
    if storage.scheme_of(url) != "hf":
        return url
    from huggingface_hub import HfApi, HfFileSystem  # here, as it takes a second that other paths need not wait for

    with storage.store_errors(url):
        place: Any = HfFileSystem(skip_instance_cache=True).resolve_path(url)
        if not hasattr(place, "repo_id"):  # a bucket
            return url
        info = HfApi().repo_info(place.repo_id, revision=place.revision, repo_type=place.repo_type)
    return storage.join(f"hf://{place.root.split('@')[0]}@{info.sha}", place.path)


def place_of(model: str, commit: str) -> str:
    """Return where the files of a hub model can be read: the cache's folder where it has the weights or the hub is
    not to be asked, else the hub itself, by range requests."""
    from huggingface_hub import constants

    folder = _cached_folder(model, commit)
    if folder is not None and (constants.HF_HUB_OFFLINE or _has_weights(folder)):
        return str(folder)
    return f"hf://{model}@{commit}"


def _has_weights(folder: Path) -> bool:
    """Whether all weights are here: a download may have stopped between two of an index's files."""
    index = folder / INDEX
    if (folder / SINGLE).exists() or not index.exists():
        return (folder / SINGLE).exists()
    return all((folder / str(file)).exists() for file in json.loads(index.read_bytes())["weight_map"].values())


def _cached_folder(model: str, commit: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json", revision=commit)
    return Path(config).parent if isinstance(config, str) else None
