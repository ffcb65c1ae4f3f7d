"""Convention: the names by which columns are found where the user names none."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["image", "id", "prompt", "messages"]

# Looked for in any case (URL, url); where two of a role are there, the user must say which.
NAMES: dict[Role, tuple[str, ...]] = {
    "image": (
        *("image", "images", "image_bytes", "img", "jpg", "jpeg", "png", "webp", "bytes"),
        *("image_url", "image_uri", "image_path", "url", "uri", "path"),
    ),
    "id": ("id", "key", "question_id", "sample_id", "uid", "custom_id"),
    "prompt": ("prompt", "question", "instruction"),
    "messages": ("messages", "conversation", "conversations"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """Names by which a format's columns are found: those of a later tuple where none of an earlier one is there."""

    image: tuple[tuple[str, ...], ...] = (NAMES["image"],)
    id: tuple[tuple[str, ...], ...] = (NAMES["id"],)
    prompt: tuple[tuple[str, ...], ...] = (NAMES["prompt"],)
    messages: tuple[tuple[str, ...], ...] = (NAMES["messages"],)

    def of(self, role: Role) -> tuple[tuple[str, ...], ...]:
        """Return the names of a role."""
        found: tuple[tuple[str, ...], ...] = getattr(self, role)
        return found


CONVENTION = Convention()
