"""Training examples: pictures through the real preprocessing, packed into batches of one shape for each tile count.

A row shows the model one picture and several questions. They share the picture's prefix and cannot see one another:
`<s><user><image>...\\n` then, each from the same position on, `question<assistant>answer</s>`.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from demo.checkpoint import ASSISTANT, BOS, EOS, NUM_SPECIAL, PAD, USER
from demo.draw import Letter
from demo.questions import Content, Question, ask
from demo.render import Picture, Stock, render
from pipeline.preprocess.geometry import Anyres, num_image_tokens, scaled_size, select_grid
from pipeline.preprocess.image import tile_image
from schemas.sample import Size, Tiles

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
IGNORED = -100
QUESTION_TOKENS = 288  # a row's room for questions and answers; the longest caption takes 275
PROBES = 64  # patches a row whose letters are asked for beside the answers
LETTERS_A_PATCH = 2
SHAPE_KINDS = ("colour", "yes/no", "place")  # questions about one shape among several


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row. `sources` say what each prefix position shows: a token's id, or -1 the newline, or -2-k feature k."""

    tiles: Tiles
    sources: Ints  # (prefix tokens,)
    tokens: Ints  # (QUESTION_TOKENS,) of all questions and answers
    segments: Ints  # which question a token belongs to, from 1; 0 is padding
    positions: Ints
    labels: Ints  # the next token where that is an answer's
    weights: Floats  # of each label's loss
    probes: Ints  # (PROBES,) features
    letters: Ints  # (PROBES, LETTERS_A_PATCH) what stands there, 0 for nothing
    kinds: tuple[str, ...]  # of the questions


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of one tile count; arrays as in `Example`, one row each, the prefix padded to one length."""

    tiles: Tiles  # (rows * tiles, tile, tile, 3)
    sources: Ints  # (rows, prefix)
    prefix_lengths: Ints  # (rows,)
    tokens: Ints
    segments: Ints
    positions: Ints
    labels: Ints
    weights: Floats
    probes: Ints
    letters: Ints
    kinds: tuple[tuple[str, ...], ...]


def byte_ids(text: str) -> list[int]:
    """The demo tokenizer's ids of a text: one a byte, in the order of its sorted alphabet."""
    return [_BYTE_TO_ID[byte] for byte in text.encode()]


def make_example(picture: Picture, questions: Sequence[Question], anyres: Anyres) -> Example:
    """One row of a picture and as many of the questions, in their order, as there is room for."""
    size = Size(*picture.image.size)
    features = feature_order(size, anyres)
    sources = np.concatenate([[BOS, USER], features, byte_ids("\n")])
    fitting = _fitting(questions)
    packed = _pack(fitting, len(sources))
    probes, letters = _probe(picture.letters, size, anyres, features)
    return Example(
        tiles=tile_image(picture.image, anyres),
        sources=sources,
        tokens=packed.tokens,
        segments=packed.segments,
        positions=packed.positions,
        labels=packed.labels,
        weights=packed.weights,
        probes=probes,
        letters=letters,
        kinds=tuple(question.kind for question in fitting),
    )


def feature_order(size: Size, anyres: Anyres) -> Ints:
    """The image tokens of a picture as sources: base patches, then rows of unpadded patches, a newline after each."""
    side = anyres.patches_per_side
    grid = select_grid(size, anyres)
    columns, rows = grid.width // anyres.tile, grid.height // anyres.tile
    # (rows, side, columns, side): tile by tile to line by line
    by_tile = np.arange(rows * columns * side * side).reshape(rows, columns, side, side)
    fine = by_tile.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)
    if size.width / size.height > columns / rows:
        kept = int(round(size.height * (columns * side / size.width), 7))
        cut = (rows * side - kept) // 2
        fine = fine[cut : rows * side - cut]
    else:
        kept = int(round(size.width * (rows * side / size.height), 7))
        cut = (columns * side - kept) // 2
        fine = fine[:, cut : columns * side - cut]
    lines = np.concatenate([-2 - side * side - fine, np.full((len(fine), 1), -1)], axis=1)
    order = np.concatenate([-2 - np.arange(side * side), lines.reshape(-1)])
    assert len(order) == num_image_tokens(size, anyres)
    return order


def make_batch(examples: Sequence[Example], prefix: int) -> Batch:
    """Stack examples; `prefix` is the padded length of what stands before the questions."""
    sources = np.full((len(examples), prefix), PAD)
    for row, example in zip(sources, examples, strict=True):
        row[: len(example.sources)] = example.sources
    return Batch(
        tiles=np.concatenate([e.tiles for e in examples]),
        sources=sources,
        prefix_lengths=np.array([len(e.sources) for e in examples]),
        tokens=np.stack([e.tokens for e in examples]),
        segments=np.stack([e.segments for e in examples]),
        positions=np.stack([e.positions for e in examples]),
        labels=np.stack([e.labels for e in examples]),
        weights=np.stack([e.weights for e in examples]),
        probes=np.stack([e.probes for e in examples]),
        letters=np.stack([e.letters for e in examples]),
        kinds=tuple(e.kinds for e in examples),
    )


def prefix_room(num_tiles: int, anyres: Anyres) -> int:
    """The longest prefix of a picture of so many tiles, rounded up to 16."""
    side = anyres.patches_per_side
    tiles = [(g.width // anyres.tile, g.height // anyres.tile) for g in anyres.grids]
    fine = max(rows * side * (columns * side + 1) for columns, rows in tiles if columns * rows + 1 == num_tiles)
    return -(-(side * side + fine + 3) // 16) * 16


def batches(rng: random.Random, stock: Stock, tiles_a_batch: int, level: "Level") -> Iterator[Batch]:
    """Endless batches of new pictures, all of about `tiles_a_batch` tiles."""
    waiting: dict[int, list[Example]] = {}
    while True:
        picture = render(rng, stock, level.value)
        example = make_example(picture, choose_questions(rng, picture.content), stock.anyres)
        rows = waiting.setdefault(len(example.tiles), [])
        rows.append(example)
        if len(rows) == tiles_a_batch // len(example.tiles):
            yield make_batch(rows, prefix_room(len(example.tiles), stock.anyres))
            rows.clear()


def choose_questions(rng: random.Random, content: Content) -> list[Question]:
    """All kinds of questions, and once more those that can be asked of several shapes, in a random order.

    The reading and the description, which leave little room, come before or behind the short ones.
    """
    reading, describing, *small = ask(rng, content, reword=True)
    small += [question for question in ask(rng, content, reword=True) if question.kind in SHAPE_KINDS]
    parts = [rng.sample([reading, describing], 2), rng.sample(small, len(small))]
    return [question for part in rng.sample(parts, 2) for question in part]


@dataclass(slots=True, kw_only=True)
class Level:
    """How hard pictures are, 0 to 1."""

    value: float


def _question_ids(question: Question) -> tuple[list[int], list[int]]:
    """The ids of what is asked, up to where the answer starts, and of the answer, its stop token last."""
    return [*byte_ids(question.prompt), ASSISTANT], [*byte_ids(question.truth), EOS]


def _fitting(questions: Sequence[Question]) -> list[Question]:
    """The questions there is room for, in their order."""
    fitting, room = [], QUESTION_TOKENS
    for question in questions:
        needed = sum(map(len, _question_ids(question))) - 1  # the stop token is predicted, not shown
        if needed <= room:
            fitting.append(question)
            room -= needed
    return fitting


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """The questions of one row, each array (QUESTION_TOKENS,)."""

    tokens: Ints = field(default_factory=lambda: np.full(QUESTION_TOKENS, PAD))
    segments: Ints = field(default_factory=lambda: np.zeros(QUESTION_TOKENS, np.int64))
    positions: Ints = field(default_factory=lambda: np.zeros(QUESTION_TOKENS, np.int64))
    labels: Ints = field(default_factory=lambda: np.full(QUESTION_TOKENS, IGNORED))
    weights: Floats = field(default_factory=lambda: np.zeros(QUESTION_TOKENS, np.float32))


def _pack(questions: Sequence[Question], start: int) -> _Packed:
    """Tokens, segments, positions, labels and weights of one row."""
    packed = _Packed()
    used = 0
    for number, question in enumerate(questions, 1):
        asked, answered = _question_ids(question)
        shown = [*asked, *answered[:-1]]
        end = used + len(shown)
        packed.tokens[used:end], packed.segments[used:end] = shown, number
        packed.positions[used:end] = start + np.arange(len(shown))
        packed.labels[used + len(asked) - 1 : end] = answered
        packed.weights[used + len(asked) - 1 : end] = _weight(question.kind, len(answered))
        used = end
    return packed


def _weight(kind: str, length: int) -> float:
    """Of each token's loss: between equal tokens, which drown `red` in four lines of text, and equal answers."""
    return (2.0 if kind in SHAPE_KINDS else 1.0) * length**-0.5


def _probe(letters: Sequence[Letter], size: Size, anyres: Anyres, features: Ints) -> tuple[Ints, Ints]:
    """Patches with letters, as many as there is room for, then others: the first letters in each, left to right."""
    found: dict[int, list[int]] = {}
    for letter in sorted(letters, key=lambda letter: letter.x):
        patch = _patch_at(letter, size, anyres)
        if patch is not None:
            found.setdefault(patch, []).append(byte_ids(letter.text)[0] - NUM_SPECIAL + 1)
    empty = [int(-2 - f) for f in features[anyres.patches_per_side**2 :: 7] if f < -1 and int(-2 - f) not in found]
    chosen = [*found, *empty, *[0] * PROBES][:PROBES]
    told = np.zeros((PROBES, LETTERS_A_PATCH), np.int64)
    for row, patch in zip(told, chosen, strict=True):
        here = found.get(patch, [])[:LETTERS_A_PATCH]
        row[: len(here)] = here
    return np.array(chosen), told


def _patch_at(letter: Letter, size: Size, anyres: Anyres) -> int | None:
    """The feature of the fine patch that a letter's middle falls on; None where it left the picture."""
    grid = select_grid(size, anyres)
    scaled = scaled_size(size, grid)
    x = letter.x * scaled.width / size.width + (grid.width - scaled.width) // 2
    y = letter.y * scaled.height / size.height + (grid.height - scaled.height) // 2
    if not (0 <= x < grid.width and 0 <= y < grid.height):
        return None
    side = anyres.patches_per_side
    column, row = int(x) // anyres.patch, int(y) // anyres.patch
    tile = 1 + (row // side) * (grid.width // anyres.tile) + column // side
    return tile * side * side + (row % side) * side + column % side


def _alphabet() -> dict[int, int]:
    """Bytes to ids: the byte-level alphabet shows printable bytes as themselves and the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    shown = {byte: byte for byte in printable} | {byte: 256 + i for i, byte in enumerate(hidden)}
    ordered = sorted(range(256), key=shown.__getitem__)
    return {byte: NUM_SPECIAL + i for i, byte in enumerate(ordered)}


_BYTE_TO_ID = _alphabet()
