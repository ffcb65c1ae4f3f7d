"""Ways to ask through a whole job on Ray: each answer is the one that the stages give without it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.job import run_job
from pipeline.plan import Plan, plan_job
from pipeline.sources.reader import unit_reader
from pipeline.stages.engine_settings import load_engine
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from pipeline.verify import verify_run
from schemas.job import JobSettings

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(400), pytest.mark.usefixtures("cluster")]
PICTURES = Path(__file__).parents[1] / "demo" / "pictures"
NAMES = ("receipt-cafe.png", "receipt-shop.jpg", "sign-exit.png", "sign-exit.png", "shapes-one.jpg", "sign-exit.png")
SCHEMA = json.dumps({"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]})
EXACT = {"dtype": "float32", "slots": 4}


def ask(folder: Path, **changes: Any) -> Plan:
    rows = [
        {"id": f"r{number}", "image": str(PICTURES / name), "form": SCHEMA if number % 2 else None}
        for number, name in enumerate(NAMES)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    given = {"input": (str(folder / "in.parquet"),), "output": str(folder / "out"), "unit_rows": 2, "gpus": 0}
    given |= {"prompt": ("a=What does the text say?",), "max_new_tokens": 12, "preprocess_workers": 1}
    return plan_job("caption", JobSettings.model_validate({**given, **changes}), "Q?")


def without_ray(plan: Plan) -> list[dict[str, Any]]:
    preprocess, generate = Preprocess(plan.settings), Generate(plan.settings, load_engine)
    units = [unit_reader(plan.listing)(unit) for unit in range(plan.listing.num_units)]
    rows = [row for unit in units for row in final_answers(generate(preprocess(unit)), plan.settings).to_pylist()]
    return [without_numbers(row) for row in rows]


def without_numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A row but for what other shapes may round otherwise."""
    steps = [(one["token_id"], [top["token_id"] for top in one["top"]]) for one in row.pop("logprobs", None) or ()]
    return {name: value for name, value in row.items() if name != "mean_logprob"} | {"steps": steps}


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(
            {"json_schema_column": "form", "num_answers": 3, "temperature": 0.7, "seed": 3, "logprobs": 2, **EXACT},
            id="forms of rows, several answers, log-probabilities",
        ),
        pytest.param(
            {"answer_prefix": "The", "bad_words": ("EXIT", "Cake"), "reuse_answers": True, "logprobs": 0, **EXACT},
            id="a beginning, bad words, equal rows once",
        ),
        pytest.param({"regex": "[A-Z]{2,4}", "image_tokens": 0.5, **EXACT}, id="an expression, fewer image tokens"),
        pytest.param({"engine": "transformers", "choices": "yes,no", "dtype": "float32"}, id="transformers, choices"),
    ],
)
def test_a_job_gives_the_answers_that_its_stages_give(asked: dict[str, Any], tmp_path: Path) -> None:
    plan = ask(tmp_path, **asked)
    summary = run_job(plan, load_engine)
    found = [without_numbers(row) for row in pq.read_table(f"{plan.settings.output}/answers").to_pylist()]
    assert (summary.rows, summary.errors) == (len(NAMES) * plan.settings.num_answers, 0)
    assert verify_run(plan.settings.output) == []
    assert found == without_ray(plan)
    assert any(row["text"] for row in found)
    manifest = json.loads(Path(plan.settings.output, ".run", "manifest.json").read_text())
    assert bool(manifest["timings"]["engine"]["num_reused"]) == plan.settings.reuse_answers
