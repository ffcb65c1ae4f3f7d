"""Trains the demo model from nothing: pictures are rendered while it runs, on every core; one GPU learns from them.

    python -m demo.train --minutes 20 --out build/demo
    python -m demo.train --minutes 20 --out build/demo --resume build/demo/state.pt
    python -m demo.train --minutes 6 --out build/demo --start demo/model --peak-rate 6e-4

Needs the fonts of demo/fonts.py below --fonts and SCOWL's word lists (Debian: scowl). Writes `state.pt`, from which it
goes on, and `model/`, the published checkpoint in bfloat16. The last line of stdout is one JSON object.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from demo.settings import TrainingSettings
from demo.stream import held_out_batches, shared_level, training_batches
from demo.trainer import Trainer, read_state

HARDEST_AT = 0.3  # share of the plan after which pictures are as hard as they get
REPORT_EVERY_S = 20.0
SCORE_EVERY_S = 100.0


def train(settings: TrainingSettings) -> dict[str, float]:
    """Run the plan; the scores at its end, the mean loss of the last steps, and how much was learned from."""
    torch.manual_seed(settings.seed)
    state = read_state(settings.resume) if settings.resume else None
    level = shared_level()
    level.value = 1.0 if settings.start else 0.0
    stream = training_batches(settings, level, state["steps"] if state else 0)
    batch = next(stream)  # starts the workers
    trainer = Trainer(settings, state)
    held_out = held_out_batches(settings)
    reported = scored = time.monotonic()
    while not trainer.is_over():
        if not settings.start:
            level.value = min(1.0, trainer.progress() / HARDEST_AT)
        trainer.step(batch)
        batch = next(stream)
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            _say(f"level {level.value:.2f}  {trainer.report()}")
        if time.monotonic() - scored > SCORE_EVERY_S:
            scored = time.monotonic()
            _say(json.dumps(trainer.score(held_out)))
            trainer.save()
    scores = trainer.score(held_out)
    trainer.save()
    last = trainer.report()
    return {**scores, "loss": last.answers, "pictures": last.pictures, "steps": last.steps}


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main(argv: list[str] | None = None) -> None:
    """Read the flags, train, print the scores as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="the whole plan, resumed runs included")
    parser.add_argument("--stop-after", type=float, help="minutes after which this run saves and ends")
    parser.add_argument("--resume", type=Path, help="a state.pt to go on from")
    parser.add_argument("--start", type=Path, help="a checkpoint to start from; all pictures are hard from then on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fonts", type=Path, help="a folder, searched with all below it")
    parser.add_argument("--words", type=Path, nargs="+", help="word lists, one word a line")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--tiles", type=int, default=600, dest="tiles_a_batch", help="tiles a batch")
    parser.add_argument("--peak-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    chosen = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    if "words" in chosen:
        chosen["words"] = tuple(chosen["words"])
    sys.stdout.write(json.dumps(train(TrainingSettings(**chosen))) + "\n")


if __name__ == "__main__":
    main()
