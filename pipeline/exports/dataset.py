"""Dataset: a folder that `datasets` and the Hugging Face Hub read: Parquet shards, and a card that tells of them."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from pipeline.exports.card import CardOptions, make_card
from pipeline.exports.destination import begin_folder, put_file, whole_file
from pipeline.exports.images import Pictures, UnitRows, suffix_of
from pipeline.exports.names import without_suffix
from pipeline.exports.rows import Choice, Run
from pipeline.exports.shards import INDEX, Example, examples_of, shards_of
from pipeline.storage import filesystem as fs

IMAGE = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def write_dataset(run: Run, destination: str, choice: Choice, options: CardOptions, pictures: Pictures | None) -> int:
    """Write `data/*.parquet` of the chosen answers and `README.md`; returns the number of shards.

    The folder is still to be ended: by then it may have to be on the hub.
    """
    key = run.key({"to": "dataset", "choice": repr(choice), "options": repr(options), "images": pictures is not None})
    resumed = begin_folder(destination, key)
    schema = with_features(_schema(run, with_images=pictures is not None))
    shards = 0
    for shard in shards_of(run, choice, pictures):
        url = fs.join(destination, "data", f"train-{shard.number:05d}.parquet")
        if not (resumed and fs.exists(url)):
            with whole_file(url) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for unit in shard.units:
                    writer.write_table(_table(unit, schema, pictures))
        shards += 1
    if not shards:  # no row is chosen: a table without any
        with whole_file(fs.join(destination, "data", "train-00000.parquet")) as file:
            pq.write_table(schema.empty_table(), file)
    put_file(fs.join(destination, "README.md"), make_card(run, choice, options).encode())
    return max(1, shards)


def with_features(schema: pa.Schema) -> pa.Schema:
    """Return the schema with what `datasets` is to take its columns for, where it has a word for each of them."""
    features = {field.name: _feature(field) for field in schema}
    if None in features.values():
        return schema
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _schema(run: Run, *, with_images: bool) -> pa.Schema:
    schema = run.schema()
    if with_images and "image" not in schema.names:
        schema = schema.insert(0, IMAGE)
    return schema


def _table(unit: UnitRows, schema: pa.Schema, pictures: Pictures | None) -> pa.Table:
    """Return the rows of a unit; `image` holds the first image of each, where they are wanted."""
    answers = unit.answers.drop_columns([INDEX])
    if pictures is not None and "image" not in answers.column_names:
        images = [_stored(example) for example in examples_of(unit, pictures)]
        answers = answers.add_column(0, IMAGE, pa.array(images, IMAGE.type))
    return answers.cast(schema.remove_metadata()).replace_schema_metadata(schema.metadata)


def _stored(example: Example) -> dict[str, Any] | None:
    if example.image is None:
        return None
    name = without_suffix(str(example.answer["id"])).rsplit("/", 1)[-1]
    return {"bytes": example.image, "path": f"{name}.{suffix_of(example.image)}"}


def _feature(field: pa.Field) -> dict[str, Any] | None:
    """Return what `datasets` calls a column; None where that is not known here."""
    return {"_type": "Image"} if field.equals(IMAGE) else _feature_of(field.type)


def _feature_of(type: pa.DataType) -> dict[str, Any] | None:
    if types.is_struct(type):
        fields = {field.name: _feature_of(field.type) for field in type}
        return None if None in fields.values() else fields
    if types.is_list(type):
        inner = _feature_of(type.value_type)
        return None if inner is None else {"_type": "List", "feature": inner}
    plain: Sequence[Any] = (types.is_integer, types.is_boolean, types.is_string, types.is_large_string)
    if any(is_one(type) for is_one in plain) or types.is_binary(type):
        return {"_type": "Value", "dtype": str(type)}
    if types.is_floating(type):
        return {"_type": "Value", "dtype": {"halffloat": "float16", "float": "float32"}.get(str(type), "float64")}
    return None
