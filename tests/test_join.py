"""join: folders of shards become the one that a single submission would have made; nothing else is taken for it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline.join import join_shards
from pipeline.plan import find_complete
from pipeline.retry import Choice, SomeRows, begin_retry
from pipeline.run_folder.mend import POSITION, retry_list
from pipeline.run_folder.run import read_manifest, read_run, record_found
from pipeline.run_folder.units import write_unit
from pipeline.sources.reader import unit_reader
from pipeline.verify import plan_of, verify_run
from schemas.errors import Refused
from tests.test_retry import answer
from tests.test_verify import run_without_ray


def shards_of(folder: Path, num: int = 3, name: str = "shard", **changes: object) -> list[str]:
    """The folders of all shards of 20 rows in units of 4, one of which is bad."""
    folders = [f"{folder}/{name}-{number}" for number in range(1, num + 1)]
    for number, output in enumerate(folders, start=1):
        run_without_ray(folder, output, shard=f"{number}/{num}", **{"unit_rows": 4, **changes})
    return folders


@pytest.mark.parametrize("changes", [{"limit": 17}, {"prompt": ("a=What?", "b=Where?"), "keep": ("number",)}])
def test_joined_shards_are_as_one_submission_would_have_made_them(tmp_path: Path, changes: dict[str, object]) -> None:
    folders = shards_of(tmp_path, **changes)
    assert [verify_run(folder) for folder in folders] == [[], [], []]
    plan = run_without_ray(tmp_path, unit_rows=4, **changes)
    summary = join_shards([folders[2], folders[0], folders[1]], f"{tmp_path}/all")
    assert summary.rows == plan.listing.num_rows * plan.num_prompts
    assert pq.read_table(f"{tmp_path}/all/answers").equals(pq.read_table(f"{tmp_path}/out/answers"))
    assert verify_run(f"{tmp_path}/all") == []
    at_output = replace(plan, settings=plan.settings.model_copy(update={"output": f"{tmp_path}/all"}))
    assert find_complete(at_output) == replace(summary, output=f"{tmp_path}/all")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three, and of two; never written to."""
    folder = tmp_path_factory.mktemp("made")
    shards_of(folder)
    shards_of(folder, 2, "half")
    run_without_ray(folder, f"{folder}/other", shard="2/3", unit_rows=4, prompt=("Why?",))
    run_without_ray(folder, f"{folder}/begun", shard="2/3", unit_rows=4, finish=False)
    run_without_ray(folder, f"{folder}/no-shard", unit_rows=4)
    run_without_ray(folder, f"{folder}/at-work", unit_rows=4, finish=False)
    return folder


def test_what_is_joined_is_exported_and_reported(made: Path, tmp_path: Path) -> None:
    shards = [f"{made}/half-{number}" for number in (1, 2)]
    assert main(["merge", *shards, "--output", f"{tmp_path}/all"]) == 0
    assert main(["merge", *shards, "--output", f"{tmp_path}/all"]) == 0  # it is there already
    assert main(["export", f"{tmp_path}/all", "--to", "jsonl", "--dest", f"{tmp_path}/answers.jsonl"]) == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 20
    assert main(["report", f"{tmp_path}/all"]) == 0


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["shard-1", "shard-3"], "every shard must be there once, 2/3 is missing"),
        (["shard-2"], "1/3, 3/3 are missing"),
        (["shard-1", "shard-1", "shard-2", "shard-3"], "1/3 is there more than once"),
        (["shard-1", "half-2", "shard-3"], "shard-1 is 1/3 and .*half-2 is 2/2"),
        (["shard-1", "other", "shard-3"], r"(?s)other \(2/3\) differ.*prompt: "),
        (["shard-1", "begun", "shard-3"], r"must be complete, .*begun \(2/3\) is not"),
        (["shard-1", "no-shard", "shard-3"], "must be answered with --shard I/N, .*no-shard was not"),
        (["shard-1", "gone", "shard-3"], "must be a run folder, .*gone is none"),
    ],
)
def test_what_is_not_all_of_one_run_is_refused_by_name(made: Path, tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        join_shards([f"{made}/{name}" for name in names], f"{tmp_path}/all")
    assert not (tmp_path / "all").exists()


def lose(folder: Path) -> None:
    (folder / "answers" / "part-00000.parquet").unlink()


def change_input(folder: Path) -> None:
    table = pq.read_table(folder.parent / "in.parquet")
    pq.write_table(table.slice(1), folder.parent / "in.parquet")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lose, "must be whole, of .*half-2 .2/2. answers/part-00000.parquet is missing"),
        (change_input, "the input must be as it was"),
        (lambda folder: record_found(str(folder), "precision", "bfloat16"), "precision: None there, 'bfloat16' now"),
    ],
)
def test_a_shard_that_is_no_more_what_it_was_is_refused(
    tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    shards = shards_of(tmp_path, 2, "half")
    change(tmp_path / "half-2")
    with pytest.raises(Refused, match=said):
        join_shards(shards, f"{tmp_path}/all")


def test_a_merge_that_was_killed_is_done_again(made: Path, tmp_path: Path) -> None:
    shards, output = [f"{made}/half-{number}" for number in (1, 2)], tmp_path / "all"
    join_shards(shards, str(output))
    whole = pq.read_table(output / "answers")
    (output / ".run" / "manifest.json").unlink()
    (output / "answers" / "part-00000.parquet").write_bytes(b"PAR1")
    shutil.copy(output / "answers" / "part-00000.parquet", output / "answers" / "part-00001.parquet")
    assert join_shards(shards, str(output)).rows == 20
    assert pq.read_table(output / "answers").equals(whole)
    assert verify_run(str(output)) == []


def test_a_folder_with_answers_of_its_own_is_not_joined_into(made: Path, tmp_path: Path) -> None:
    shards = [f"{made}/half-{number}" for number in (1, 2)]
    with pytest.raises(Refused, match="at-work has answers of its own"):
        join_shards(shards, f"{made}/at-work")
    with pytest.raises(Refused, match="other holds another run. What differs: prompt, prompt_ids, shard"):
        join_shards(shards, f"{made}/other")


@pytest.mark.parametrize(
    ("shards", "output", "said"),
    [
        (["1", "2"], "1", "--output must be outside of the shards' folders, .*1 is within"),
        (["1", "2"], "link/all", "--output must be outside of the shards' folders, .*link/all is within"),
        (["all/units/1", "2"], "all", "a shard must be outside of what a run keeps of its own, .*units/1 is within"),
        (["", "2"], "all", "a shard must not be empty, got ''"),
    ],
)
def test_the_whole_and_its_shards_are_apart(tmp_path: Path, shards: list[str], output: str, said: str) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "1")
    with pytest.raises(Refused, match=said):
        join_shards([name and f"{tmp_path}/{name}" for name in shards], f"{tmp_path}/{output}")


def test_a_whole_may_be_around_its_shards(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    join_shards(shards_of(tmp_path / "all"), f"{tmp_path}/all")
    assert verify_run(f"{tmp_path}/all") == []
    assert verify_run(f"{tmp_path}/all/shard-2") == []


@pytest.mark.parametrize(("output", "said"), [("", "must not be empty"), ("s3:///x", "must name a bucket")])
def test_an_output_that_is_none_is_refused(made: Path, output: str, said: str, capsys) -> None:
    assert main(["merge", f"{made}/half-1", f"{made}/half-2", "--output", output]) == 2
    assert capsys.readouterr().err.startswith(f"error: --output {said}")


def test_what_retries_of_shards_have_replaced_stands_beside_the_whole(tmp_path: Path) -> None:
    shards, output = shards_of(tmp_path, 2), f"{tmp_path}/all"
    run, manifest = read_run(shards[1]), read_manifest(shards[1])
    assert run is not None
    assert manifest is not None
    plan = plan_of(shards[1], run)
    retry = begin_retry(plan, run, manifest, Choice(finish_reason="stop"))
    assert retry is not None
    for unit in retry.rows:
        answers = answer(plan, SomeRows(unit_reader(plan.listing), retry.rows)(unit))
        write_unit(retry.units.folder, retry.units.run, unit, answers)
    retry.finish(manifest)
    join_shards(shards, output)
    assert verify_run(output) == []
    positions = pq.read_table(retry_list(output, 1))[POSITION].to_pylist()
    assert positions == list(range(8, 20))  # of the whole
    assert pc.sum(pq.read_table(f"{output}/answers")["attempt"]).as_py() == 8 + 2 * 12
