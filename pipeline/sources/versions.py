"""Versions: what an input is read at where it has several: a commit of the hub, a version of a Delta or Lance table.

A run that has begun goes on at the one that it began with, whatever was pushed or written since.
"""

import re
from collections.abc import Sequence

from pipeline.sources.delta import is_table, newest_version, split_version
from pipeline.sources.hub_splits import split_of
from pipeline.sources.lance import is_lance, newest_lance
from pipeline.storage import filesystem as fs
from pipeline.storage.hub import at_commit
from schemas.errors import Refused
from schemas.wording import one_line

_COMMIT = re.compile(r"(hf://datasets/[^/@:]+/[^/@:]+)@[0-9a-f]{40}(.*)", re.DOTALL)


def at_versions(urls: Sequence[str], begun: Sequence[str] = ()) -> tuple[str, ...]:
    """Return each input at its newest version where it has versions and none is named; raise Refused.

    `begun` are the inputs of a run that goes on.
    """
    known = {**{unversioned(url): url for url in begun}, **{url: url for url in begun}}
    return tuple(known.get(_spelled(url)) or _at_version(url) for url in urls)


def unversioned(url: str) -> str:
    """Return an input as it was named before it had a version."""
    if (found := _COMMIT.fullmatch(url)) is not None:
        return f"{found[1]}{found[2]}"
    folder, version = split_version(url)
    return folder if version is not None and (is_table(folder) or is_lance(folder)) else url


def _spelled(url: str) -> str:
    """Return an input as a run's description has it."""
    return fs.absolute(url) if fs.is_local(url) else url


def _at_version(url: str) -> str:
    try:
        if url.startswith("hf://datasets/"):
            repository, split = split_of(url)
            return at_commit(repository) + (f":{split}" if split else "")
        version = newest_version(url)
        version = newest_lance(url) if version is None else version
    except (OSError, ValueError) as error:
        raise Refused(f"--input {url} cannot be looked at: {one_line(error)}") from error
    return url if version is None else f"{url.rstrip('/')}@{version}"
