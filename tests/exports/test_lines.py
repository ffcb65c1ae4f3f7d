"""Files of lines, read back by what they are for."""

import csv
import io
import json
from pathlib import Path

import pytest

from pipeline.exports.export import ExportOptions, export
from tests.exports.runs import make_run
from tests.inputs import good_row, write_parquet

pytest_plugins = ["tests.exports.complete"]

ALL = ExportOptions()


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_is_a_line_of_jsonl_for_pandas_polars_and_duckdb(several: str, tmp_path: Path) -> None:
    import duckdb
    import pandas
    import polars

    path = tmp_path / "deep" / "answers.jsonl"
    export(several, str(path), "jsonl", ALL)
    rows = rows_of(path)  # by splitlines, which takes more than \n for the end of a line
    assert len(rows) == 26
    texts = [row["text"] for row in rows]
    assert texts[0].startswith("=HYPERLINK")
    assert pandas.read_json(path, lines=True)["status"].tolist().count("error") == 2
    assert polars.read_ndjson(path)["text"].to_list() == texts
    assert duckdb.sql(f"select text from '{path}'").fetchall() == [(text,) for text in texts]


def test_csv_holds_line_breaks_and_runs_no_formula(several: str, tmp_path: Path) -> None:
    import duckdb
    import pandas
    import polars

    path = tmp_path / "answers.csv"
    export(several, str(path), "csv", ALL)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    assert len(rows) == 26
    first = '\'=HYPERLINK("http://x")\nsecond line, with a comma\u2028and a "quote"'
    assert rows[0]["text"] == first
    assert {row["text"] for row in rows} > {"'+1 is a number", "猫</script><b>"}
    assert pandas.read_csv(path)["text"][0] == first
    assert polars.read_csv(path)["text"][0] == first
    assert duckdb.sql(f"select text from read_csv('{path}') limit 1").fetchall() == [(first,)]
    assert pandas.read_csv(path)["mean_logprob"].min() == -0.25  # a number stays one


def test_formulas_are_kept_where_that_is_asked(several: str, tmp_path: Path) -> None:
    export(several, str(tmp_path / "a.csv"), "csv", ExportOptions(formulas="keep"))
    assert ",+1 is a number," in (tmp_path / "a.csv").read_text(encoding="utf-8")


def test_llavas_evaluation_finds_its_keys(single: str, tmp_path: Path) -> None:
    export(single, str(tmp_path / "answers.jsonl"), "llava", ALL)
    rows = rows_of(tmp_path / "answers.jsonl")
    assert len(rows) == 12  # those with an answer
    assert {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"} == rows[0].keys()
    assert len({row["answer_id"] for row in rows}) == 12
    export(single, str(tmp_path / "all.jsonl"), "llava", ExportOptions(status="all"))
    assert [row["text"] for row in rows_of(tmp_path / "all.jsonl") if row["question_id"] == "b/broken.jpg"] == [""]


LINE = {  # a line of a batch job's output and error files, as OpenAI's guide shows them
    "type": "object",
    "required": ["id", "custom_id", "response", "error"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string", "pattern": "^batch_req_"},
        "custom_id": {"type": "string"},
        "response": {
            "type": ["object", "null"],
            "required": ["status_code", "request_id", "body"],
            "properties": {"status_code": {"const": 200}, "request_id": {"type": "string"}, "body": {"type": "object"}},
        },
        "error": {
            "type": ["object", "null"],
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


def test_openais_client_takes_the_responses(several: str, tmp_path: Path) -> None:
    import jsonschema
    from openai.types.chat import ChatCompletion

    export(several, str(tmp_path / "batch.jsonl"), "openai", ALL)
    rows = rows_of(tmp_path / "batch.jsonl")
    for row in rows:
        jsonschema.validate(row, LINE)
        assert (row["response"] is None) != (row["error"] is None)
    bodies = [row["response"]["body"] for row in rows if row["response"]]
    answers = [ChatCompletion.model_validate(body, strict=True) for body in bodies]
    assert all(set(body) <= set(ChatCompletion.model_fields) for body in bodies)
    assert answers[0].usage.total_tokens == answers[0].usage.prompt_tokens + answers[0].usage.completion_tokens
    assert {answer.choices[0].finish_reason for answer in answers} == {"stop", "length"}
    assert len({row["custom_id"] for row in rows}) == len({row["id"] for row in rows}) == 26
    assert rows[0]["custom_id"] == "a/one.jpg#ask"


def test_one_prompt_leaves_the_id_as_custom_id(single: str, tmp_path: Path) -> None:
    export(single, str(tmp_path / "batch.jsonl"), "openai", ALL)
    assert rows_of(tmp_path / "batch.jsonl")[0]["custom_id"] == "a/one.jpg"


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (ExportOptions(status="error"), 2),
        (ExportOptions(status="ok"), 24),
        (ExportOptions(finish_reason=("length",)), 1),
        (ExportOptions(prompt_id=("tell",)), 13),
        (ExportOptions(status="error", finish_reason=("stop",)), 0),
    ],
)
def test_rows_are_chosen(several: str, tmp_path: Path, options: ExportOptions, rows: int) -> None:
    export(several, str(tmp_path / "a.jsonl"), "jsonl", options)
    assert len(rows_of(tmp_path / "a.jsonl")) == rows


def test_kept_columns_of_any_type_are_written(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(number) for number in range(3)])
    out = make_run(tmp_path, source, keep=("number", "image"))
    export(out, str(tmp_path / "a.jsonl"), "jsonl", ALL)
    export(out, str(tmp_path / "a.csv"), "csv", ALL)
    rows = rows_of(tmp_path / "a.jsonl")
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert rows[0]["image"]["bytes"].startswith("/9j/")  # base64 of a JPEG
    (first, *_) = csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text(), newline=""))
    assert json.loads(first["image"])["path"] is None
