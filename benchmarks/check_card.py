"""What a machine with a card says, without Ray and its command line: doctor, what plan forecasts beside what the engine
takes, check-model, and both engines beside each other, on the demo model and on a random checkpoint of mistral-7b's
shape, cut to some layers.

PYTHONPATH=. python -m benchmarks.check_card --layers 8 --folder /tmp/checkpoint
PYTHONPATH=. python -m benchmarks.check_card --parts doctor plan --images 1024

Each part stands by itself: one that fails says why, and the next goes on; the exit status is 1 then.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.random_model import build_random, write_model, write_weights
from benchmarks.workload import TEXTS, Item, make_items
from demo.checkpoint import byte_tokenizer
from pipeline.check_model import check_model
from pipeline.check_questions import check_samples
from pipeline.doctor import NO_INPUT, NO_OUTPUT, examine
from pipeline.forecast import Wanted, forecast
from pipeline.plan import plan_job, resolve_model
from pipeline.rates import CARDS, JOB_SHARE, START_S, GpuType, Work
from pipeline.stages.engine_settings import load_engine
from pipeline.stages.preprocess import Preprocess
from schemas.engine import EngineSettings
from schemas.job import JobSettings

_PARTS = ("doctor", "plan", "check", "engines")
_PRECISIONS = ("float32", "bfloat16")
_OFF = 0.2  # by which a forecast may be
_WORKS: tuple[Work, ...] = ("caption", "ocr")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--layers", type=int, default=8, help="of the random checkpoint; 0: the demo model alone")
    parser.add_argument("--folder", type=Path, default=Path("random-checkpoint"), help="for the random checkpoint")
    parser.add_argument("--images", type=int, default=1024, help="of each of plan's runs; 0: plan is left out")
    parser.add_argument("--shape", default="mistral-7b", help="that plan's runs have; tiny for a try without a card")
    given = parser.parse_args(arguments)
    parts: list[tuple[str, Callable[[], None]]] = [("doctor", doctor)]
    if given.images:
        parts.append(("plan", partial(plan_held, given.shape, given.images)))
    parts += _of_model("demo")
    if given.layers:
        parts += [("checkpoint", partial(save, given.folder, given.layers)), *_of_model(str(given.folder))]
    kinds = {*given.parts, *(["checkpoint"] if {"check", "engines"} & {*given.parts} else [])}
    return max([run(name, part) for name, part in parts if name.split(" ")[0] in kinds])


def _of_model(model: str) -> list[tuple[str, Callable[[], None]]]:
    beside = [(f"engines {model} {dtype}", partial(engines_beside, model, dtype)) for dtype in _PRECISIONS]
    return [(f"check {model}", partial(check, model)), *beside]


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


def plan_held(shape: str, images: int) -> None:
    """Forecast two kinds of work on this card, and run our engine over it; raise where a forecast is too far off.

    A job starts for `START_S` and reaches `JOB_SHARE` of the bare engine's rate: without Ray both are taken out.
    """
    card = card_here()
    took = _seconds_of_engine(shape, images)
    off = {}
    for work in _WORKS:
        items = make_items(work, images, 0.1 if shape == "tiny" else 1.0)
        with tempfile.TemporaryDirectory() as folder:
            settings = _planned(shape, work, items, Path(folder))
            tokens = round(float(np.mean([item.num_new_tokens for item in items])))
            wanted = Wanted(gpu_type=card or "h100", answer_tokens=tokens, price_per_gpu_hour=1.0)
            found = forecast(plan_job("caption", settings, "?"), work, wanted, say)
        low, mid, high = (3600 * at - START_S for at in (found.hours.low, found.hours.mid, found.hours.high))
        off[work] = JOB_SHARE * mid / took[work] - 1
        say(f"   {images} rows of {work} on {card}: {JOB_SHARE * mid:.1f} s ({JOB_SHARE * low:.1f} to")
        say(f"   {JOB_SHARE * high:.1f}) forecast, {took[work]:.1f} s taken, {off[work]:+.1%} off; {found.problems}")
    assert card is None or all(abs(share) < _OFF for share in off.values()), off


def card_here() -> GpuType | None:
    """Return the type of this machine's card; None without one, or for one that plan does not know."""
    name = torch.cuda.get_device_name().lower() if torch.cuda.is_available() else ""
    return next((card for card in CARDS if card in name), None)


def _seconds_of_engine(shape: str, images: int) -> dict[str, float]:
    """Return the seconds that one round over each workload takes, in a process of its own."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    command = [sys.executable, "-m", "benchmarks.engine", "--shape", shape, "--images", str(images), "--rounds", "1"]
    done = subprocess.run([*command, "--device", device, "--workload", *_WORKS], stdout=subprocess.PIPE, check=True)
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    return {one["workload"]: images / one["images_per_s"] for one in results}


def _planned(shape: str, work: Work, items: list[Item], folder: Path) -> JobSettings:
    """Write the workload as a table, and a checkpoint whose weights are a hole in a file; return a job over them."""
    model = folder / shape
    model.mkdir()
    write_weights(write_model(shape, model))
    table = pa.table({"id": [item.id for item in items], "image": [item.image for item in items]})
    pq.write_table(table, folder / "in.parquet", row_group_size=100)
    told = {"input": (str(folder / "in.parquet"),), "output": str(folder / "out"), "model": str(model)}
    return JobSettings.model_validate(
        {**told, "prompt": TEXTS[work], "chat_template": "mistral", "max_new_tokens": 1024}
    )


def save(folder: Path, layers: int) -> None:
    """Write a checkpoint of mistral-7b's shape, with as many layers of text and random weights.

    It can say what its tokenizer has and no more, where random weights would choose ids that are no token: our engine
    never does, transformers does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = write_model("mistral-7b", folder)
    text = model.config.get_text_config()
    text.num_hidden_layers, text.vocab_size = layers, len(byte_tokenizer())
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
