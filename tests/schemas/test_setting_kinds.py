"""Every setting says what it decides, and the lists that follow from that are the right ones."""

from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from jobs.flags import RETRIED
from jobs.ocr import OcrSettings
from pipeline.run_folder.run import FIXED
from pipeline.sweep.cells import Cell
from schemas.engine import Sampling
from schemas.job import KINDS, PLACEMENT, JobSettings
from schemas.setting_kinds import HEADINGS, Kind, kinds_of, names_where
from schemas.sweep import OWNED


class Unmarked(BaseModel):
    """A setting with a mark, and one that somebody has forgotten to mark."""

    seed: Annotated[int, Kind("Answer", "sampling")] = 0
    forgotten: int = Field(0, ge=0)


def test_a_setting_without_a_mark_is_named() -> None:
    with pytest.raises(TypeError, match=r"Unmarked\.forgotten must have one Kind in its annotation, it has 0"):
        kinds_of(Unmarked)


def test_a_jobs_own_settings_are_marked_where_every_job_has_them() -> None:
    assert list(KINDS) == list(JobSettings.model_fields)
    assert set(OcrSettings.model_fields) == set(KINDS)
    assert {kind.heading for kind in KINDS.values()} == set(HEADINGS)


def test_what_is_drawn_by_is_what_the_engine_is_told_of_drawing() -> None:
    sampling = names_where(KINDS, lambda kind: kind.decides == "sampling")
    forms = {"json_schema", "regex", "choices", "bad_words"}  # which make one `form`
    told = set(Sampling.__dataclass_fields__) - {"ignore_eos", "row_forms"}  # for benchmarks; of the rows themselves
    assert sampling - forms == told - {"form"}


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        pytest.param(
            PLACEMENT,
            "output batch_size slots preprocess_workers unit_rows max_error_rate fetch_threads gpus gpus_per_model "
            "row_seconds step_seconds dashboard worker_logs wait_for_cluster http_proxy fetch_per_host "
            "fetch_connect_seconds fetch_read_seconds max_fetch_error_rate reuse_answers",
            id="no answer depends on it",
        ),
        pytest.param(
            OWNED,
            "input output limit prompt prompt_column messages_column id_column image_column image_root keep "
            "json_schema_column shard",
            id="follows from the sweep",
        ),
        pytest.param(
            FIXED - {"job", "input_rows", "input_layout", "prompt_ids"},
            "keep id_column reference_column unit_rows parse num_answers logprobs shard",
            id="never changes within a folder",
        ),
        pytest.param(
            set(KINDS) - set(RETRIED),
            "input output allow_root model revision adapter prompt system chat_template image_column id_column "
            "prompt_column messages_column reference_column keep limit image_root dtype engine quantize attention "
            "unit_rows max_fetch_error_rate json_schema regex choices json_schema_column parse "
            "num_answers logprobs image_tokens kv_cache_dtype shard",
            id="never another on a retry",
        ),
    ],
)
def test_the_lists_hold_what_they_should(names: frozenset[str], settings: str) -> None:
    assert names == set(settings.split())


@pytest.mark.parametrize(("name", "value"), [("max_image_aspect", 5), ("row_seconds", 9), ("allow_root", ("a",))])
def test_what_only_rows_are_made_by_needs_no_engine_of_its_own(name: str, value: object) -> None:
    job = JobSettings(input=("a",), output="out")
    cells = [Cell(name=None, asking=None, job=one) for one in (job, job.model_copy(update={name: value}))]
    assert cells[0].engine_key() == cells[1].engine_key()
