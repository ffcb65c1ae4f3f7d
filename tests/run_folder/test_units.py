"""A unit is what its run says: its columns, and what happens to one that has others."""

from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.plan import Plan, plan_job
from pipeline.preflight import check_output
from pipeline.run_folder.merge import BrokenUnits, Units, check_mergeable, finish_run
from pipeline.run_folder.run import RunMismatch, read_manifest, read_run
from pipeline.run_folder.units import BrokenUnit, OtherColumns, read_answers, to_parquet, unit_path, write_unit
from pipeline.verify import verify_run
from tests.inputs import SCHEMA, good_row, write_parquet
from tests.test_verify import run_without_ray


def answered(folder: Path) -> tuple[Plan, str]:
    """A run whose units are all done, and its name."""
    plan = run_without_ray(folder, finish=False, keep=("number",))
    run = read_run(plan.settings.output)
    assert run is not None
    return plan, run["run"]


def unit(plan: Plan, number: int) -> pa.Table:
    return read_answers(Path(unit_path(plan.settings.output, number)).read_bytes())


OTHERS = {
    "a column more": lambda t: t.append_column("extra", pa.array(range(t.num_rows))),
    "a column less": lambda t: t.drop_columns(["strips"]),
    "no column that was added since": lambda t: t.drop_columns(["num_cut_tokens", "first_text"]),
    "another order": lambda t: t.select(t.column_names[::-1]),
    "a kept column of another type": lambda t: t.set_column(
        t.schema.get_field_index("number"), "number", t["number"].cast(pa.string())
    ),
    "a column of ours of another type": lambda t: t.set_column(
        t.schema.get_field_index("attempt"), pa.field("attempt", pa.int64(), nullable=False), t["attempt"].cast("int64")
    ),
    "the name of a column in capitals": lambda t: t.rename_columns([name.upper() for name in t.column_names]),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_a_unit_with_other_columns_is_broken_and_named_by_verify(tmp_path: Path, change) -> None:
    plan, run = answered(tmp_path)
    units = plan.units(run)
    write_unit(units.folder, run, 1, change(unit(plan, 1)))
    with pytest.raises(OtherColumns, match="must have the columns of this run: it has "):
        units.read(1)
    with pytest.raises(BrokenUnits) as broken:
        finish_run(units, "f" * 64, {})
    assert set(broken.value.units) == {1}
    (_, problem) = verify_run(units.folder)
    assert problem == broken.value.units[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stumbling(Units):
    """The units of a run, of which one is torn the first time that it is read, as by a disk that is about to fail."""

    torn: list[int]

    def read(self, unit: int) -> pa.Table:
        if unit in self.torn:
            self.torn.remove(unit)
            raise BrokenUnit(f"unit {unit} is torn")
        return Units(**{one.name: getattr(self, one.name) for one in fields(Units)}).read(unit)


@pytest.mark.parametrize("torn", [[0], [1], [0, 1]])
def test_a_unit_that_is_torn_only_once_is_never_left_out_of_the_answers(tmp_path: Path, torn: list[int]) -> None:
    plan, run = answered(tmp_path)
    whole = plan.units(run)
    units = Stumbling(**{one.name: getattr(whole, one.name) for one in fields(Units)}, torn=list(torn))
    with pytest.raises(BrokenUnits) as broken:
        finish_run(units, "f" * 64, {})
    assert set(broken.value.units) <= set(torn)
    assert read_manifest(plan.settings.output) is None
    assert finish_run(whole, "f" * 64, {})["rows"] == 20


def test_what_cannot_be_merged_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    plan, run = answered(tmp_path)
    before = (tmp_path / "out" / ".run" / "run.json").read_bytes()
    table = pa.Table.from_pylist([good_row(i) for i in range(20)], schema=SCHEMA)
    number = table.schema.get_field_index("number")
    pq.write_table(table.set_column(number, "number", table["number"].cast(pa.string())), tmp_path / "in.parquet")
    changed = plan_job("caption", plan.settings, "Q?")
    with pytest.raises(RunMismatch, match=r"it has 'number' \(int64\) where 'number' \(string\) must be; choose"):
        check_output(changed, continue_with_changes=True)
    assert (tmp_path / "out" / ".run" / "run.json").read_bytes() == before


@pytest.mark.parametrize("data", [b"", b"PAR1", bytes(2000)], ids=["empty", "torn", "zeros"])
def test_a_unit_that_is_broken_anyway_stands_in_no_changes_way(tmp_path: Path, data: bytes) -> None:
    plan, _ = answered(tmp_path)
    Path(unit_path(plan.settings.output, 0)).write_bytes(data)
    write_parquet(tmp_path / "in.parquet", [good_row(i + 1) for i in range(20)])
    check_output(plan_job("caption", plan.settings, "Q?"), continue_with_changes=True)


def test_a_foreign_unit_does_not_keep_an_unchanged_run_from_going_on(tmp_path: Path) -> None:
    plan, run = answered(tmp_path)
    write_unit(plan.settings.output, run, 1, OTHERS["a column more"](unit(plan, 1)))
    check_output(plan_job("caption", plan.settings, "Q?"), continue_with_changes=True)
    with pytest.raises(RunMismatch, match="other columns"):
        check_mergeable(plan.units(run))


def test_units_of_the_first_release_stand_beside_new_ones(tmp_path: Path) -> None:
    plan, run = answered(tmp_path)
    old = OTHERS["no column that was added since"](unit(plan, 0))
    marks = {"llava_batch_run": run, "llava_batch_unit": "0"}
    Path(unit_path(plan.settings.output, 0)).write_bytes(to_parquet(old.replace_schema_metadata(marks)))
    units = plan.units(run, sealed=False)
    check_mergeable(units)
    finish_run(units, "f" * 64, {})
    answers = pq.read_table(tmp_path / "out" / "answers")
    assert answers.column_names == [*plan.answer_schema.names]
    assert answers["first_text"].null_count == 20
