"""Tiny random checkpoints for tests: built once a process, on first use, and deleted at its end."""

import atexit
import functools
import tempfile
from pathlib import Path

from demo.checkpoint import Backbone, Shape, build_checkpoint


@functools.cache
def checkpoint(backbone: Backbone = "llama") -> Path:
    """The folder of a checkpoint with this text backbone; its answers depend on picture, question and position."""
    return build(Shape(backbone=backbone))


def build(shape: Shape, seed: int = 0) -> Path:
    """A new folder with a checkpoint of `shape`."""
    folder = new_folder(shape.backbone)
    build_checkpoint(folder, shape, seed)
    return folder


def new_folder(name: str) -> Path:
    """An empty folder that goes when the process ends."""
    folder = _root() / f"{len(list(_root().iterdir()))}-{name}"
    folder.mkdir()
    return folder


@functools.cache
def _root() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="tiny-llava-")
    atexit.register(folder.cleanup)
    return Path(folder.name)
