"""Names: what rows are called where their images' suffixes are left out, and which of them are then called the same."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".jp2"),
    *(".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".ico"),
)

Named = Callable[[], Iterator[tuple[str, str]]]  # the name of each row, and its id; to be gone through twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Collision:
    """A name that several rows have, and the ids of the first of them."""

    name: str
    ids: tuple[str, ...]


def without_suffix(id: str) -> str:
    """Return a row's id without the suffix of an image file."""
    lower = id.lower()
    suffix = next((suffix for suffix in _SUFFIXES if lower.endswith(suffix)), "")
    return id[: -len(suffix)] if suffix and not id[: -len(suffix)].endswith("/") and id != suffix else id


def find_collision(named: Named) -> Collision | None:
    """Return the first two ids of one name; None where all differ. Holds 8 bytes a row.

    An id that comes again is no other one.
    """
    suspects = same_names(named)
    if not suspects:
        return None
    seen: dict[str, str] = {}
    for name, id in named():
        if hash(name) in suspects and seen.setdefault(name, id) != id:
            return Collision(name=name, ids=(seen[name], id))
    return None


def same_names(named: Named) -> frozenset[int]:
    """Return the hashes of the names that more than one row has."""
    hashes = np.fromiter((hash(name) for name, _ in named()), np.int64)
    hashes.sort()
    return frozenset(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]).tolist())
