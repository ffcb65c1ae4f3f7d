"""Which question asks a checkpoint for the text in a picture."""

import json
from pathlib import Path

import pytest

from pipeline.preprocess.reading import DEMO, OTHER, SYNTHDOG, reading_prompt
from tests.published import PUBLISHED
from tests.tiny import checkpoint


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda one: one.name)
def test_a_published_checkpoint_is_asked_as_it_was_trained(published, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published.config(shrunk=False)))
    assert reading_prompt(str(tmp_path), None) == SYNTHDOG


def test_the_demo_and_models_of_other_shapes_are_asked_in_other_words() -> None:
    assert reading_prompt("demo", None) == DEMO
    assert reading_prompt(str(checkpoint()), None) == OTHER
