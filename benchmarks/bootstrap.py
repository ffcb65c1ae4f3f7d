"""How long the intervals of a sweep take: cells of VQAv2's validation questions, a thousand draws, judged at random.

    python -m benchmarks.bootstrap --cells 2

The last line of stdout is one JSON object; `seconds` are all of it, once the answers are judged, `cpu_s` those of the
processor, which a busy machine does not stretch.
"""

import argparse
import json
import sys
import time

import numpy as np

from pipeline.scoring.summary import mean_score
from pipeline.sweep.bootstrap import Draws, score_cells
from schemas.benchmark import Judged
from schemas.sweep import CellName

_SPLITS = ("number", "other", "yes/no")


def judged_at_random(rows: int, seed: int) -> list[Judged]:
    """Answers that some of ten annotators gave, each in one of three splits, which are the same for every seed."""
    splits = np.random.default_rng(0).integers(0, len(_SPLITS), rows).tolist()
    scores = (np.random.default_rng(seed).integers(0, 11, rows) / 10).tolist()
    return [
        Judged(id=f"{row:08}", score=score, parsed="x", split=_SPLITS[split])
        for row, (score, split) in enumerate(zip(scores, splits, strict=True))
    ]


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=214_354)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=1)
    flags = parser.parse_args()
    names = [CellName(model="m", benchmark="vqav2", prompt=str(i), settings="s") for i in range(flags.cells)]
    judged = {name: judged_at_random(flags.rows, seed) for seed, name in enumerate(names)}
    started, cpu = time.perf_counter(), time.process_time()
    draws = Draws(resamples=flags.draws, seed=0)
    found = score_cells(judged, mean_score("vqa accuracy"), dict.fromkeys(names, names[0]), draws)
    took = {"seconds": round(time.perf_counter() - started, 2), "cpu_s": round(time.process_time() - cpu, 2)}
    headline = found[names[-1]][0].score
    measured = {"rows": flags.rows, "draws": flags.draws, "cells": flags.cells, **took}
    sys.stdout.write(json.dumps({**measured, "low": headline.low, "high": headline.high}) + "\n")


if __name__ == "__main__":
    main()
