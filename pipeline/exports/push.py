"""Push: a dataset folder put on the Hugging Face Hub."""

import re

from pipeline.exports.destination import MARK
from pipeline.storage import filesystem as fs
from pipeline.storage.store_errors import store_errors
from schemas.errors import Refused

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def check_push(destination: str, repository: str) -> None:
    """Raise Refused where a folder cannot be put under this name."""
    if not _NAME.fullmatch(repository):
        raise Refused(f"--push must be owner/name, got {repository!r}")
    if fs.local_path(destination) is None:
        raise Refused(f"--push needs a DEST on this machine, got {destination}")


def push_dataset(destination: str, repository: str, endpoint: str | None = None) -> str:
    """Put a dataset folder on the hub, where its repository is made if there is none; return what was done.

    An `endpoint` is another hub than the one that the environment names.
    """
    from huggingface_hub import HfApi  # a second that other exports need not wait for

    folder = fs.local_path(destination)
    assert folder is not None
    with store_errors(f"hf://datasets/{repository}"):
        api = HfApi(endpoint=endpoint)
        api.create_repo(repository, repo_type="dataset", exist_ok=True)
        done = api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type="dataset",
            commit_message="Answers",
            ignore_patterns=[MARK],
        )
    return f"pushed to {repository} at {done.oid}"
