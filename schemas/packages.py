"""Packages that only some settings need: each with the one line that installs it, for every message that names one."""

from typing import Literal, get_args

Extra = Literal[
    "pdf", "scores", "captions", "s3", "http", "gs", "az", "delta", "lance", "quantize", "hopper", "cluster"
]

# Not an extra: it is built against the torch that is there, which pip's own build would not see.
FLASH_ATTENTION = "pip install flash-attn --no-build-isolation"


def install_line(extra: Extra) -> str:
    """Return the line that installs an extra of this project, from its checkout."""
    assert extra in get_args(Extra)
    return f"pip install -e '.[{extra}]'"
