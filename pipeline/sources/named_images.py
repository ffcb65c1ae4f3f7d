"""Named images: where the images of a row are that it, or its messages, name by paths and URIs."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.preprocess.conversation import images_in_order, parse_messages
from pipeline.sources.arrow_types import BARE_BASE64
from schemas.request import ImageRef, Request

_NOT_RELATIVE = r"^([A-Za-z][A-Za-z0-9+.-]*://|/|~|data:|file:/)"


def images_of(request: Request, image_root: str | None) -> tuple[ImageRef, ...]:
    """Return the row's images, in the order of the messages' placeholders; raises RowError. Messages may do without
    any: a null beside them is no image and not a missing one."""
    if request.messages is None:
        return request.images
    own = () if request.images == (ImageRef(),) else request.images
    conversation = parse_messages(request.messages)
    if request.table is not None:
        folder = folder_of(request.table, image_root)
        conversation = replace(conversation, uris=_whole(conversation.uris, folder))
    images = images_in_order(conversation, own)
    return tuple(replace(image, table=request.table) for image in images)


def folder_of(table: str, image_root: str | None) -> str:
    """Return what relative paths in a table begin at."""
    return image_root or table.rsplit("/", 1)[0]


def resolve(uris: pa.Array, folder: str) -> pa.Array:
    """Make paths whole that are relative to a folder; URIs stay as they are, base64 is no path."""
    if uris.null_count == len(uris):  # making a pattern ready takes longer than a unit's rows
        return uris
    as_is = pc.match_substring_regex(uris, _NOT_RELATIVE)
    if pc.all(as_is).as_py():
        return uris
    as_is = pc.or_(as_is, pc.match_substring_regex(uris, BARE_BASE64))
    below = pc.binary_join_element_wise(folder, pc.replace_substring_regex(uris, r"^(\./+)+", ""), "/")
    return pc.if_else(as_is, uris, below)


def _whole(uris: Sequence[str | None], folder: str) -> tuple[str | None, ...]:
    return tuple(resolve(pa.array(uris, pa.string()), folder).to_pylist())
