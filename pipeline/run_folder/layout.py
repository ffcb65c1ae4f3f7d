"""Layout: where a run folder keeps what is not an answer, out of the way of those who read the folder as a table.

out/answers/*.parquet    all that pandas, pyarrow, duckdb and `datasets` find in `out`
out/units/*.parquet      the same while it runs
out/.run/                the rest; its tables end in .pq, which no glob of *.parquet finds

Readers of Parquet pass over names that begin with a dot, but not every glob does. Earlier releases kept the rest beside
the answers: a folder of theirs stays as it is.
"""

import contextlib
import errno
import os

from pipeline.storage import filesystem as fs
from schemas.errors import Refused
from schemas.run import STATE

RUN = "run.json"
_RETRY = "retry"
_PARTS = (STATE, "units", "answers", "attempts", "markers", "errors", _RETRY)


def state_folder(folder: str) -> str:
    """Return where the folder's state is kept: in the folder itself where an earlier release began its run."""
    kept = fs.join(folder, STATE)
    if fs.real(folder).rsplit("/", 1)[-1] == STATE:  # what is in there is the state of the folder above
        return kept
    earlier = not fs.exists(fs.join(kept, RUN)) and fs.exists(fs.join(folder, RUN))
    return fs.join(folder) if earlier else kept


def is_earlier(folder: str) -> bool:
    """Return whether an earlier release began the folder's run."""
    return state_folder(folder) == fs.join(folder)


def state_path(folder: str, name: str) -> str:
    """Return where a file or folder of the state is."""
    return fs.join(state_folder(folder), name)


def state_table(folder: str, name: str) -> str:
    """Return where a table of the state is; `name` has no suffix."""
    kept = state_folder(folder)
    return fs.join(kept, f"{name}{'.parquet' if kept == fs.join(folder) else '.pq'}")


def retry_folder(folder: str) -> str:
    """Return where the units of a retry are while it runs."""
    return state_path(folder, _RETRY)


def unit_suffix(folder: str) -> str:
    """Return how the names of a folder's units end: those of a retry are no answers yet."""
    return ".pq" if folder.endswith(f"/{STATE}/{_RETRY}") else ".parquet"


def check_apart(folder: str) -> None:
    """Raise Refused where a folder is in one that another run keeps its own files in: what is there goes with it."""
    names = fs.real(folder).split("/")
    for number, name in enumerate(names):
        above = "/".join(names[:number])
        if name in _PARTS and above and _is_run(above):
            raise Refused(f"{folder} must not be in what the run in {above} keeps its own files in: is {above} meant?")


def check_links(folder: str) -> None:
    """Raise Refused where a link that stands for a folder, or for a part that a run keeps in it, leads to no folder: a
    run would begin beside what it cannot see, and end where it first writes there."""
    for part in (folder, *(fs.join(folder, name) for name in (STATE, "units", "answers"))):
        path = fs.local_path(part)
        if path is not None and os.path.islink(path) and not os.path.exists(path):
            raise Refused(f"{part} must be a folder, it is a link to {_end_of(path)}: mend the link, or remove it")


def _end_of(link: str) -> str:
    try:
        os.stat(link)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "itself"
    return f"{os.readlink(link)}, which is not there"


def _is_run(folder: str) -> bool:
    with contextlib.suppress(PermissionError):  # a store may show nothing but the folder itself
        earlier = fs.join(folder, RUN), fs.join(folder, "input.parquet")
        return fs.exists(fs.join(folder, STATE, RUN)) or all(map(fs.exists, earlier))
    return False


def below(folder: str, url: str) -> str:
    """Return what `url` is called within the folder."""
    return url.removeprefix(f"{fs.join(folder)}/")
