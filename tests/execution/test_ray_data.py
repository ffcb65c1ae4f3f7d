"""A work unit as one row: nothing that Ray does with rows and blocks can take it apart."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, OutOfMemoryError

from pipeline.execution.placement import Load, describe_wait, models_wanted, share_out, units_at_once
from pipeline.execution.ray_cluster import StartFailures
from pipeline.execution.ray_data import _Closed, _context
from pipeline.execution.ray_errors import RunFailed, is_death, never_ran
from pipeline.execution.ray_generate import Generators
from pipeline.execution.work_units import UNIT_SCHEMA, Spent, UnitKey, keys_of, pack, unpack, with_keys
from schemas.errors import Refused
from schemas.job import JobSettings
from schemas.sample import Prompt, Sample, Size, samples_to_table, table_to_samples

ROOT = Path(__file__).parents[2]
LOAD = Load(units=1000, prompts=64_000)


def a_unit(rows: int = 3) -> pa.Table:
    tiles = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8)
    prompt = Prompt(id="p", text="q", token_ids=np.arange(1, 5, dtype=np.int32))
    sample = Sample(id="s", prompts=(prompt,), image_sizes=(Size(9, 9),), tiles_per_image=(5,), tiles=tiles)
    return samples_to_table([sample] * rows).append_column("keep:n", pa.array(range(rows)))


def test_after_the_end_of_a_run_nothing_that_still_asks_connects_to_a_cluster_again() -> None:
    late = """
import ray
from pipeline.execution.ray_cluster import connect_no_more
connect_no_more()
try:
    ray.put(1)
except ray.exceptions.RaySystemError as error:
    print(error)
print(ray.is_initialized())
"""
    command = [sys.executable, "-c", late]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, cwd=ROOT)
    assert "Ray has not been started yet" in run.stdout
    assert run.stdout.endswith("False\n")
    assert "Started a local Ray" not in run.stderr


def test_a_command_with_a_name_that_is_not_utf_8_can_be_told_to_a_cluster() -> None:
    telling = """
import ray
from pipeline.execution.ray_cluster import name_command
name_command()
print(ray._private.utils.get_entrypoint_name().encode())
"""
    command = [sys.executable, "-c", telling, b"caf\xe9"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, cwd=ROOT)
    assert run.stdout.endswith("caf\\\\udce9'\n")


def test_a_source_that_is_closed_before_its_first_block_ends_without_a_word() -> None:
    closing = """
from ray.data.exceptions import omit_traceback_stdout
from pipeline.execution.ray_data import _Closed, _Steps
closed = _Closed()
closed.set()
omit_traceback_stdout(_Steps(closed).on_execution_step)(None)
"""
    command = [sys.executable, "-c", closing]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)
    assert run.stderr.splitlines()[-1].endswith("ExecutionTimeoutError: closed")
    assert "ERROR" not in run.stderr


def test_a_unit_comes_out_as_it_went_in() -> None:
    batch = pack(UnitKey(1, 7), a_unit(), Spent(seconds=0.5, work_s=0.1, input_s=0.3))
    assert batch.schema == UNIT_SCHEMA
    assert unpack(batch) == (UnitKey(1, 7), a_unit())
    assert batch.column("seconds").to_pylist() == [0.5]
    assert batch.column("input_share").to_pylist() == [0.3 / (0.3 + 0.1)]


def test_the_units_of_a_task_are_known_by_the_schema_of_their_blocks() -> None:
    keys = [UnitKey(0, 2**40), UnitKey(3, 0)]
    batch = with_keys(pack(keys[0], a_unit()), keys)
    assert keys_of(batch.schema) == keys
    assert unpack(batch) == (keys[0], a_unit())


def test_a_unit_is_unpacked_without_a_copy_of_its_pixels() -> None:
    batch = pack(UnitKey(0, 0), a_unit())
    content = batch.column("tiles").chunk(0).buffers()[2]
    tiles = table_to_samples(unpack(batch)[1])[0].tiles
    assert tiles.__array_interface__["data"][0] == content.address


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(a_unit(4).slice(1, 2), id="a part of a table"),
        pytest.param(pa.concat_tables([a_unit(1), a_unit(2)]), id="tiles in two places"),
        pytest.param(pa.table({"n": [1, 2]}), id="no tiles"),
        pytest.param(pa.table({}), id="nothing"),
    ],
)
def test_a_unit_of_any_form_comes_out_as_it_went_in(table: pa.Table) -> None:
    assert unpack(pack(UnitKey(0, 0), table))[1] == table


def test_a_unit_is_packed_without_a_copy_of_its_pixels() -> None:
    table = a_unit()
    content = pack(UnitKey(0, 0), table).column("tiles").chunk(0).buffers()[2]
    assert content.address == table["tiles"].chunk(0).buffers()[2].address


def test_a_unit_is_found_behind_others_in_its_block() -> None:
    block = pa.concat_tables([pack(UnitKey(0, 1), a_unit(1)), pack(UnitKey(0, 2), a_unit(2))]).combine_chunks()
    assert [unpack(block.slice(i, 1))[0].unit for i in range(2)] == [1, 2]
    assert unpack(block.slice(1, 1))[1] == a_unit(2)


@pytest.mark.parametrize("raised", [Exception("it timed\nout"), RuntimeError("it timed out"), OSError("it timed out")])
def test_a_ray_that_does_not_start_is_one_line_whatever_it_raises(raised: Exception) -> None:
    said = r"^Ray did not start, its logs are below /tmp/x: it timed out$"
    with pytest.raises(RunFailed, match=said), StartFailures("/tmp/x"):
        raise raised


def test_a_start_that_took_too_long_is_tried_again_and_nothing_else_is() -> None:
    with StartFailures("/tmp/x", tries_left=1):
        raise Exception("The current node timed out during startup.")
    with pytest.raises(RunFailed), StartFailures("/tmp/x", tries_left=1):
        raise OSError("no space left on device")


@pytest.mark.parametrize("raised", [KeyError("a bug"), KeyboardInterrupt()])
def test_a_bug_or_a_signal_is_no_ray_that_does_not_start(raised: BaseException) -> None:
    with pytest.raises(type(raised)), StartFailures("/tmp/x"):
        raise raised


def test_two_units_in_a_batch_are_a_bug_and_end_the_run() -> None:
    with pytest.raises(RuntimeError, match="a batch must be one work unit, got 2"):
        unpack(pa.concat_tables([pack(UnitKey(0, 1), a_unit()), pack(UnitKey(0, 2), a_unit())]))


@pytest.mark.parametrize(
    ("gpus", "gpus_per_model", "models"),
    [(None, 1, 7), (None, 2, 3), (None, 4, 1), (0, 2, 0), (4, 2, 2), (16, 8, 2)],
)
def test_a_model_has_its_gpus_on_one_machine(gpus, gpus_per_model, models) -> None:
    machines = [{"CPU": 8.0}, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 3.0}]
    settings = JobSettings(input=("a",), output="o", gpus=gpus, gpus_per_model=gpus_per_model)
    placement = share_out(machines, settings, LOAD, may_grow=True)
    assert (placement.models, placement.gpus_per_model) == (models, gpus_per_model)
    assert placement.preprocess_workers == max(models, 1)


def test_a_model_that_no_machine_has_the_gpus_for_is_refused() -> None:
    settings = JobSettings(input=("a",), output="o", gpus_per_model=8)
    with pytest.raises(ValueError, match="gpus_per_model must be at most the 4 GPUs of the largest machine, got 8"):
        share_out([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0}], settings, LOAD)


@pytest.mark.parametrize(
    ("machines", "given", "message"),
    [
        pytest.param([{"GPU": 4.0}], {}, "needs a CPU of its cluster.*there are 0: .*--num-cpus 1", id="no CPU"),
        pytest.param([{"CPU": 64.0}], {"gpus": 8}, "at most the 0 GPUs of the cluster, got 8", id="no GPU"),
        pytest.param(
            [{"CPU": 64.0, "GPU": 4.0}], {"gpus": 8}, "at most the 4 GPUs of the cluster, got 8", id="fewer GPUs"
        ),
        pytest.param(
            [{"CPU": 64.0, "GPU": 3.0}] * 2, {"gpus": 6, "gpus_per_model": 2}, "2 of one machine for", id="split"
        ),
    ],
)
def test_what_a_cluster_never_has_is_refused_with_what_would_do(machines, given, message) -> None:
    settings = JobSettings(input=("a",), output="o", **given)
    with pytest.raises(Refused, match=message):
        share_out(machines, settings, LOAD)
    assert share_out(machines, settings, LOAD, may_grow=True).preprocess_workers >= 1


@pytest.mark.parametrize(
    ("load", "models", "slots", "units"),
    [
        pytest.param(LOAD, 1, None, 9, id="256 slots twice and two prefills, in units of 64"),
        pytest.param(LOAD, 1, 96, 4, id="as many slots as are set"),
        pytest.param(Load(units=1000, prompts=4 * 64_000), 1, None, 3, id="four prompts about a row"),
        pytest.param(Load(units=1000, prompts=1000), 1, None, 32, id="units of a row"),
        pytest.param(Load(units=32, prompts=1536), 8, None, 4, id="its share of eight"),
        pytest.param(Load(units=1, prompts=3), 4, None, 3, id="fewer units than actors"),
        pytest.param(LOAD, 0, None, 3, id="no GPU"),
    ],
)
def test_an_engine_has_units_enough_to_choose_rows_from_and_no_more_than_its_share(load, models, slots, units) -> None:
    settings = JobSettings(input=("a",), output="o", slots=slots)
    assert units_at_once(settings, load, models) == units


@pytest.mark.parametrize("machine", [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 8.0}])
def test_one_cpu_is_enough(machine) -> None:
    assert share_out([machine], JobSettings(input=("a",), output="o"), LOAD).preprocess_workers == 1


@pytest.mark.parametrize(
    ("given", "machines", "models"),
    [
        pytest.param({}, [{"GPU": 2.0}, {"GPU": 2.0}], 4, id="another machine has come"),
        pytest.param({}, [{"CPU": 8.0}], 1, id="all have gone: one waits"),
        pytest.param({"gpus": 2}, [{"GPU": 8.0}], 2, id="as many as were asked for"),
        pytest.param({"gpus": 2}, [], 2, id="that are gone"),
        pytest.param({"gpus": 0}, [{"GPU": 8.0}], 1, id="on the CPU"),
    ],
)
def test_there_are_as_many_models_as_the_cluster_has_gpus_by_now(given, machines, models) -> None:
    begun = share_out([{"CPU": 8.0, "GPU": 2.0}], JobSettings(input=("a",), output="o", **given), LOAD)
    assert models_wanted(machines, begun) == models


def test_cards_of_different_memory_have_units_for_their_own_slots() -> None:
    settings = JobSettings(input=("a",), output="o")
    assert [units_at_once(settings, LOAD, 2, slots) for slots in (40, 256)] == [3, 9]


def test_who_waits_is_told_what_is_asked_for_and_what_is_there() -> None:
    placement = share_out([], JobSettings(input=("a",), output="o", gpus=8), LOAD, may_grow=True)
    said = describe_wait(placement, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0})
    assert said == ("waiting for machines: 8 GPUs asked for, 1 there, 0 free; 1 CPU asked for, 4 there, 2 free")


def test_gpus_that_do_not_divide_among_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gpus must be a multiple of gpus_per_model \(2\), got 5"):
        JobSettings(input=("a",), output="o", gpus=5, gpus_per_model=2)


@pytest.mark.parametrize("never_started", [True, False])
def test_an_actor_that_ray_took_back_before_it_ran_has_not_failed_to_load(never_started: bool) -> None:
    cause = ActorDiedErrorContext(
        error_message="The actor is dead because all references to the actor were removed.",
        actor_id=bytes(16),
        class_name="MapWorker",
        never_started=never_started,
    )
    assert never_ran(ActorDiedError(cause)) == never_started


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        pytest.param(ActorDiedError(), True, id="killed"),
        pytest.param(OutOfMemoryError("Task was killed due to the node running low on memory."), True, id="by Ray"),
        pytest.param(ActorUnavailableError("no connection", None), True, id="out of reach"),
        pytest.param(ObjectLostError("00", None, ""), False, id="its samples are lost"),
        pytest.param(RuntimeError("a bug"), False, id="a bug"),
    ],
)
def test_an_actor_that_ray_kills_for_want_of_memory_has_died_as_any_other(error: Exception, gone: bool) -> None:
    assert is_death(error) is gone


def test_an_engine_that_loads_is_kept_while_those_of_a_machine_that_is_just_lost_count_still() -> None:
    unused: Any = None
    one_gpu = share_out([{"CPU": 8.0, "GPU": 1.0}], JobSettings(input=("a",), output="o"), LOAD)
    actors: Any = {0: SimpleNamespace(ready=True), 1: SimpleNamespace(ready=False)}
    generators = Generators(
        plan=unused, placement=one_gpu, load=LOAD, dispatch=unused, post=unused, say=unused, actors=actors
    )
    generators.follow([{"GPU": 1.0}], just_lost=True)
    assert set(generators.actors) == {0, 1}


def test_ray_datas_loop_ends_once_its_source_is_closed_however_often_its_context_is_copied() -> None:
    closed = _Closed()
    (make,) = _context(closed, 1).copy().copy().custom_execution_callback_classes
    steps = make()
    steps.on_execution_step(None)
    closed.set()
    with pytest.raises(ExecutionTimeoutError, match="closed"):
        steps.on_execution_step(None)


def test_preprocessing_grows_by_no_more_at_once_than_there_are_engines() -> None:
    before = DataContext.get_current().autoscaling_config.actor_pool_max_upscaling_delta
    assert _context(_Closed(), 3).copy().autoscaling_config.actor_pool_max_upscaling_delta == 3
    assert DataContext.get_current().autoscaling_config.actor_pool_max_upscaling_delta == before
