"""The same four pictures as input of every format, and what is wrong with one of them."""

import base64
import gzip
import importlib
import importlib.util
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.inputs import picture

NUMBERS = range(1, 5)
CAPTION = "a café"


def write_all(folder: Path) -> None:
    """Write the inputs that docs/inputs.md names."""
    _write_photos(folder / "photos")
    _write_photos(folder / "described", label="")
    lines = json_lines([{"file_name": f"{n}.jpg", "caption": CAPTION} for n in NUMBERS])
    (folder / "described/metadata.jsonl").write_bytes(lines)
    _write_tables(folder)
    _write_texts(folder)
    _write_shards(folder / "shards")


def _write_photos(folder: Path, label: str = "cats") -> None:
    (folder / label).mkdir(parents=True)
    for number in NUMBERS:
        (folder / label / f"{number}.jpg").write_bytes(picture(number))
        (folder / label / f"{number}.txt").write_text(f"{CAPTION}\n", encoding="utf-8")


def _write_tables(folder: Path) -> None:
    (folder / "parts/year=2026").mkdir(parents=True)
    table = pa.table({"id": [str(n) for n in NUMBERS], "image": [picture(n) for n in NUMBERS], "number": list(NUMBERS)})
    pq.write_table(table, folder / "table.parquet")
    pq.write_table(table, folder / "parts/year=2026/0.parquet")
    write_saved(folder / "saved/train", table)
    if importlib.util.find_spec("deltalake"):  # of llava-batch[delta]
        library = importlib.import_module("deltalake")
        library.write_deltalake(str(folder / "delta"), table)
        library.write_deltalake(str(folder / "delta"), table, mode="overwrite")
    if importlib.util.find_spec("lance"):  # of llava-batch[lance]
        importlib.import_module("lance").write_dataset(table, str(folder / "table.lance"), max_rows_per_file=3)


def write_saved(folder: Path, table: pa.Table) -> None:
    """Write a dataset as Hugging Face's `save_to_disk` does, in batches of 3 rows."""
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [], "_indices_files": None}))
    (folder.parent / "dataset_dict.json").write_text('{"splits": ["train"]}')
    file = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(file, "wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def _write_texts(folder: Path) -> None:
    photos = [f"cats/{n}.jpg" for n in NUMBERS]
    questions = [
        {"question_id": n, "image": one, "text": f"What is {n}?", "category": "detail"}
        for n, one in zip(NUMBERS, photos, strict=True)
    ]
    (folder / "question.jsonl").write_bytes(json_lines(questions))
    (folder / "question.jsonl.gz").write_bytes(gzip.compress(json_lines(questions)))
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    rows = [{"id": str(n), "image": one, "conversations": talk} for n, one in zip(NUMBERS, photos, strict=True)]
    (folder / "conversations.json").write_text(json.dumps(rows, indent=2))
    (folder / "batch.jsonl").write_bytes(json_lines([request(n, f"photos/cats/{n}.jpg") for n in NUMBERS]))
    cells = [f"{n:03},photos/{one}\r\n" for n, one in zip(NUMBERS, photos, strict=True)]
    (folder / "table.csv").write_text("\ufeffid,image\r\n" + "".join(cells), encoding="utf-8", newline="")
    bench = [f'{n}\t{base64.b64encode(picture(n)).decode()}\t"Which\nof ""two""?"\tone\ttwo\n' for n in NUMBERS]
    (folder / "bench.tsv").write_text("index\timage\tquestion\tA\tB\n" + "".join(bench))
    (folder / "list.txt").write_text("\n".join(f"photos/{one}" for one in photos))


def request(number: int, path: str, **body: object) -> dict[str, object]:
    """A batch request as OpenAI's clients write it."""
    image = {"type": "image_url", "image_url": {"url": path, "detail": "auto"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, image]}]
    content = {"model": "gpt", "messages": messages, "max_tokens": 8 + number, **body}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": content}


def _write_shards(folder: Path) -> None:
    """Two shards as img2dataset leaves them."""
    folder.mkdir()
    for shard in range(2):
        members = []
        for number in list(NUMBERS)[shard * 2 : shard * 2 + 2]:
            fields = {"uid": f"u{number}", "caption": CAPTION, "url": "http://example.com/x.jpg"}
            key = f"{shard:05}{number:04}"
            members += [(f"{key}.jpg", picture(number)), (f"{key}.txt", CAPTION.encode())]
            members += [(f"{key}.json", json.dumps(fields).encode())]
        (folder / f"{shard:05}.tar").write_bytes(tar(members))
        pq.write_table(pa.table({"url": ["http://example.com/x.jpg"]}), folder / f"{shard:05}.parquet")
        (folder / f"{shard:05}_stats.json").write_text("{}")


def tar(members: Sequence[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return file.getvalue()


def json_lines(rows: Sequence[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
