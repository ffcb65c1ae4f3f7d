"""submit: what a command may ask of a cluster, seen before anything is sent."""

from pathlib import Path

import pytest

from jobs.__main__ import bind, main
from jobs.submit import (
    check_files,
    check_job,
    check_places,
    files_in,
    may_need_demo,
    own_and_job,
    settings_in,
    submission_id,
)
from schemas.errors import Refused

JOB = ("caption", "--input", "s3://b/in", "--output", "s3://b/out", "--model", "m")
SWEEP = """
output: s3://b/out
models: {a: {model: m}}
benchmarks: {textvqa: {}}
"""


def checked(*job: str) -> None:
    check_job(job)
    given = settings_in(job[0], bind(job))
    check_places(job[0], given)
    check_files(given)


def test_flags_before_the_job_are_submits_own_and_those_behind_it_the_jobs() -> None:
    tokens = ("submit", "--address", "a", "--stop", "caption", "--stop", "END", "--address", "b")
    assert own_and_job(tokens) == ("submit", "--address", "a", "--stop", "--", *tokens[4:])


@pytest.mark.parametrize(
    ("job", "message"),
    [
        pytest.param((), "must be given one of caption.*got nothing", id="none"),
        pytest.param(("captions",), "got captions", id="no job"),
        pytest.param((*JOB[:3], "--output", "out/"), "--output must be a URL or a whole path.*got out/", id="relative"),
        pytest.param((*JOB, "--input=in"), "--input must be a URL or a whole path.*got in", id="with ="),
        pytest.param((*JOB, "--input", "/a", "~/b"), "--input must be.*got ~/b", id="the second"),
        pytest.param((*JOB, "--allow-root", "pictures"), "--allow-root must be.*got pictures", id="root"),
        pytest.param((*JOB[:5], "--model", "./m"), "--model must be a hub's id or a whole path.*got ./m", id="model"),
        pytest.param((*JOB, "--adapter", "tests"), "--adapter must be a hub's id.*got tests", id="a folder here"),
        pytest.param(("verify", "out"), "OUT must be a URL or a whole path.*got out", id="verify"),
        pytest.param(("retry-failed", "out", "--stage", "fetch"), "OUT must be.*got out", id="retry"),
        pytest.param(("merge", "/1", "2", "--output", "/all"), "SHARDS must be.*got 2", id="merge"),
        pytest.param(("export", "/out", "x.csv", "--to", "csv"), "DEST must be.*got x.csv", id="export"),
        pytest.param(("report", "/out", "--to", "x.html"), "--to must be.*got x.html", id="a report's page"),
        pytest.param(("report", "/out", "--compare", "b"), "--compare must be.*got b", id="a report's other"),
        pytest.param(("check-model", "m", "--bundle", "b.zip"), "--bundle must be.*got b.zip", id="bundle"),
        pytest.param((*JOB, "--promt", "x"), "--promt is no flag of caption; did you mean --prompt", id="no flag"),
        pytest.param((*JOB, "--temperature", "-1"), "--temperature: input should be greater", id="no value"),
        pytest.param((*JOB, "--prompt", "@gone.txt"), "--prompt @gone.txt: the file cannot be read", id="no file"),
        pytest.param(("caption", "--output", "/out"), "--input", id="nothing to read"),
        pytest.param((*JOB, "--chat-template", "gone.jinja"), "--chat-template gone.jinja: there is no", id="template"),
        pytest.param(("export", "/o", "/d", "--to", "csv", "--openings", "gone"), "--openings gone: there", id="list"),
        pytest.param((*JOB, "--notify", "me"), "--notify must be an http:// or https:// URL", id="notify"),
        pytest.param((*JOB, "--storage-option", "s3.key=x"), "--storage-option s3.key must not hold a key", id="key"),
        pytest.param(("--detahc", *JOB), "--detahc is no flag of submit.*; did you mean --detach", id="submit's own"),
    ],
)
def test_what_the_cluster_could_only_refuse_is_refused_here(job: tuple[str, ...], message: str) -> None:
    with pytest.raises(Refused, match=message):
        checked(*job)


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(JOB, id="stores"),
        pytest.param((*JOB[:5], "--model", "owner/name", "--prompt", "@/there/q.txt"), id="files of the cluster"),
        pytest.param((*JOB, "--prompt", "@@home", "--prompt", "me@home"), id="no files"),
        pytest.param((*JOB, "--chat-template", "/there/t.jinja"), id="a template of the cluster"),
        pytest.param(("export", "/out", "/x.csv", "--to", "csv"), id="a form"),
        pytest.param(("doctor",), id="nothing"),
        pytest.param(("plan", "--input", "/in", "--output", "/out", "--json"), id="plan"),
    ],
)
def test_what_the_cluster_finds_is_taken(job: tuple[str, ...]) -> None:
    checked(*job)


@pytest.mark.parametrize(
    ("job", "text", "message"),
    [
        pytest.param(JOB[:1], "{input: [/data, photos], output: /out}", "--input must be.*got photos", id="input"),
        pytest.param(JOB, "{imput: /data}", "imput is no setting of caption; did you mean input", id="no setting"),
        pytest.param(("sweep",), SWEEP.replace("s3://b/", ""), "--output must be.*got out", id="sweep"),
        pytest.param(("sweep",), SWEEP.replace("m}", "./m}"), "--model must be a hub's id.*got ./m", id="its model"),
        pytest.param(("sweep",), SWEEP.replace("{}", "{data: ../q}"), "data must be.*got ../q", id="its questions"),
    ],
)
def test_a_file_of_settings_is_looked_at_too(job: tuple[str, ...], text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(Refused, match=message):
        checked(*job, "--config", str(tmp_path / "job.yaml"))


def test_files_that_a_file_of_settings_names_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("q.txt", "t.jinja", "s.json"):
        (tmp_path / name).write_text("{}")
    job = (
        "prompt: {a: '@q.txt', b: 'text'}\nchat-template: t.jinja\njson_schema: s.json\nmodel: q.txt\nsystem: '@q.txt'"
    )
    (tmp_path / "job.yaml").write_text(job)
    assert files_in(Path("job.yaml")) == ["q.txt", "t.jinja", "s.json"]
    assert files_in(None) == []


@pytest.mark.parametrize(
    ("job", "demo"),
    [
        pytest.param(JOB, False, id="a model"),
        pytest.param((*JOB[:5], "--model=demo"), True, id="demo"),
        pytest.param(JOB[:5], True, id="none named"),
        pytest.param(("check-model", "m"), False, id="an argument"),
        pytest.param(("retry-failed", "/out"), True, id="that of a run"),
        pytest.param(("verify", "/out"), False, id="no need of any"),
    ],
)
def test_the_bundled_model_is_wanted_where_no_other_is_named(job: tuple[str, ...], demo: bool) -> None:
    assert may_need_demo(job[0], settings_in(job[0], bind(job))) == demo


def test_the_same_command_is_the_same_job() -> None:
    assert submission_id(JOB) == submission_id(JOB) != submission_id((*JOB, "--limit", "3"))


@pytest.mark.parametrize("before", [(), ("--detach",)])
def test_the_command_line_refuses_before_anything_is_sent(
    before: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    job = ("caption", "--input", "/in", "--output", "out", "--stop", "x")
    assert main(["submit", "--address", "http://127.0.0.1:1", *before, *job]) == 2
    assert capsys.readouterr().err == (
        "error: --output must be a URL or a whole path on the cluster's machines, got out\n"
    )
