"""Models of the Hugging Face Hub: which commit a name stands for, where its files can be read, and if at all."""

import functools
import json
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.storage.store_errors import store_errors
from pipeline.weights.headers import INDEX, SINGLE
from schemas.errors import Refused
from schemas.wording import one_line

DEMO = Path(__file__).parents[2] / "demo" / "model"


def locate(model: str) -> str:
    """Return what transformers loads for a `--model`: the bundled folder for `demo`, else the folder or hub id
    itself."""
    return str(DEMO) if model == "demo" else model


def adapter_folder(adapter: str) -> Path:
    """Return the folder of this machine with an adapter's files, brought from the hub where it is one of its ids."""
    return Path(adapter) if Path(adapter).is_dir() else bring_adapter(adapter)


_OF_AN_ADAPTER = ["adapter_*", "*.json", "*.jinja", "non_lora_trainables.bin"]  # and what its tokenizer is made of


def place_of(model: str, commit: str) -> str:
    """Return where the files of a hub model can be read: the cache's folder where it has the weights or the hub is
    not to be asked, else the hub itself, by range requests."""
    from huggingface_hub import constants

    folder = _cached_folder(model, commit, "config.json")
    if folder is not None and (constants.HF_HUB_OFFLINE or _has_weights(folder)):
        return str(folder)
    return f"hf://{model}@{commit}"


def _has_weights(folder: Path) -> bool:
    """Return whether all weights are here: a download may have stopped between two of an index's files."""
    index = folder / INDEX
    if (folder / SINGLE).exists() or not index.exists():
        return (folder / SINGLE).exists()
    return all((folder / str(file)).exists() for file in json.loads(index.read_bytes())["weight_map"].values())


def _cached_folder(model: str, revision: str, *names: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(model, name, revision=revision) for name in names]
    except HFValidationError as error:
        raise Refused(f"--model {model!r} is neither a folder here nor an id of the hub: {one_line(error)}") from error
    return next((Path(path).parent for path in found if isinstance(path, str)), None)


def commit_of(model: str, revision: str | None) -> str:
    """Return the commit that a hub model's revision is at, or was at when it was cached; raise Refused."""
    unreachable = cut_off(model)
    from transformers.utils.hub import cached_file  # a second that a local checkpoint does not need

    try:
        config = cached_file(model, "config.json", revision=revision)
    except OSError as error:
        reason = f"{unreachable}; the cache has no such model" if unreachable else " ".join(str(error).split())
        raise Refused(f"--model {model!r} is neither a folder here nor to be had from the hub: {reason}") from error
    return Path(str(config)).parent.name  # the cache has a folder for each commit


def names_in(model: str, revision: str | None) -> frozenset[str]:
    """Return the names at the top of a model's folder, or of its repository, or of what is cached of it."""
    cut_off(model)
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    if Path(model).is_dir():
        return frozenset(os.listdir(model))
    try:
        if not constants.HF_HUB_OFFLINE:
            with store_errors(f"hf://{model}"):
                return frozenset(HfApi().list_repo_files(model, revision=revision))
    except (OSError, HFValidationError):  # who loads it says why, or finds it in the cache
        pass
    folder = _cached_folder(model, revision or "main", "config.json", "adapter_config.json")
    return frozenset(os.listdir(folder)) if folder else frozenset()


def at_adapter(adapter: str) -> str:
    """Return an adapter's folder as it is, or its hub id, as owner/name or owner/name@revision, at its commit now."""
    if Path(adapter).exists():
        return adapter
    return f"{adapter.partition('@')[0]}@{bring_adapter(adapter).name}"


def bring_adapter(adapter: str) -> Path:
    """Return the cache's folder with an adapter's files, named by its commit; raise Refused where it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    name, _, revision = adapter.partition("@")
    try:
        with store_errors(f"hf://{adapter}"):
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=_OF_AN_ADAPTER))
    except (OSError, HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"--adapter {adapter!r} is neither a folder here nor to be had from the hub: {reason}") from error


def same_place(one: str, other: str) -> bool:
    """Return whether two names stand for one folder or one repository."""
    if Path(one).is_dir() and Path(other).is_dir():
        return Path(one).samefile(other)
    return one.partition("@")[0] == other


@functools.cache
def cut_off(model: str) -> str | None:
    """Return why the hub that a model is to come from cannot be reached, None where it can or nothing is wanted of it.

    Its clients then use their cache alone, here and in workers: they would try for half a minute, for each file.
    """
    if model == "demo" or Path(model).exists() or os.environ.get("HF_HUB_OFFLINE"):
        return None
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return None  # who can be reached is the proxy's matter
    reason = _unreachable(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if reason is not None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        if "huggingface_hub.constants" in sys.modules:  # which has read it before
            sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return reason


def _unreachable(endpoint: str) -> str | None:
    url = urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), 5).close()
    except OSError as error:
        return f"{endpoint} cannot be reached: {error}"
    return None
