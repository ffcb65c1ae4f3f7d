"""Streams of batches: rendered by worker processes for training, a fixed few for measuring."""

import random
from collections.abc import Iterator
from multiprocessing import Value
from typing import Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from demo.checkpoint import anyres_of
from demo.examples import Level, batches
from demo.network import TensorBatch, to_tensors
from demo.render import Stock, held_out_stock, training_stock
from demo.settings import TrainingSettings


class SharedLevel(Protocol):
    """A level that worker processes read and training sets."""

    value: float


class _Pictures(IterableDataset[TensorBatch]):
    """Endless batches; every worker draws its own."""

    def __init__(self, settings: TrainingSettings, stock: Stock, shared: SharedLevel, steps: int) -> None:
        self._settings, self._stock, self._shared, self._steps = settings, stock, shared, steps

    def __iter__(self) -> Iterator[TensorBatch]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        # A run that goes on from another one does not render the same pictures again.
        rng = random.Random(f"{self._settings.seed} {self._settings.start} {self._steps} {worker.id if worker else 0}")
        level = Level(value=self._shared.value)
        for batch in batches(rng, self._stock, self._settings.tiles_a_batch, level):
            yield to_tensors(batch)
            level.value = self._shared.value


def shared_level() -> SharedLevel:
    """A level of 0 that forked processes share."""
    return Value("d", 0.0)


def training_batches(settings: TrainingSettings, shared: SharedLevel, steps: int) -> Iterator[TensorBatch]:
    """Endless batches of the settings' fonts and words; call it before the device is touched, its workers are forked."""
    stock = training_stock(anyres_of(settings.shape), settings.fonts, list(settings.words))
    return batches_of(settings, stock, shared, steps)


def batches_of(settings: TrainingSettings, stock: Stock, shared: SharedLevel, steps: int) -> Iterator[TensorBatch]:
    """Endless batches of a stock, as hard as `shared` says."""
    return iter(
        DataLoader(
            _Pictures(settings, stock, shared, steps),
            batch_size=None,
            num_workers=settings.workers,
            pin_memory=settings.device == "cuda",
            prefetch_factor=2 if settings.workers else None,
        )
    )


def held_out_batches(settings: TrainingSettings) -> list[TensorBatch]:
    """Some 300 pictures that training never sees, always the same."""
    stock = held_out_stock(anyres_of(settings.shape), settings.fonts, list(settings.words))
    stream = batches(random.Random("held out"), stock, min(320, settings.tiles_a_batch), Level(value=1.0))
    return [to_tensors(next(stream)) for _ in range(4)]
