"""Measures the demo model on the held-out pictures, through the pipeline's own preprocessing and engine.

    python -m demo.score
    python -m demo.score --model build/demo/model --show-wrong
    python -m demo.score --quantize 4bit --every 5

Prints a table to stderr and, as the last line of stdout, one JSON object.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from demo.heldout import HELD_OUT, Item, read_items
from pipeline.engine.engine import Engine
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.preprocessor import Preprocessor
from schemas.answer import Answer
from schemas.engine import EngineSettings, Quantize
from schemas.sample import Sample

MODEL = Path(__file__).parent / "model"
DESCRIBED = ("caption", "describe")
MAX_DESCRIPTION, MAX_OTHER = 300, 128  # tokens; the longest of each take 237 and 100
BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Shares of all items of a kind, 0 to 1; `character_error_rate` may exceed 1."""

    exact: dict[str, float]
    character_error_rate: float
    character_error_rate_tiny: float  # letters smaller than is promised
    lines_exact: float
    questions_exact: float  # all kinds but reading
    stopped: float
    items: dict[str, int]
    character_error_rate_without_tiles: float
    seconds: float


def score(model: Path, items: Sequence[Item], quantize: Quantize | None = None) -> tuple[Scores, list[Answer]]:
    """Answer every item, and every reading once more with the high-resolution tiles blanked."""
    started = time.monotonic()
    samples = to_samples(model, items)
    reading = [(i, s) for i, s in zip(items, samples, strict=True) if i.kind == "read"][:30]
    # A batch lasts as long as its longest answer, so answers of like length share one: no reading ahead past a batch.
    settings = EngineSettings(dtype="float32", batch_size=BATCH, look_ahead=BATCH, quantize=quantize)
    engine = Engine.load(str(model), settings=settings)
    order = sorted(range(len(items)), key=lambda i: (items[i].kind, samples[i].prompts[0].num_image_tokens))
    found = dict(zip(order, engine.generate(samples[i] for i in order), strict=True))
    answers = [found[i] for i in range(len(items))]
    blind = list(engine.generate(without_tiles(sample) for _, sample in reading))
    engine.close()
    exact: dict[str, list[bool]] = defaultdict(list)
    for item, answer in zip(items, answers, strict=True):
        exact[item.kind].append(answer.text == item.truth)
    others = [hit for kind, hits in exact.items() if not kind.startswith("read") for hit in hits]
    read, tiny = (
        [(i.truth, a.text or "") for i, a in zip(items, answers, strict=True) if i.kind == kind]
        for kind in ("read", "read tiny")
    )
    scores = Scores(
        exact={kind: _share(hits) for kind, hits in sorted(exact.items())},
        character_error_rate=character_error_rate(read),
        character_error_rate_tiny=character_error_rate(tiny),
        lines_exact=_share([line for truth, said in read for line in _right_lines(truth, said)]),
        questions_exact=_share(others),
        stopped=_share([answer.finish_reason == "stop" for answer in answers]),
        items={kind: len(hits) for kind, hits in sorted(exact.items())},
        character_error_rate_without_tiles=character_error_rate(
            [(item.truth, answer.text or "") for (item, _), answer in zip(reading, blind, strict=True)]
        ),
        seconds=round(time.monotonic() - started, 1),
    )
    return scores, answers


def to_samples(model: Path, items: Sequence[Item]) -> list[Sample]:
    """The items as the pipeline's own preprocessing makes them."""
    described, others = (
        Preprocessor.load(str(model), None, ImageLimits(), most) for most in (MAX_DESCRIPTION, MAX_OTHER)
    )
    samples = []
    for item in items:
        preprocessor = described if item.kind in DESCRIBED else others
        images = preprocessor.load_images([item.image])
        samples.append(
            Sample(
                id=item.id,
                prompts=(preprocessor.build_prompt(item.kind, item.prompt, images),),
                image_sizes=images.image_sizes,
                tiles_per_image=images.tiles_per_image,
                tiles=images.tiles,
                image_sha256=images.image_sha256,
            )
        )
    return samples


def without_tiles(sample: Sample) -> Sample:
    """The sample with all but the base tile black."""
    blank = np.zeros_like(sample.tiles)
    blank[0] = sample.tiles[0]
    return replace(sample, tiles=blank)


def character_error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Edits over all pairs of truth and answer, a character of truth."""
    edits = sum(edit_distance(truth, said) for truth, said in pairs)
    return round(edits / max(1, sum(len(truth) for truth, _ in pairs)), 4)


def edit_distance(one: str, other: str) -> int:
    """The fewest characters to insert, delete or replace."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def _right_lines(truth: str, said: str) -> list[bool]:
    lines = said.split("\n")
    return [i < len(lines) and lines[i] == line for i, line in enumerate(truth.split("\n"))]


def _share(hits: Sequence[bool]) -> float:
    return round(sum(hits) / len(hits), 4) if hits else 0.0


def main() -> None:
    """Score a model, print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--held-out", type=Path, default=HELD_OUT)
    parser.add_argument("--limit", type=int, help="the first N items only")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth of them")
    parser.add_argument("--quantize", choices=get_args(Quantize))
    parser.add_argument("--show-wrong", action="store_true")
    flags = parser.parse_args()
    items = read_items(flags.held_out)[: flags.limit : flags.every]
    scores, answers = score(flags.model, items, flags.quantize)
    for item, answer in zip(items, answers, strict=True):
        if flags.show_wrong and answer.text != item.truth:
            sys.stderr.write(f"{item.id} {item.prompt}  true {item.truth!r}  answered {answer.text!r}\n")
    for kind, share in scores.exact.items():
        sys.stderr.write(f"{kind:10} {scores.items[kind]:4} items  {share:7.1%} exact\n")
    sys.stdout.write(json.dumps(asdict(scores)) + "\n")


if __name__ == "__main__":
    main()
