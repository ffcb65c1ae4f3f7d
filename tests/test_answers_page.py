"""docs/answers.md: every command that it shows is run, in this process, and prints what the page says."""

import json
import re
import shlex
from pathlib import Path

import duckdb
import pytest

from jobs.ocr import OcrSettings, ocr_prompt
from pipeline.plan import plan_job
from pipeline.run_folder.merge import finish_run
from pipeline.run_folder.run import begin_run
from pipeline.run_folder.units import write_unit
from pipeline.sources.reader import unit_reader
from pipeline.stages.engine_settings import load_engine
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from schemas.job import JobSettings

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ llava-batch (.*?)\n\$ duckdb -jsonlines -c \"(.*?)\"\n(.*?)```", PAGE, re.DOTALL)
SEVERAL = ("input", "prompt", "choices", "bad_words")


def settings_of(flags: list[str], folder: Path) -> dict[str, object]:
    """The settings that the flags of a command make, its files in `folder`."""
    found: dict[str, object] = {}
    for i, flag in enumerate(flags):
        if not flag.startswith("--"):
            continue
        name = flag.removeprefix("--").replace("-", "_")
        value = flags[i + 1] if i + 1 < len(flags) and not flags[i + 1].startswith("--") else True
        found[name] = (*found.get(name, ()), value) if name in SEVERAL else value
    found["input"] = tuple(str(ROOT / one) for one in found["input"])
    found["output"] = str(folder / "out")
    if "json_schema" in found:
        (folder / "receipt.json").write_text(PAGE.split("```json\n")[1].split("```")[0], encoding="utf-8")
        found["json_schema"] = str(folder / found["json_schema"])
    return found


def answer(job: str, given: dict[str, object]) -> None:
    """Run a job without Ray, to the end."""
    settings = (OcrSettings if job == "ocr" else JobSettings).model_validate(given)
    plan = plan_job(job, settings, ocr_prompt(settings) if job == "ocr" else "Q?")
    run = begin_run(settings.output, plan.describe(), plan.listing.files)
    preprocess, generate = Preprocess(plan.settings), Generate(plan.settings, load_engine)
    for unit in range(plan.listing.num_units):
        answers = final_answers(generate(preprocess(unit_reader(plan.listing)(unit))), plan.settings)
        write_unit(settings.output, run["run"], unit, answers)
    finish_run(plan.units(run["run"]), run["fingerprint"], {})


def test_the_page_shows_a_command_for_every_setting() -> None:
    shown = " ".join(command for command, *_ in BLOCKS)
    for name in ("regex", "json_schema", "parse", "choices", "logprobs", "num_answers", "answer_prefix", "bad_words"):
        assert f"--{name.replace('_', '-')}" in shown
    assert "--reuse-answers" in shown
    assert "--image-tokens" in shown


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[0].rsplit(" --", 1)[1])
def test_a_command_prints_what_the_page_says(block: tuple[str, str, str], tmp_path: Path) -> None:
    command, query, printed = block
    job, *flags = shlex.split(command)
    answer(job, settings_of(flags, tmp_path))
    rows = duckdb.sql(query.replace("'out/", f"'{tmp_path}/out/"))
    names = rows.columns
    lines = [json.dumps(dict(zip(names, row, strict=True)), separators=(",", ":")) for row in rows.fetchall()]
    assert lines == printed.splitlines()
