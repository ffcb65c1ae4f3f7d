"""Hub splits: the files of one split of a dataset on the hub, `hf://datasets/owner/name@revision:test`.

As `datasets` finds them: by the `configs` of the dataset's card, else by the names of its files.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import yaml

from pipeline.sources.finding import Found
from pipeline.storage import filesystem as fs
from schemas.errors import Refused
from schemas.wording import printable

_URL = re.compile(r"(hf://datasets/[^/:]+/[^/:]+):([\w.-]+)")
_ALSO = {  # names that stand for one split, as `datasets` has them
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHOWN = 8


def split_of(url: str) -> tuple[str, str | None]:
    """Return a dataset of the hub and the split of it that is named, None where none is."""
    found = _URL.fullmatch(url)
    return (found[1], found[2]) if found else (url, None)


def of_split(found: Found, split: str) -> Found:
    """Return what was found of a dataset without the files of its other splits, which are counted; raise Refused."""
    names = {file.url: fs.spelled(file.url)[len(fs.spelled(found.root)) :].lstrip("/") for file in found.files}
    patterns = dict(_patterns(_read_card(found.root)))
    if patterns:
        wanted = {url for url, name in names.items() if any(fnmatch(name, one) for one in patterns.get(split, ()))}
    else:
        wanted = {url for url, name in names.items() if _is_of(name, split)}
    if not wanted:
        known = sorted(patterns) or [one for one in _ALSO if any(_is_of(name, one) for name in names.values())]
        there = f"it has {', '.join(known[:_SHOWN])}" if known else "none is told by its card or the names of its files"
        raise Refused(f"--input {found.root}:{split} must be a split of the dataset, {there}")
    for url in names.keys() - wanted:
        found.left_out.add("of other splits", url.rsplit("/", 1)[1])
    kept = tuple(file for file in found.files if file.url in wanted)
    return Found(root=found.root, files=kept, left_out=found.left_out, is_folder=found.is_folder)


def _is_of(name: str, split: str) -> bool:
    words = "|".join(map(re.escape, _ALSO.get(split, (split,))))
    return re.search(rf"(?:^|[/._ -])(?:{words})(?:[/._ -]|$)", name, re.IGNORECASE) is not None


def _read_card(root: str) -> list[dict[str, Any]]:
    """Return the `configs` of a dataset's card, none where it has none that can be read."""
    try:
        text = fs.read_bytes(fs.join(root, "README.md"), _LONGEST_CARD).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    head = re.match(r"---\n(.*?)\n---", text.replace("\r\n", "\n"), re.DOTALL)
    try:
        told = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return []
    configs = told.get("configs") if isinstance(told, dict) else None
    return [one for one in configs if isinstance(one, dict)] if isinstance(configs, list) else []


_LONGEST_CARD = 2**20


def _patterns(configs: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Yield the splits of the default config and what their files are called; raise Refused where none is."""
    if not configs:
        return
    chosen = [one for one in configs if one.get("config_name") == "default" or one.get("default") is True]
    if not chosen and len(configs) > 1:
        names = ", ".join(printable(str(one.get("config_name"))) for one in configs[:_SHOWN])
        raise Refused(f"--input has the configs {names}, none of which is the default: name files by a glob")
    files = (chosen or configs)[0].get("data_files")
    for one in files if isinstance(files, list) else []:
        if isinstance(one, dict) and isinstance(one.get("split"), str):
            paths = one.get("path")
            yield one["split"], [str(path) for path in (paths if isinstance(paths, list) else [paths])]
