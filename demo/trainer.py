"""Trainer: a model, its optimiser and how far they are; it learns from batches, measures itself, saves and restores."""

import copy
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration

from demo.checkpoint import build_model, build_processor, byte_tokenizer
from demo.examples import IGNORED
from demo.network import TensorBatch, Trainee, losses, text_layer, vision_layer
from demo.settings import TrainingSettings

WARM_UP = 300  # steps
LEAST_LETTERS_WEIGHT = 0.05  # of the loss on letters beside the answers
LAST_LOSSES = 100  # steps that a reported loss is the mean of


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How training goes; losses are means of the last steps."""

    steps: int
    pictures: int
    progress: float
    answers: float
    letters: float


class Trainer:
    """One training run on one device."""

    def __init__(self, settings: TrainingSettings, state: dict[str, Any] | None) -> None:
        self._settings = settings
        self._device = torch.device(settings.device)
        tokenizer = byte_tokenizer()
        self._processor = build_processor(settings.shape, tokenizer)
        images: Any = self._processor.image_processor
        model = _first_model(settings, len(tokenizer))
        self._trainee = Trainee(model, images.image_mean, images.image_std).to(self._device)
        self._optimizer = _optimizer(self._trainee, settings)
        self.steps, self.pictures, self._elapsed_before = 0, 0, 0.0
        if state:
            self._restore(state)
        if self._device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            self._trainee.vision_layer = torch.compile(vision_layer, dynamic=False)
            self._trainee.text_layer = torch.compile(text_layer, dynamic=False)
        self._recent: list[Tensor] = []
        self._started = time.monotonic()

    def progress(self) -> float:
        """The share of the plan that is done, 0 to 1."""
        by_time = self._elapsed() / (60 * self._settings.minutes)
        by_steps = self.steps / self._settings.most_steps if self._settings.most_steps else 0.0
        return min(1.0, max(by_time, by_steps))

    def is_over(self) -> bool:
        """Whether the plan, or this process's part of it, is done."""
        part = self._settings.stop_after
        return self.progress() >= 1 or (part is not None and time.monotonic() - self._started > 60 * part)

    def step(self, batch: TensorBatch) -> None:
        """Learn from one batch."""
        progress = self.progress()
        warm = min(1.0, (self.steps + 1) / WARM_UP)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.peak_rate * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
        batch = batch.moved(self._to_device)
        with self._precision():
            logits, letters = self._trainee(batch)
        answers, probed = losses(logits, letters, batch)
        self._optimizer.zero_grad(set_to_none=True)
        (answers + self._letters_weight(progress) * probed).backward()
        torch.nn.utils.clip_grad_norm_(self._trainee.parameters(), 1.0)
        self._optimizer.step()
        self._recent = [*self._recent[1 - LAST_LOSSES :], torch.stack([answers.detach(), probed.detach()])]
        self.steps += 1
        self.pictures += len(batch.sources)

    def report(self) -> Report:
        """How it goes; waits for the device."""
        answers, letters = torch.stack(self._recent).mean(0).tolist()
        return Report(
            steps=self.steps, pictures=self.pictures, progress=self.progress(), answers=answers, letters=letters
        )

    @torch.no_grad()
    def score(self, held_out: Sequence[TensorBatch]) -> dict[str, float]:
        """Shares of answers all of whose tokens are right, each predicted from the true ones before it, by kind."""
        right: dict[str, list[float]] = defaultdict(list)
        for batch in held_out:
            with self._precision():
                logits, _ = self._trainee(batch.moved(self._to_device))
            for kind, hits in _hits_by_question(logits.argmax(-1).cpu(), batch):
                right[kind].append(float(hits.all()))
                if kind == "read":
                    right["characters"].append(float(hits.float().mean()))
        return {kind: round(sum(found) / len(found), 4) for kind, found in sorted(right.items())}

    def save(self) -> None:
        """Write the state to go on from, and the checkpoint in bfloat16."""
        out = self._settings.out
        out.mkdir(parents=True, exist_ok=True)
        state = {
            "trainee": self._trainee.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "steps": self.steps,
            "pictures": self.pictures,
            "elapsed": self._elapsed(),
        }
        torch.save(state, out / "state.pt.part")
        (out / "state.pt.part").replace(out / "state.pt")
        self._publish(out / "model")

    def _publish(self, folder: Path) -> None:
        """Write the checkpoint; every file is whole at any moment, whenever the process is killed."""
        part = folder.with_name(f"{folder.name}.part")
        self._processor.save_pretrained(part)
        published: Any = copy.deepcopy(self._trainee.model)
        published.to(torch.bfloat16).save_pretrained(part)
        folder.mkdir(exist_ok=True)
        for file in part.iterdir():
            file.replace(folder / file.name)
        part.rmdir()

    def _letters_weight(self, progress: float) -> float:
        """Letters matter most until answers find their way to the patches; a published checkpoint's already have."""
        return LEAST_LETTERS_WEIGHT if self._settings.start else max(LEAST_LETTERS_WEIGHT, 0.5 * (1 - 2 * progress))

    def _elapsed(self) -> float:
        return self._elapsed_before + time.monotonic() - self._started

    def _restore(self, state: dict[str, Any]) -> None:
        self._trainee.load_state_dict(state["trainee"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.steps, self.pictures, self._elapsed_before = state["steps"], state["pictures"], state["elapsed"]

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.bfloat16) if self._device.type == "cuda" else nullcontext()


def read_state(path: Path) -> dict[str, Any]:
    """A saved state, on the CPU."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _first_model(settings: TrainingSettings, vocabulary: int) -> LlavaNextForConditionalGeneration:
    if settings.start is None:
        return build_model(settings.shape, vocabulary, settings.seed)
    model: LlavaNextForConditionalGeneration = LlavaNextForConditionalGeneration.from_pretrained(
        settings.start, dtype=torch.float32
    )
    model.train()
    return model


def _optimizer(trainee: Trainee, settings: TrainingSettings) -> torch.optim.AdamW:
    matrices = [p for p in trainee.parameters() if p.ndim > 1]
    others = [p for p in trainee.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(0.9, 0.98), fused=settings.device == "cuda")


def _hits_by_question(predicted: Tensor, batch: TensorBatch) -> Iterator[tuple[str, Tensor]]:
    """Every question's kind, and which tokens of its answer are right."""
    for row, kinds in enumerate(batch.kinds):
        for number, kind in enumerate(kinds, 1):
            answer = (batch.segments[row] == number) & (batch.labels[row] != IGNORED)
            yield kind, predicted[row][answer] == batch.labels[row][answer]
