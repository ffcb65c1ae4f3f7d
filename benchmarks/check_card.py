"""What a machine with a card says, without Ray and its command line: doctor, check-model, and both engines beside each
other, on the demo model and on a random checkpoint of mistral-7b's shape, cut to some layers.

PYTHONPATH=. python -m benchmarks.check_card --layers 8 --folder /tmp/checkpoint

Each part stands by itself: one that fails says why, and the next goes on; the exit status is 1 then.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.random_model import build_random, write_model
from pipeline.check_model import check_model
from pipeline.check_questions import check_samples
from pipeline.doctor import NO_INPUT, NO_OUTPUT, examine
from pipeline.plan import resolve_model
from pipeline.stages.engine_settings import load_engine
from pipeline.stages.preprocess import Preprocess
from schemas.engine import EngineSettings
from schemas.job import JobSettings

_PRECISIONS = ("float32", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--layers", type=int, default=8, help="of the random checkpoint; 0: the demo model alone")
    parser.add_argument("--folder", type=Path, default=Path("random-checkpoint"), help="for the random checkpoint")
    given = parser.parse_args(arguments)
    parts: list[tuple[str, Callable[[], None]]] = [("doctor", doctor), *_of_model("demo")]
    if given.layers:
        parts += [("random checkpoint", partial(save, given.folder, given.layers)), *_of_model(str(given.folder))]
    return max([run(name, part) for name, part in parts])


def _of_model(model: str) -> list[tuple[str, Callable[[], None]]]:
    engines = [(f"engines, {model}, {dtype}", partial(engines_beside, model, dtype)) for dtype in _PRECISIONS]
    return [(f"check-model {model}", partial(check, model)), *engines]


def run(name: str, part: Callable[[], None]) -> int:
    """Run one part, and say how long it took; return 1 where it failed."""
    say(f"== {name}")
    began = time.monotonic()
    try:
        part()
    except (RuntimeError, ValueError, ImportError, OSError, AssertionError):
        traceback.print_exc()
        return 1
    finally:
        say(f"   {time.monotonic() - began:.0f} s")
    return 0


def settings_of(model: str, **more: object) -> JobSettings:
    """Return the settings of a job that is asked the bundled questions."""
    base = {"input": ("bundled",), "output": "nothing", "model": model, "max_new_tokens": 48}
    return JobSettings.model_validate({**base, **more})


def doctor() -> None:
    """Say what this machine lacks."""
    for one in examine(JobSettings(input=(NO_INPUT,), output=NO_OUTPUT)):
        say(f"   {one.state:4} {one.name}: {one.found} {one.mend or ''}")


def save(folder: Path, layers: int) -> None:
    """Write a checkpoint of mistral-7b's shape, with as many layers of text and random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    model = write_model("mistral-7b", folder)
    model.config.get_text_config().num_hidden_layers = layers
    device = "cuda" if torch.cuda.is_available() else "cpu"
    build_random(model.config, EngineSettings(dtype="bfloat16", device=device)).save_pretrained(folder)


def check(model: str) -> None:
    """Compare our engine with transformers; raise where answers in float32 differ."""
    settings, _ = resolve_model(settings_of(model))
    for one in check_model(settings, on_gpu=torch.cuda.is_available()):
        say(f"   {one.precision} on {one.device}: {one.num_equal} of {len(one.comparisons)} answers equal")
        say(f"   ours {one.ours}\n   transformers {one.theirs}")
        for question in one.comparisons:
            if question.failure or question.first_difference is not None:
                say(f"   {question.question}: token {question.first_difference}, {question.margin}, {question.failure}")
        assert one.precision != "float32" or one.num_equal == len(one.comparisons)


def engines_beside(model: str, dtype: str) -> None:
    """Ask both engines, together and row by row; raise where --engine transformers differs in float32."""
    answers: dict[str, list[str | None]] = {}
    for name in ("own", "transformers"):
        settings = settings_of(model, engine=name, dtype=dtype, batch_size=8)
        samples, engine = check_samples(Preprocess(settings)), load_engine(settings)
        began = time.monotonic()
        answers[name] = [answer.text for answer in engine.generate(samples)]
        took = time.monotonic() - began
        alone = [answer.text for sample in samples for answer in engine.generate([sample])]
        same = sum(one == other for one, other in zip(answers[name], alone, strict=True))
        say(f"   {name}: {took:.1f} s in batches; {same} of {len(alone)} answers as alone")
        assert dtype != "float32" or same == len(alone)
        engine.close()
        del engine
        torch.cuda.empty_cache()
    same = sum(one == other for one, other in zip(*answers.values(), strict=True))
    say(f"   {same} of {len(answers['own'])} answers are the same in both")
    assert dtype != "float32" or same == len(answers["own"])


def say(line: str) -> None:
    """Print at once, as a run may be cut off."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
