"""Whole jobs on a real Ray: rows in are rows out, whatever is wrong with some of them."""

import threading
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from ray.data import DataContext

from pipeline.execution.executor import ErrorBudgetSpent, Loaders
from pipeline.job import run_job
from pipeline.plan import Plan, plan_job
from pipeline.retry import Choice, retry_failed
from pipeline.run_folder.run import RunMismatch, read_manifest
from pipeline.run_folder.units import done_units
from pipeline.stages.engine_settings import load_engine
from pipeline.verify import verify_run
from schemas.job import JobSettings
from tests.fakes import load_echo_engine, load_engine_that_takes_long
from tests.inputs import bad_row, good_row, write_parquet
from tests.pdfs import encrypted_pdf, pdf
from tests.tiny import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.usefixtures("cluster")]


def settings_for(source: Path | str, output: Path | str, **changes: object) -> JobSettings:
    base = {"input": (str(source),), "output": str(output), "model": str(checkpoint()), "max_new_tokens": 4}
    # one actor: each that a pool adds imports torch and transformers anew, 10 s of a core
    return JobSettings.model_validate({**base, "preprocess_workers": 1, **changes})


def answers_in(output: Path | str) -> list[dict[str, object]]:
    return pq.read_table(f"{output}/answers").to_pylist()


class PeakMemory:
    """The most that this process's resident memory grew by, in bytes, while the block ran."""

    def __enter__(self) -> "PeakMemory":
        self._process = psutil.Process()
        self._start = self._peak = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.growth = self._peak - self._start

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self._peak = max(self._peak, self._process.memory_info().rss)


@pytest.mark.parametrize("num", [200, pytest.param(1000, marks=pytest.mark.soak)])
def test_rows_with_ten_bad_ones_are_as_many_answers(tmp_path: Path, num: int) -> None:
    planted = {i * (num // 10 - 3) + 5: ("read", "fetch", "decode", "decode", "prompt")[i % 5] for i in range(10)}
    rows = [bad_row(i, planted[i]) if i in planted else good_row(i) for i in range(num)]
    source = write_parquet(tmp_path / "in.parquet", rows)
    plan = plan_job("caption", settings_for(source, tmp_path / "out", keep=("number",), max_error_rate=0.2), "Q?")
    with PeakMemory() as memory:
        summary = run_job(plan, load_engine)
    answers = answers_in(tmp_path / "out")
    assert (summary.rows, summary.ok, summary.errors) == (num, num - 10, 10)
    assert [(answer["id"], answer["number"]) for answer in answers] == [(row["id"], row["number"]) for row in rows]
    assert {a["number"]: a["error_stage"] for a in answers if a["status"] == "error"} == planted
    assert all(a["error_type"] and a["error_message"] for a in answers if a["status"] == "error")
    assert Counter(a["finish_reason"] for a in answers)["length"] > 0.9 * num
    engine = read_manifest(str(tmp_path / "out"))["timings"]["engine"]
    assert engine["num_answer_tokens"] == sum(a["num_generated_tokens"] or 0 for a in answers)
    assert memory.growth < 300 * 2**20


@pytest.fixture(scope="module")
def album(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The plan of a job that is complete: a folder of five images, one of them damaged, two prompts about each."""
    folder = tmp_path_factory.mktemp("album")
    for i in range(4):
        (folder / f"{i}.jpg").write_bytes(good_row(i)["image"]["bytes"])
    (folder / "4.jpg").write_bytes(bad_row(4, "decode")["image"]["bytes"])
    out = tmp_path_factory.mktemp("answered") / "out"
    plan = plan_job("caption", settings_for(folder, out, prompt=("a=A?", "b=B?"), max_error_rate=0.5), "Q?")
    run_job(plan, load_echo_engine)
    return plan


def test_every_image_of_a_folder_is_asked_every_prompt_in_the_order_of_their_names(album: Plan) -> None:
    answers = answers_in(album.settings.output)
    expected = [(f"{i}.jpg", prompt, "ok" if i < 4 else "error") for i in range(5) for prompt in "ab"]
    assert [(a["id"], a["prompt_id"], a["status"]) for a in answers] == expected
    assert [a["prompt"] for a in answers] == ["A?", "B?"] * 5


def test_of_a_complete_job_no_process_stays_that_handed_out_its_tasks(album: Plan) -> None:
    def feeds() -> list[psutil.Process]:
        mine = psutil.Process().children(recursive=True)
        return [one for one in mine if "_Feed" in " ".join(one.as_dict(["cmdline"])["cmdline"] or ())]

    assert psutil.wait_procs(feeds(), timeout=30)[1] == []


def test_a_complete_job_answers_nothing_again(album: Plan) -> None:
    again = run_job(album, load_echo_engine)
    assert (again.rows, again.images_per_s) == (10, None)


def test_another_prompt_is_refused_in_the_same_folder(album: Plan) -> None:
    settings = album.settings.model_copy(update={"prompt": ("a=A?", "b=C?")})
    with pytest.raises(RunMismatch, match=r"prompt: \['a=A\?', 'b=B\?'\] there, \['a=A\?', 'b=C\?'\] now"):
        run_job(plan_job("caption", settings, "Q?"), load_echo_engine)


@pytest.mark.soak
def test_pages_of_a_pdf_are_read_in_strips_and_answered_in_their_places(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    (folder / "book.pdf").write_bytes(pdf(3, width=300, height=900, lines=28))
    (folder / "cover.jpg").write_bytes(good_row(1)["image"]["bytes"])
    (folder / "locked.pdf").write_bytes(encrypted_pdf())
    settings = settings_for(folder, out, strips="auto", pdf_dpi=144, max_error_rate=1.0, cut_repetition=True)
    summary = run_job(plan_job("ocr", settings, "Read."), load_engine)
    answers = answers_in(out)
    assert (summary.rows, summary.errors) == (5, 1)
    assert [a["id"] for a in answers] == [*(f"book.pdf#page={i}" for i in (1, 2, 3)), "cover.jpg", "locked.pdf#page=1"]
    assert [len(a["strips"] or ()) > 1 for a in answers] == [True, True, True, False, False]
    assert answers[0]["text"] == "\n".join(strip["text"] for strip in answers[0]["strips"] if strip["text"])
    assert answers[4]["error_type"] == "EncryptedPdf"
    assert verify_run(str(out)) == []


def test_a_job_goes_from_s3_to_s3(tmp_path: Path, bucket: str) -> None:
    from s3fs import S3FileSystem

    source = write_parquet(tmp_path / "in.parquet", [good_row(i) for i in range(40)])
    S3FileSystem().put(str(source), f"{bucket}/in/part-0.parquet")
    summary = run_job(plan_job("caption", settings_for(f"{bucket}/in", f"{bucket}/out"), "Q?"), load_engine)
    table = pq.read_table(f"{bucket.removeprefix('s3://')}/out/answers", filesystem=S3FileSystem())
    assert (summary.rows, summary.errors) == (40, 0)
    assert table["id"].to_pylist() == [f"row-{i}" for i in range(40)]
    assert S3FileSystem().exists(f"{bucket}/out/.run/manifest.json")
    assert not S3FileSystem().exists(f"{bucket}/out/units")


@pytest.mark.soak
def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(i) for i in range(30)])
    run_job(plan_job("caption", settings_for(source, tmp_path / "out", limit=11), "Q?"), load_echo_engine)
    assert [a["id"] for a in answers_in(tmp_path / "out")] == [f"row-{i}" for i in range(11)]


def test_too_many_errors_stop_the_job_and_the_same_command_goes_on(tmp_path: Path) -> None:
    rows = [bad_row(i, "prompt") if i % 4 == 0 else good_row(i) for i in range(400)]
    source = write_parquet(tmp_path / "in.parquet", rows)
    with pytest.raises(
        ErrorBudgetSpent, match=r"more than --max-error-rate 0.01 allows: \d+ prompt/EmptyPrompt"
    ) as stopped:
        run_job(plan_job("caption", settings_for(source, tmp_path / "out"), "Q?"), load_echo_engine)
    assert str(stopped.value).count("\n  prompt/EmptyPrompt  row-") == 3
    assert done_units(str(tmp_path / "out"))
    again = plan_job("caption", settings_for(source, tmp_path / "out", max_error_rate=1.0), "Q?")
    assert run_job(again, load_echo_engine).errors == 100
    assert len(answers_in(tmp_path / "out")) == 400


@pytest.mark.soak
def test_a_complete_run_is_not_changed_by_going_on_with_changes(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    first = plan_job("caption", settings_for(source, tmp_path / "out", prompt=("A?",)), "Q?")
    run_job(first, load_echo_engine)
    other = plan_job("caption", settings_for(source, tmp_path / "out", prompt=("B?",)), "Q?")
    with pytest.raises(RunMismatch, match="is complete and does not go on"):
        run_job(other, load_echo_engine, continue_with_changes=True)
    assert verify_run(str(tmp_path / "out")) == []
    assert run_job(first, load_echo_engine).images_per_s is None


@pytest.mark.soak
def test_more_gpus_do_not_change_what_a_run_is(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    one = plan_job("caption", settings_for(source, tmp_path / "out"), "Q?")
    other = plan_job("caption", settings_for(source, tmp_path / "out", gpus=0, preprocess_workers=2), "Q?")
    assert one.identity() == other.identity()


@pytest.mark.soak
def test_a_file_that_vanishes_after_it_was_listed_costs_its_own_rows(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, first in (("a", 0), ("b", 20)):
        write_parquet(folder / f"{name}.parquet", [good_row(first + i) for i in range(20)])
    plan = plan_job("caption", settings_for(folder, tmp_path / "out", max_error_rate=1.0), "Q?")
    (folder / "b.parquet").rename(tmp_path / "elsewhere")
    summary = run_job(plan, load_echo_engine)
    answers = answers_in(tmp_path / "out")
    assert (summary.ok, summary.errors) == (20, 20)
    assert [a["id"] for a in answers] == [f"row-{i}" for i in range(20)] + [f"b.parquet:{i}" for i in range(20)]
    assert {(a["error_stage"], a["error_type"]) for a in answers[20:]} == {("read", "FileNotFound")}

    (tmp_path / "elsewhere").rename(folder / "b.parquet")
    again = retry_failed(str(tmp_path / "out"), Choice(stage="read"), Loaders(engine=load_echo_engine))
    assert [a["id"] for a in answers_in(tmp_path / "out")] == [f"row-{i}" for i in range(40)]
    assert (again.errors, verify_run(str(tmp_path / "out"))) == (0, [])


def test_a_job_waits_for_its_engine_longer_than_ray_data_would(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    plan = plan_job("caption", settings_for(source, tmp_path / "out"), "Q?")
    impatient = DataContext.get_current().copy()
    impatient.execution_no_progress_timeout_s = 1
    with DataContext.current(impatient):
        assert run_job(plan, load_engine_that_takes_long).ok == 1
