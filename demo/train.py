"""Trains the demo model from nothing: pictures are rendered while it runs, on every core; one GPU learns from them.

    python -m demo.train --minutes 20 --out build/demo
    python -m demo.train --minutes 20 --out build/demo --resume build/demo/state.pt

Needs the fonts of demo/fonts.py below --fonts and SCOWL's word lists (Debian: scowl). Writes `state.pt`, from which it
goes on, and `model/`, the published checkpoint in bfloat16.
"""

import argparse
import copy
import json
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from multiprocessing import Value
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import LlavaNextForConditionalGeneration

from demo.checkpoint import Shape, build_model, build_processor, byte_tokenizer
from demo.examples import IGNORED, Level, batches
from demo.network import TensorBatch, Trainee, losses, text_layer, to_tensors, vision_layer
from demo.render import Stock, held_out_stock, training_stock
from demo.settings import TrainingSettings
from pipeline.preprocess.geometry import Anyres
from schemas.sample import Size

WARM_UP = 300  # steps
HARDEST_AT = 0.3  # share of the plan after which pictures are as hard as they get
REPORT_EVERY_S = 20.0
SCORE_EVERY_S = 100.0


def train(settings: TrainingSettings) -> dict[str, float]:
    """Run the plan; the last scores and the mean loss of the last steps."""
    torch.manual_seed(settings.seed)
    level = Value("d", 0.0)
    stream = iter(_loader(settings, level))  # before the device is touched: workers are forked
    run = _Run(settings)
    held_out = _held_out_batches(settings)
    scores: dict[str, float] = {}
    reported = scored = time.monotonic()
    while not run.is_over():
        level.value = min(1.0, run.progress() / HARDEST_AT)
        asked = time.monotonic()
        batch = next(stream)
        run.waited += time.monotonic() - asked
        run.step(batch)
        if time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            _say(run.report(level.value))
        if time.monotonic() - scored > SCORE_EVERY_S:
            scored = time.monotonic()
            _say(json.dumps(run.score(held_out)))
            run.save()
    scores = run.score(held_out)
    run.save()
    return {**scores, "loss": run.mean_loss(), "pictures": run.pictures, "steps": run.steps}


class _Run:
    """The model, its optimiser, and how far they are."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        self.steps, self.pictures, self.elapsed_before = 0, 0, 0.0
        self.device = torch.device(settings.device)
        shape = settings.shape
        tokenizer = byte_tokenizer()
        self.processor = build_processor(shape, tokenizer)
        images: Any = self.processor.image_processor
        model = build_model(shape, len(tokenizer), settings.seed)
        self.trainee = Trainee(model, images.image_mean, images.image_std).to(self.device)
        self.optimizer = _optimizer(self.trainee, settings)
        if settings.resume:
            self._restore(settings.resume)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch._dynamo.config.recompile_limit = 64
            self.trainee.vision_layer = torch.compile(vision_layer, dynamic=False)
            self.trainee.text_layer = torch.compile(text_layer, dynamic=False)
        self.recent: list[Tensor] = []
        self.waited = 0.0  # seconds, for pictures
        self.started = time.monotonic()

    def progress(self) -> float:
        """The share of the plan that is done, 0 to 1."""
        by_time = (self.elapsed_before + time.monotonic() - self.started) / (60 * self.settings.minutes)
        by_steps = self.steps / self.settings.most_steps if self.settings.most_steps else 0.0
        return min(1.0, max(by_time, by_steps))

    def is_over(self) -> bool:
        """Whether the plan, or this process's part of it, is done."""
        part = self.settings.stop_after
        return self.progress() >= 1 or (part is not None and time.monotonic() - self.started > 60 * part)

    def step(self, batch: TensorBatch) -> None:
        """Learn from one batch."""
        progress = self.progress()
        rate = self.settings.peak_rate * min(1.0, (self.steps + 1) / WARM_UP) * (0.02 + 0.98 * _cosine(progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = batch.moved(self._to_device)
        with self._autocast():
            logits, letters = self.trainee(batch)
        answer, probed = losses(logits, letters, batch)
        self.optimizer.zero_grad(set_to_none=True)
        (answer + max(0.05, 0.5 * (1 - 2 * progress)) * probed).backward()
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        self.optimizer.step()
        self.recent = [*self.recent[-99:], torch.stack([answer.detach(), probed.detach()])]
        self.steps += 1
        self.pictures += len(batch.sources)

    def mean_loss(self) -> float:
        """Of the answers, over the last steps."""
        return float(torch.stack(self.recent).mean(0)[0])

    def report(self, level: float) -> str:
        """One line on how it goes."""
        seconds = time.monotonic() - self.started
        answer, probed = torch.stack(self.recent).mean(0).tolist()
        return (
            f"{seconds:6.0f} s  step {self.steps}  {self.pictures} pictures  plan {self.progress():.1%}  "
            f"level {level:.2f}  answers {answer:.4f}  letters {probed:.4f}  waited {self.waited:.0f} s"
        )

    @torch.no_grad()
    def score(self, held_out: list[TensorBatch]) -> dict[str, float]:
        """Shares of right answers by kind, when each token is predicted from the true ones before it."""
        right: dict[str, list[float]] = defaultdict(list)
        for batch in held_out:
            with self._autocast():
                logits, _ = self.trainee(batch.moved(self._to_device))
            labels = batch.labels
            hits = (logits.argmax(-1).cpu() == labels) | (labels == IGNORED)
            for row, kinds in enumerate(batch.kinds):
                for number, kind in enumerate(kinds, 1):
                    mine = (batch.segments[row] == number) & (labels[row] != IGNORED)
                    right[kind].append(float(hits[row][mine].all()))
                    if kind == "read":
                        right["characters"].append(float(hits[row][mine].float().mean()))
        return {kind: round(sum(found) / len(found), 4) for kind, found in sorted(right.items())}

    def save(self) -> None:
        """Write the state to go on from, and the checkpoint in bfloat16."""
        out = self.settings.out
        out.mkdir(parents=True, exist_ok=True)
        state = {
            "trainee": self.trainee.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "pictures": self.pictures,
            "elapsed": self.elapsed_before + time.monotonic() - self.started,
        }
        torch.save(state, out / "state.pt.part")
        (out / "state.pt.part").replace(out / "state.pt")
        self.processor.save_pretrained(out / "model")
        published: LlavaNextForConditionalGeneration = copy.deepcopy(self.trainee.model).to(torch.bfloat16)
        published.save_pretrained(out / "model")

    def _restore(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.trainee.load_state_dict(state["trainee"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.pictures, self.elapsed_before = state["steps"], state["pictures"], state["elapsed"]

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _autocast(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()


class _Stream(IterableDataset[TensorBatch]):
    """Endless batches; every worker draws its own."""

    def __init__(self, settings: TrainingSettings, stock: Stock, level: Any) -> None:
        self._settings, self._stock, self._shared = settings, stock, level

    def __iter__(self) -> Iterator[TensorBatch]:
        torch.set_num_threads(1)
        info = get_worker_info()
        seed = f"{self._settings.seed} {self._settings.resume} {info.id if info else 0}"
        level = Level(value=self._shared.value)
        for batch in batches(random.Random(seed), self._stock, self._settings.tiles_a_batch, level):
            yield to_tensors(batch)
            level.value = self._shared.value


def _loader(settings: TrainingSettings, level: Any) -> DataLoader[TensorBatch]:
    stock = training_stock(anyres_of(settings.shape), settings.fonts, list(settings.words))
    return DataLoader(
        _Stream(settings, stock, level),
        batch_size=None,
        num_workers=settings.workers,
        pin_memory=settings.device == "cuda",
        prefetch_factor=2 if settings.workers else None,
    )


def _held_out_batches(settings: TrainingSettings) -> list[TensorBatch]:
    """Some 400 pictures that training never sees, always the same."""
    stock = held_out_stock(anyres_of(settings.shape), settings.fonts, list(settings.words))
    stream = batches(random.Random("held out"), stock, min(320, settings.tiles_a_batch), Level(value=1.0))
    return [to_tensors(next(stream)) for _ in range(4)]


def anyres_of(shape: Shape) -> Anyres:
    """The geometry of a shape."""
    return Anyres(tile=shape.tile, patch=shape.patch, grids=tuple(Size(w, h) for h, w in shape.grids()))


def _optimizer(trainee: Trainee, settings: TrainingSettings) -> torch.optim.AdamW:
    matrices = [p for p in trainee.parameters() if p.ndim > 1]
    others = [p for p in trainee.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(0.9, 0.98), fused=settings.device == "cuda")


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main(argv: list[str] | None = None) -> None:
    """Read the flags, train, print the scores as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="the whole plan, resumed runs included")
    parser.add_argument("--stop-after", type=float, help="minutes after which this run saves and ends")
    parser.add_argument("--resume", type=Path, help="a state.pt to go on from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fonts", type=Path, help="a folder, searched with all below it")
    parser.add_argument("--words", type=Path, nargs="+")
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
