"""Training on the CPU: the loss falls, a saved run goes on, the checkpoint loads."""

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from demo import stream
from demo.checkpoint import Shape
from demo.fonts import Family
from demo.settings import TrainingSettings
from demo.stream import shared_level
from demo.trainer import Trainer, read_state
from tests.demo.conftest import stock_of

SHAPE = Shape(feature_layer=-1)


def settings(out: Path, **changes: object) -> TrainingSettings:
    return TrainingSettings(
        out=out,
        shape=SHAPE,
        device="cpu",
        workers=0,
        tiles_a_batch=20,
        minutes=60,
        most_steps=400,
        peak_rate=1e-2,
        **changes,
    )


def run(trainer: Trainer, family: Family, asked: TrainingSettings, steps: int) -> list[float]:
    batches = stream.batches_of(asked, stock_of(family, SHAPE), shared_level(), trainer.steps)
    losses = []
    for _ in range(steps):
        trainer.step(next(batches))
        losses.append(trainer.report().answers)
    return losses


def test_the_loss_falls_and_a_saved_run_goes_on_where_it_stopped(family: Family, tmp_path: Path) -> None:
    asked = settings(tmp_path)
    trainer = Trainer(asked, None)
    losses = run(trainer, family, asked, 40)
    assert losses[-1] < losses[0] - 0.3  # means of all steps so far: the last steps are lower still
    trainer.save()
    trainer.save()  # over what is there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "state.pt"]
    resumed = Trainer(asked, read_state(tmp_path / "state.pt"))
    assert (resumed.steps, resumed.pictures) == (40, trainer.pictures)
    assert run(resumed, family, asked, 2)[0] < losses[0] - 0.3
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert model.dtype.itemsize == 2


def test_training_may_start_from_a_published_checkpoint(family: Family, tmp_path: Path) -> None:
    first = Trainer(settings(tmp_path / "first"), None)
    run(first, family, settings(tmp_path / "first"), 3)
    first.save()
    asked = settings(tmp_path / "second", start=tmp_path / "first" / "model")
    assert run(Trainer(asked, None), family, asked, 1)[0] > 0


def test_scores_are_shares_by_kind(family: Family, tmp_path: Path) -> None:
    asked = settings(tmp_path)
    batches = stream.batches_of(asked, stock_of(family, SHAPE), shared_level(), 0)
    scores = Trainer(asked, None).score([next(batches) for _ in range(8)])
    assert {"read", "characters", "any text"} <= set(scores)
    assert all(0 <= share <= 1 for share in scores.values())


@pytest.mark.parametrize(("name", "value"), [("minutes", 0.0), ("tiles_a_batch", 4), ("workers", -1)])
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        TrainingSettings(**{"out": tmp_path, name: value})
