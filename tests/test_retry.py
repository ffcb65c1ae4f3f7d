"""What a retry carries over is what the manifest vouches for, or what it has put there itself; without Ray."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import retry as retry_module
from pipeline.execution.executor import Loaders
from pipeline.execution.ray_errors import RunFailed
from pipeline.plan import Plan, find_complete, plan_job
from pipeline.retry import Choice, Retry, SomeRows, begin_retry, retry_failed
from pipeline.run_folder.lock import FolderInUse, hold
from pipeline.run_folder.mend import find_gone, lost_units, mend_run
from pipeline.run_folder.merge import Units, write_answers
from pipeline.run_folder.run import RunMismatch, read_run, write_manifest
from pipeline.run_folder.units import read_answers, to_parquet, to_sealed, write_unit
from pipeline.sources.reader import unit_reader
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from pipeline.storage import filesystem as fs
from pipeline.verify import verify_run
from schemas.errors import Refused
from tests.fakes import load_echo_engine
from tests.inputs import SCHEMA, good_row
from tests.lines import Lines, each_line
from tests.run_folder.test_lock import change_owner
from tests.run_folder.test_mend import damage, manifest_of, three_files

OK = Choice(finish_reason="stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A run of three files of answers, and a retry of all its good ones, answered but not merged yet."""

    plan: Plan
    units: Units
    run: dict[str, Any]
    retry: Retry

    def part(self, number: int) -> Path:
        return Path(self.plan.settings.output, "answers", f"part-{number:05d}.parquet")

    def finish(self) -> dict[str, Any]:
        return self.retry.finish(manifest_of(self.plan))

    def stop_after(self, parts: int) -> None:
        """Finish, but for the files after these and the manifest, as a kill leaves it."""
        folder = self.plan.settings.output
        manifest, before = manifest_of(self.plan), [self.part(number).read_bytes() for number in range(3)]
        units = {path: path.read_bytes() for path in Path(folder, ".run", "retry").rglob("*.pq")}
        self.finish()
        for number in range(parts, 3):
            self.part(number).write_bytes(before[number])
        write_manifest(folder, manifest)
        for path, data in units.items():
            fs.write_atomic(str(path), data)


def answer(plan: Plan, table: pa.Table) -> pa.Table:
    preprocess, generate = Preprocess(plan.settings), Generate(plan.settings, load_echo_engine)
    return final_answers(generate(preprocess(table)))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    plan, units = three_files(tmp_path)
    run = read_run(plan.settings.output)
    assert run is not None
    retry = begin_retry(plan, run, manifest_of(plan), OK)
    assert retry is not None
    for unit in retry.rows:
        answers = answer(plan, SomeRows(unit_reader(plan.listing), retry.rows)(unit))
        write_unit(retry.units.folder, retry.units.run, unit, answers)
    return Scene(plan=plan, units=units, run=run, retry=retry)


def attempts(scene: Scene) -> list[int]:
    return [attempt for number in range(3) for attempt in pq.read_table(scene.part(number))["attempt"].to_pylist()]


@pytest.mark.parametrize("files_before", [0, 1, 3])
def test_a_retry_that_was_given_up_replaces_nothing_more_and_its_workers_write_nothing(
    scene: Scene, files_before: int
) -> None:
    folder, looks = scene.plan.settings.output, iter(range(9))
    before = manifest_of(scene.plan)
    with hold(folder) as lock:
        shard = scene.retry.shard(Loaders(engine=load_echo_engine), lock)

        def confirm() -> None:
            if next(looks) == files_before:
                change_owner(folder)
            lock.confirm()

        with pytest.raises(FolderInUse):
            scene.retry.finish(manifest_of(scene.plan), confirm)
        assert [attempts(scene)[row] for row in (0, 10, 19)] == [2] * files_before + [1] * (3 - files_before)
        assert manifest_of(scene.plan) == before
        with pytest.raises(RuntimeError, match="its unit is not written"):
            shard.write(0, pa.table({}))


def test_each_file_is_replaced_by_its_own_units_and_no_other_is_read_for_it(scene: Scene) -> None:
    manifest, units = manifest_of(scene.plan), Path(scene.retry.units.folder, "units")
    numbers = iter(sorted(units.iterdir()))
    scene.retry.finish(manifest, lambda: next(numbers, units / "none").unlink(missing_ok=True))  # once it was read
    assert attempts(scene) == ONCE
    assert not units.exists()


def test_of_two_drivers_that_begin_a_retry_whichever_sleeps_at_which_line_its_list_is_written_once(
    scene: Scene,
) -> None:
    history, manifest = Path(scene.retry.history), manifest_of(scene.plan)

    def run(number: int) -> Lines:
        history.unlink(missing_ok=True)
        lists = list[bytes]()

        def begin(choice: Choice) -> None:
            begin_retry(scene.plan, scene.run, manifest, choice)
            lists.append(history.read_bytes())

        lines = Lines((retry_module,), number, lambda: begin(Choice()))
        lines.run(lambda: begin(OK))
        assert len(set(lists)) == 1
        return lines

    assert len(list(each_line(run))) > 20


ONCE = [1 if row == 3 else 2 for row in range(20)]  # row 3 has failed, and was not chosen


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        pytest.param(Choice(), "1 answer of {out} to give again", id="failed"),
        pytest.param(Choice(error_type="NoSuchType"), None, id="none of a type"),
        pytest.param(Choice(stage="read"), None, id="none of a stage"),
        pytest.param(
            Choice(finish_reason="stop", settings={"max_new_tokens": 9, "seed": 3}),
            "19 answers of {out} to give again, with max_new_tokens 9, seed 3",
            id="with other settings",
        ),
    ],
)
def test_a_retry_says_what_it_will_do_before_anything_starts(tmp_path: Path, choice: Choice, said: str | None) -> None:
    plan, _ = three_files(tmp_path)
    run = read_run(plan.settings.output)
    assert run is not None
    retry = begin_retry(plan, run, manifest_of(plan), choice)
    found = retry and retry.describe().removeprefix("retry    ")
    assert found == (said and said.format(out=plan.settings.output))


def test_of_several_draws_those_that_are_chosen_are_replaced_in_their_places(tmp_path: Path) -> None:
    plan, _ = three_files(tmp_path, num_answers=3, temperature=1.0, prompt=("a=A?", "b=B?"))
    run, folder = read_run(plan.settings.output), plan.settings.output
    before = pq.read_table(f"{folder}/answers").to_pylist()
    assert run is not None
    retry = begin_retry(plan, run, manifest_of(plan), Choice(finish_reason="stop", prompt_id="b.2"))
    assert retry is not None
    for unit in retry.rows:
        table = SomeRows(unit_reader(plan.listing), retry.rows)(unit)
        preprocess, generate = Preprocess(plan.settings), Generate(plan.settings, load_echo_engine)
        answers = final_answers(generate(preprocess(table)), plan.settings)
        write_unit(retry.units.folder, retry.units.run, unit, answers)
    assert retry.finish(manifest_of(plan))["retries"][0]["rows"] == 19
    after = pq.read_table(f"{folder}/answers").to_pylist()
    assert {row["prompt_id"] for row in after if row["attempt"] == 2} == {"b.2"}
    assert [row | {"attempt": 1} for row in after] == before
    assert [row["answer_id"] for row in after] == [1, 2, 3] * 40
    assert verify_run(folder) == []


@pytest.mark.parametrize("parts", range(4))
def test_a_retry_that_was_stopped_goes_on_wherever_it_was(scene: Scene, parts: int) -> None:
    scene.stop_after(parts)
    assert find_gone(scene.units.folder, manifest_of(scene.plan)) == []
    said = [problem for problem in verify_run(scene.units.folder) if "retry-failed was stopped and finishes" in problem]
    assert len(said) == parts
    manifest = scene.finish()
    assert attempts(scene) == ONCE
    assert (manifest["errors"], manifest["retries"][0]["now_ok"]) == (1, 19)
    assert verify_run(scene.units.folder) == []


@pytest.mark.parametrize("how", ["torn", "zeros", "one bit"])
@pytest.mark.parametrize("number", [0, 2])
def test_damage_is_not_carried_over_by_a_retry_that_was_stopped(scene: Scene, number: int, how: str) -> None:
    scene.stop_after(1)  # file 0 is the retry's, file 2 is as it was
    damage(scene.part(number), how)
    lost = find_gone(scene.units.folder, manifest_of(scene.plan))
    assert [one.path for one in lost] == [f"answers/part-0000{number}.parquet"]
    with pytest.raises(Refused, match=f"part-0000{number}.parquet is not the file that was written"):
        retry_failed(scene.units.folder, Choice(), Loaders(engine=load_echo_engine))
    with pytest.raises(RunFailed, match=f"part-0000{number}.parquet was damaged"):
        scene.finish()
    assert find_complete(scene.plan) is None


def rewritten(scene: Scene, number: int) -> bytes:
    """The file with another text in it, and as many rows, as a foreign hand writes it."""
    table = read_answers(scene.part(number).read_bytes())
    place = table.schema.get_field_index("text")
    table = table.set_column(place, "text", pa.array(["wrong"] * table.num_rows))
    return to_sealed(table, {"llava_batch_retry": f"{scene.units.run}-7", "llava_batch_part": "answers"})


FOREIGN: dict[str, Callable[[Scene], bytes]] = {
    "unsealed": lambda scene: to_parquet(read_answers(scene.part(0).read_bytes())),
    "sealed by another retry": lambda scene: rewritten(scene, 0),
    "another file of the same retry": lambda scene: scene.part(1).read_bytes(),
    "a unit of the retry": lambda scene: Path(
        scene.plan.settings.output, ".run", "retry", "units", "unit-00000000.pq"
    ).read_bytes(),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_only_what_this_retry_has_put_in_this_place_is_taken_for_its_own(scene: Scene, change) -> None:
    scene.stop_after(2)
    scene.part(0).write_bytes(change(scene))
    (lost,) = find_gone(scene.units.folder, manifest_of(scene.plan))
    assert lost.path == "answers/part-00000.parquet"


def test_what_is_lost_under_a_stopped_retry_is_answered_again_and_the_retry_goes_on(scene: Scene) -> None:
    scene.stop_after(2)
    damage(scene.part(1), "one bit")
    lost = find_gone(scene.units.folder, manifest_of(scene.plan))
    for unit in lost_units(scene.units, lost):
        answers = answer(scene.plan, unit_reader(scene.plan.listing)(unit))
        write_unit(scene.units.folder, scene.units.run, unit, answers)
    mend_run(scene.units, manifest_of(scene.plan), lost)
    assert scene.finish()["errors"] == 1
    assert attempts(scene) == ONCE
    assert verify_run(scene.units.folder) == []


def test_counts_follow_what_is_in_the_files_where_they_were_mended_under_a_retry(scene: Scene) -> None:
    """The mended file has a row more that failed than the retry has written down."""
    scene.stop_after(0)
    manifest = manifest_of(scene.plan)
    old = pq.read_table(scene.part(0))
    failed = old.take(pa.array([3])).set_column(0, old.schema.field("id"), old["id"].slice(0, 1))
    mended = pa.concat_tables([failed, old.slice(1)])
    file = write_answers(scene.units.folder, "answers/part-00000.parquet", to_parquet(mended), 8)
    by_type = [{**manifest["errors_by_type"][0], "rows": 2}]
    changed = {**manifest, "files": [file, *manifest["files"][1:]], "errors": 2, "ok": 18, "errors_by_type": by_type}
    write_manifest(scene.units.folder, changed)
    manifest = scene.finish()
    assert (manifest["errors"], manifest["errors_by_type"][0]["rows"]) == (1, 1)
    assert verify_run(scene.units.folder) == []


@pytest.mark.parametrize("how", ["torn", "zeros", "one bit"])
def test_a_damaged_list_of_a_retry_is_refused_by_name(scene: Scene, how: str) -> None:
    damage(Path(scene.retry.history), how)
    with pytest.raises(RunMismatch, match="retry-0001.pq is torn or damaged"):
        begin_retry(scene.plan, scene.run, manifest_of(scene.plan), OK)


@pytest.mark.parametrize("how", ["gone", "torn", "one bit"])
def test_the_answers_before_a_retry_are_part_of_the_run(scene: Scene, how: str) -> None:
    scene.finish()
    damage(Path(scene.retry.history), how)
    (problem,) = verify_run(scene.units.folder)
    assert problem == ".run/attempts/retry-0001.pq is missing or not the file that was written"


@pytest.mark.parametrize("how", ["torn", "zeros", "one bit"])
def test_a_broken_unit_of_a_retry_is_answered_again(scene: Scene, how: str) -> None:
    damage(Path(scene.plan.settings.output, ".run", "retry", "units", "unit-00000001.pq"), how)
    with pytest.raises(RuntimeError, match="unit-00000001.pq is torn or damaged"):
        scene.retry.units.read(1)


def test_new_answers_with_other_columns_are_refused_before_any_is_given(tmp_path: Path) -> None:
    plan, units = three_files(tmp_path, keep=("number",))
    table = pa.Table.from_pylist([good_row(i) for i in range(20)], schema=SCHEMA)
    number = table.schema.get_field_index("number")
    pq.write_table(table.set_column(number, "number", table["number"].cast(pa.string())), tmp_path / "in.parquet")
    with pytest.raises(RunMismatch, match=r"it has 'number' \(int64\) where 'number' \(string\) must be"):
        retry_failed(units.folder, Choice(continue_with_changes=True), Loaders(engine=load_echo_engine))
    assert not (tmp_path / "out" / ".run" / "attempts").exists()
    assert np.array_equal(pq.read_table(tmp_path / "out" / "answers")["number"].to_numpy(), np.arange(20))
    assert plan_job("caption", plan.settings, "Q?").identity() != plan.identity()
