"""WebDataset: tar files of samples, each a caption, all columns of its answers as JSON, and its image where wanted."""

import io
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import IO

from pipeline.exports.destination import begin_folder, end_folder, safe_name, whole_file
from pipeline.exports.images import Pictures, suffix_of
from pipeline.exports.lines import json_line
from pipeline.exports.names import same_names, without_suffix
from pipeline.exports.rows import Choice, Run
from pipeline.exports.shards import Example, Shard, examples_of, shards_of
from pipeline.storage import filesystem as fs


def write_webdataset(run: Run, destination: str, choice: Choice, pictures: Pictures | None) -> int:
    """Write the chosen answers as shards `00000.tar`, ...; returns how many. Whole ones of before a kill stay."""
    key = run.key({"to": "webdataset", "choice": repr(choice), "images": pictures is not None})
    resumed = begin_folder(destination, key)
    same = same_names(lambda: ((short_key(str(row["id"])), "") for row in _ids(run, choice)))
    shards = 0
    for shard in shards_of(run, choice, pictures):
        url = fs.join(destination, f"{shard.number:05d}.tar")
        if not (resumed and fs.exists(url)):
            with whole_file(url) as file:
                _write_shard(file, shard, pictures, run, same)
        shards += 1
    end_folder(destination)
    return shards


def short_key(id: str) -> str:
    """Return a row's key: its id without the suffix of an image. What is behind the first dot of a name is no part of
    a key, so other dots are %2E."""
    return safe_name(without_suffix(id)).replace(".", "%2E")


def _ids(run: Run, choice: Choice) -> Iterator[dict[str, str]]:
    for _, rows in groupby(run.chosen(choice, ["id"]), key=lambda row: row["id"]):
        yield next(rows)


def _write_shard(file: IO[bytes], shard: Shard, pictures: Pictures | None, run: Run, same: frozenset[int]) -> None:
    several = len(run.prompt_ids) > 1
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for unit in shard.units:
            for id, group in groupby(examples_of(unit, pictures), key=lambda example: str(example.answer["id"])):
                key = short_key(id)
                _add_sample(tar, key if hash(key) not in same else _whole_key(id), list(group), several)


def _whole_key(id: str) -> str:
    """Return the key of a row that shares the short one with another."""
    return safe_name(id).replace(".", "%2E")


def _add_sample(tar: tarfile.TarFile, key: str, examples: list[Example], several: bool) -> None:
    image = examples[0].image
    if image is not None:
        _add(tar, f"{key}.{suffix_of(image)}", image)
    for example in examples:
        name = f"{key}.{example.answer['prompt_id']}" if several else key
        if example.answer["text"] is not None:
            _add(tar, f"{name}.txt", example.answer["text"].encode())
        _add(tar, f"{name}.json", json_line(example.answer))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # its time is 0, its owner nobody: the same bytes every time
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
