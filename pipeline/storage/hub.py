"""The Hugging Face Hub: the commit that an hf:// path stands for."""

from typing import Any

from pipeline.storage import filesystem as fs
from pipeline.storage.backoff import with_retries
from pipeline.storage.store_errors import store_errors


def at_commit(url: str) -> str:
    """Return `url` in the commit that its repository is at now, where it is on the hub and has commits; any other as it
    is.

    Raises OSError: FileNotFoundError where there is no such repository or revision.
    """
    if fs.scheme_of(url) != "hf":
        return url
    from huggingface_hub import HfApi, HfFileSystem  # here, as it takes a second that other paths need not wait for

    def ask() -> str:
        with store_errors(url):
            found: Any = HfFileSystem(skip_instance_cache=True).resolve_path(url)
            if not hasattr(found, "repo_id"):  # a bucket
                return url
            info = HfApi().repo_info(found.repo_id, revision=found.revision, repo_type=found.repo_type)
        return fs.join(f"hf://{found.root.split('@')[0]}@{info.sha}", found.path)

    return with_retries(ask)
