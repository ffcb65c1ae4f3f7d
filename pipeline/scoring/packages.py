"""The packages that count edits: an extra, as only sweeps and --reference-column need them."""

from importlib.util import find_spec

from schemas.errors import Refused
from schemas.packages import install_line

_PACKAGES = ("jiwer", "rapidfuzz")


def check_scoring(asked_by: str) -> None:
    """Raise Refused where what scores answers is not installed; `asked_by` is the command or flag that wants it."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise Refused(f"{asked_by} scores answers by {' and '.join(missing)}: {install_line('scores')}")
