"""Events of a whole sweep and of a whole retry on Ray: the lines in the folder, and what a hook is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.__main__ import main
from jobs.answer import run_to_status, told
from jobs.sweep import report
from pipeline.sweep.plan import plan_sweep
from pipeline.sweep.sweep import run_sweep
from tests.fakes import load_echo_engine
from tests.hooks import hook as hook
from tests.inputs import bad_row, good_row, picture, write_parquet
from tests.sweep.quiz import QUIZ, quiz_settings
from tests.tiny import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(400), pytest.mark.usefixtures("cluster")]


def events_in(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / ".run" / "events.jsonl").read_text().splitlines()
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [one["time"] for one in found] == sorted(one["time"] for one in found)
    return [{name: value for name, value in one.items() if name != "time"} for one in found]


def test_a_sweep_tells_how_it_began_each_cell_and_how_it_ended(hook, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = quiz_settings(out, prompts={"plain": None, "polite": "Please: {question}"})

    def run() -> int:
        return report(run_sweep(plan_sweep(settings, [QUIZ]), load_echo_engine))

    assert told(hook[0], str(out), lambda: run_to_status(run)) == 0
    events = events_in(out)
    assert events[0] == {"event": "started", "cells": 4, "complete": 0}
    cells = [one for one in events if one["event"] == "cell_complete"]
    assert len({one["cell"] for one in cells}) == len(cells) == 4
    end = {"event": "finished", "cells": 4, "complete": 4, "rows": sum(one["rows"] for one in cells), "errors": 0}
    assert events[-1] == end
    assert hook[1][0].items() >= {**end, "output": str(out), "exit_status": 0}.items()

    assert told(hook[0], str(out), lambda: run_to_status(run)) == 0  # all is complete: nothing is answered
    assert events_in(out)[len(events) :] == [{"event": "started", "cells": 4, "complete": 4}, end]


def test_a_retry_adds_its_own_and_tells_the_hook(hook, tmp_path: Path) -> None:
    rows = [bad_row(i, "fetch") if i in (3, 9) else good_row(i) for i in range(24)]
    source, out = write_parquet(tmp_path / "in.parquet", rows), tmp_path / "out"
    where = ["--input", str(source), "--output", str(out), "--model", str(checkpoint()), "--prompt", "Q?"]
    told = ["--unit-rows", "8", "--max-error-rate", "1", "--preprocess-workers", "1", "--max-new-tokens", "4"]
    assert main(["caption", *where, *told, "--notify", hook[0]]) == 0
    first = events_in(out)
    assert [one["event"] for one in first] == ["started", "rows_failed", "rows_failed", "finished"]
    assert first[0] == {"event": "started", "answers": 24, "units": 3}
    assert first[-1] == {"event": "finished", "rows": 24, "ok": 22, "errors": 2}
    assert {json.dumps(one["types"]) for one in first[1:3]} == {'{"fetch/FileNotFound": 1}'}

    (tmp_path / "no" / "such").mkdir(parents=True)
    (tmp_path / "no" / "such" / "file.jpg").write_bytes(picture(1))
    assert main(["retry-failed", str(out), "--notify", hook[0]]) == 0
    again = events_in(out)[len(first) :]
    assert [one["event"] for one in again] == ["started", "finished"]
    assert again[0].items() >= {"answers": 2, "retry": 1}.items()
    assert again[-1] == {"event": "finished", "rows": 24, "ok": 24, "errors": 0}
    assert [(one["event"], one["exit_status"], one["errors"]) for one in hook[1]] == [
        ("finished", 0, 2),
        ("finished", 0, 0),
    ]
