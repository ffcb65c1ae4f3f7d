"""Headers: the tensors that a checkpoint's safetensors files hold, by name, without reading any of their numbers."""

import json
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from pipeline.storage import filesystem as fs
from schemas.errors import Refused

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
_MOST_BYTES = 100_000_000  # of a header, as the format's own library has it
_AT_ONCE = 8
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor in a file."""

    dtype: str
    shape: tuple[int, ...]
    file: str


def stored_tensors(folder: str, explicit: str | None = None) -> dict[str, Stored]:
    """Return every tensor of the checkpoint at `folder`, a folder here or on the hub, by its name in the files.

    `explicit` is the file that the config names as its weights. Raises Refused where a file is missing or broken.
    """
    files, named = weights_files(folder, explicit)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        headers = dict(zip(files, pool.map(lambda file: read_header(fs.join(folder, file)), files), strict=True))
    found: dict[str, Stored] = {}
    for file, tensors in headers.items():
        for name, stored in tensors.items():
            if name in found:
                raise Refused(f"{folder} must have each tensor once, {name} is in {found[name].file} and in {file}")
            found[name] = stored
    for name, file in named.items():
        if name not in headers[file]:
            raise Refused(f"{fs.join(folder, INDEX)} names {name} in {file}, which has no such tensor")
    return found


def weights_files(folder: str, explicit: str | None = None) -> tuple[list[str], dict[str, str]]:
    """Return the safetensors files that transformers would load, and what an index says of them: tensor to file."""
    chosen = explicit or next((name for name in (SINGLE, INDEX) if fs.exists(fs.join(folder, name))), None)
    if chosen is None:
        raise Refused(_no_weights(folder))
    _check_inside(folder, "config.json", chosen)
    if not chosen.endswith(".json"):
        return [chosen], {}
    named = _read_index(folder, chosen)
    for file in dict.fromkeys(named.values()):
        _check_inside(folder, chosen, file)
        if not fs.exists(fs.join(folder, file)):
            count = sum(1 for other in named.values() if other == file)
            raise Refused(
                f"{folder} must have every file that {chosen} names: {file} with {count} tensors is not there"
            )
    return sorted(set(named.values())), named


def read_header(url: str) -> dict[str, Stored]:
    """Return the tensors of one safetensors file; raise Refused where it is not whole or contradicts itself."""
    try:
        with fs.open_url(url) as file:
            size = file.seek(0, 2)
            header, begins = _read_json(file, url, size)
    except FileNotFoundError as error:
        raise Refused(f"{url} must be a safetensors file, there is none") from error
    except IsADirectoryError as error:
        raise Refused(f"{url} must be a safetensors file, it is a folder") from error
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    spans = sorted(_span(url, name, tensor) for name, tensor in tensors.items())
    ends = 0
    for start, end, name in spans:
        if start != ends:
            rule = "overlaps the one before it" if start < ends else "leaves a gap before it"
            raise Refused(f"{url} must hold its tensors one after the other, {name} at byte {start:,} {rule}")
        ends = end
    if size != begins + ends:
        raise Refused(f"{url} must have {begins + ends:,} bytes as its header says, it has {size:,}: copy it again")
    file_name = PurePosixPath(url).name
    return {
        name: Stored(dtype=tensor["dtype"], shape=tuple(tensor["shape"]), file=file_name)
        for name, tensor in tensors.items()
    }


def _read_index(folder: str, name: str) -> dict[str, str]:
    url = fs.join(folder, name)
    try:
        index = json.loads(fs.read_bytes(url))
    except FileNotFoundError as error:
        raise Refused(f"config.json names {name} as the weights, {folder} has no such file") from error
    except ValueError as error:
        raise Refused(f"{url} must be JSON: {error}") from error
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise Refused(f"{url} must have a weight_map from tensors to files")
    return named


def _check_inside(folder: str, by: str, file: str) -> None:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file or not file.endswith((".safetensors", ".json")):
        raise Refused(f"{by} of {folder} must name safetensors files inside that folder, got {file!r}")


def _no_weights(folder: str) -> str:
    others = sorted(PurePosixPath(info.url).name for info in fs.list_folder(folder, _OTHER_FORMATS))
    needed = f"{folder} must have its weights as safetensors ({SINGLE}, or {INDEX} and its files)"
    if not others:
        return f"{needed}, it has none"
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"{needed}, it has only {others[0]}{more}, which is not read: save it with save_pretrained"


def _read_json(file: IO[bytes], url: str, size: int) -> tuple[dict[str, Any], int]:
    """Return the header as it is written, and where the numbers begin."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    broken = f"{url} must be a whole safetensors file, its header cannot be read: copy it again"
    if size < 8 or length > min(size - 8, _MOST_BYTES):
        raise Refused(broken)
    try:
        header = json.loads(file.read(length))
    except ValueError as error:  # UnicodeDecodeError as well
        raise Refused(broken) from error
    if not isinstance(header, dict):
        raise Refused(broken)
    return header, 8 + length


def _span(url: str, name: str, tensor: object) -> tuple[int, int, str]:
    """Return where a tensor's bytes are; as many as its shape and dtype take."""
    entry: Mapping[str, Any] = tensor if isinstance(tensor, dict) else {}
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    stated = isinstance(dtype, str) and dtype in _BITS and _whole(shape) and _whole(offsets)
    if not stated or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Refused(f"{url} must state dtype, shape and offsets of each tensor, it has {tensor!r:.200} for {name}")
    wanted = math.prod(shape) * _BITS[dtype] // 8
    if offsets[1] - offsets[0] != wanted:
        raise Refused(f"{url} must have {wanted:,} bytes for {name}, it has {offsets[1] - offsets[0]:,}")
    return offsets[0], offsets[1], name


def _whole(numbers: object) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def describe_shape(shape: Iterable[int]) -> str:
    """Return a shape for people: (262, 256)."""
    return f"({', '.join(map(str, shape))})"
