"""Answers the bundled pictures with the bundled model through the whole pipeline, and shows them beside the truth.

python -m demo
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from demo.questions import DESCRIBE, READ
from jobs.answer import run_to_status
from jobs.ending import end_process
from pipeline.job import run_job
from pipeline.plan import plan_job
from pipeline.reports.report import write_report
from pipeline.stages.engine_settings import load_engine
from schemas.answer import Answer, table_to_answers
from schemas.job import JobSettings

PICTURES = Path(__file__).parent / "pictures"
OUTPUT = Path("out") / "demo"


def main() -> int:
    """Run the job anew in out/demo and print the table; the exit status is 0 when every picture has its answers."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    settings = JobSettings(
        input=(str(PICTURES),), output=str(OUTPUT), prompt=(f"read={READ[0]}", f"describe={DESCRIBE[0]}")
    )
    return run_to_status(lambda: answer_and_show(settings))


def answer_and_show(settings: JobSettings) -> int:
    """Run the job and print what it has answered."""
    run_job(plan_job("caption", settings, DESCRIBE[0]), load_engine)
    answers = table_to_answers(pq.read_table(OUTPUT / "answers"))
    truth = json.loads((PICTURES / "truth.json").read_text(encoding="utf-8"))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(answer_table(answers, truth))
    asked = [answer for answer in answers if truth[answer.id]]
    right = sum(answer.text == truth[answer.id][answer.prompt] for answer in asked)
    console.print(f"{right} of {len(asked)} answers are exactly right. They are in {OUTPUT / 'answers'} as Parquet.")
    console.print(f"Pictures and answers on one page: {write_report(str(OUTPUT))}", soft_wrap=True, highlight=False)
    return 0


def answer_table(answers: list[Answer], truth: Mapping[str, Mapping[str, str]]) -> Table:
    """One line an answer: the picture, what was asked, what was answered, and what is true where that differs."""
    table = Table("picture", "asked", "answer", "", "true")
    for answer in answers:
        true = truth[answer.id].get(answer.prompt)
        if answer.status == "error":
            table.add_row(
                answer.id, answer.prompt_id, f"{answer.error_type}: {answer.error_message}", "", "a broken file"
            )
        else:
            right = answer.text == true
            table.add_row(answer.id, answer.prompt_id, answer.text, "=" if right else "x", "" if right else true)
    return table


if __name__ == "__main__":
    end_process(main())
