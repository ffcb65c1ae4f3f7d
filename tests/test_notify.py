"""--notify: the last event of a run is posted, and a host that does not listen costs the job nothing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.answer import told
from pipeline.notify import check_url, notify
from pipeline.run_folder.events import Events
from schemas.errors import Refused
from tests.hooks import hook as hook
from tests.inputs import good_row, write_parquet
from tests.test_verify import run_without_ray
from tests.tiny import checkpoint

BEFORE = datetime.now(UTC) - timedelta(days=1)


def test_the_last_event_is_posted_with_a_line_for_a_chat(hook, tmp_path: Path) -> None:
    Events.of(str(tmp_path)).add("finished", 0.0, rows=1000, ok=990, errors=10)
    assert notify(hook[0], str(tmp_path), 0, BEFORE)
    (told,) = hook[1]
    assert told.items() >= {"event": "finished", "ok": 990, "exit_status": 0, "output": str(tmp_path)}.items()
    assert told["text"] == f"llava-batch finished: {tmp_path} (10 errors)"


@pytest.mark.parametrize(("status", "event"), [(0, "finished"), (1, "failed"), (2, "refused")])
def test_an_event_of_an_earlier_call_is_not_taken_for_this_ones(hook, tmp_path: Path, status: int, event: str) -> None:
    Events.of(str(tmp_path)).add("budget_spent", 0.0)
    assert notify(hook[0], str(tmp_path), status, datetime.now(UTC) + timedelta(days=1))
    assert hook[1][0]["event"] == event


@pytest.mark.parametrize("path", ["/no/secret", "/no"])
def test_who_cannot_be_told_is_named_without_the_path(hook, tmp_path: Path, path: str, capsys) -> None:
    url = f"{hook[0]}/no" if path == "/no" else f"http://127.0.0.1:1{path}"
    assert not notify(url, str(tmp_path), 0, BEFORE)
    said = capsys.readouterr().err
    assert said.startswith("--notify: 127.0.0.1 was not told: ")
    assert "secret" not in said


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://h/x",
        "file:///etc/passwd",
        "http://",
        "hooks.slack.com/x",
        "http://h:x/",
        "http://[::1",
        "http://u:secret",
    ],
)
def test_what_is_no_url_of_the_web_is_refused(url: str) -> None:
    with pytest.raises(Refused, match="--notify must be an http:// or https:// URL") as refused:
        check_url(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://h/a b", "http://h/\n", "http://h/\udcff"])
def test_a_url_of_other_letters_than_a_request_can_have_is_refused(url: str) -> None:
    with pytest.raises(Refused, match="--notify must be a URL of visible ASCII characters"):
        check_url(url)


def test_a_dry_run_refuses_what_its_run_would_and_tells_nobody(hook, tmp_path: Path, capsys) -> None:
    write_parquet(tmp_path / "in.parquet", [good_row(0)])
    where = ["--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out"), "--model", str(checkpoint())]
    assert main(["caption", *where, "--dry-run", "--notify", "nowhere"]) == 2
    assert "--notify must be" in capsys.readouterr().err
    assert main(["caption", *where, "--dry-run", "--notify", hook[0]]) == 0
    assert hook[1] == []


def test_an_output_that_cannot_be_opened_keeps_nothing_from_being_told(hook, tmp_path: Path, capsys) -> None:
    write_parquet(tmp_path / "in.parquet", [good_row(0)])
    where = ["--input", str(tmp_path / "in.parquet"), "--output", "nosuch://bucket/out", "--model", str(checkpoint())]
    assert main(["caption", *where, "--notify", hook[0]]) == 2
    assert hook[1][0].items() >= {"event": "refused", "exit_status": 2}.items()


def test_a_password_in_the_output_is_not_posted(hook) -> None:
    assert notify(hook[0], "s3://key:secret@bucket/out", 2, BEFORE)
    assert "secret" not in str(hook[1])


def test_a_bug_is_told_as_a_failure(hook, tmp_path: Path) -> None:
    def run() -> int:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        told(hook[0], str(tmp_path), run)
    assert hook[1][0].items() >= {"event": "failed", "exit_status": 1}.items()


def test_a_command_that_finds_its_run_complete_tells_it(hook, tmp_path: Path, capsys) -> None:
    run_without_ray(tmp_path)
    where = ["--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out"), "--model", str(checkpoint())]
    assert main(["caption", *where, "--unit-rows", "8", "--notify", hook[0]]) == 0
    assert hook[1][0]["event"] == "finished"
    assert hook[0] not in (tmp_path / "out" / ".run" / "run.json").read_text()


def test_a_command_that_is_refused_tells_it(hook, tmp_path: Path, capsys) -> None:
    write_parquet(tmp_path / "in.parquet", [good_row(0)])
    where = ["--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out"), "--model", "no such"]
    assert main(["caption", *where, "--notify", hook[0]]) == 2
    assert hook[1][0].items() >= {"event": "refused", "exit_status": 2}.items()
