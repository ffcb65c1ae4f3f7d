"""Rows of a padded batch: what a card's free memory holds, for any text network."""

import pytest
from transformers import PreTrainedConfig

from benchmarks.random_model import SHAPES, full_config
from pipeline.engine.reference.memory import rows_in_memory
from schemas.engine import EngineSettings

GB = 10**9


def config(shape: str) -> PreTrainedConfig:
    make = SHAPES[shape]
    assert make is not None
    return full_config(make())


@pytest.mark.parametrize(
    ("shape", "free", "changes", "rows"),
    [
        pytest.param("mistral-7b", 60 * GB, {}, 34, id="a card of 80 GB"),
        pytest.param("mistral-7b", 60 * GB, {"dtype": "float32"}, 17, id="twice the bytes"),
        pytest.param("mistral-7b", 60 * GB, {"capacity": 1024}, 136, id="shorter rows"),
        pytest.param("mistral-7b", 60 * GB, {"num_devices": 2}, 68, id="two cards"),
        pytest.param("vicuna-13b", 20 * GB, {}, 3, id="a larger network"),
        pytest.param("34b", GB, {}, 1, id="one at least"),
        pytest.param("mistral-7b", 900 * GB, {}, 256, id="and not without end"),
    ],
)
def test_the_batch_is_what_memory_holds(shape: str, free: int, changes: dict, rows: int) -> None:
    assert rows_in_memory(config(shape), EngineSettings(**changes), free) == rows
