"""Rates: what was measured of cards and checkpoints, each with where it comes from, and what follows for others."""

from dataclasses import dataclass
from math import log2
from typing import Literal

GpuType = Literal["h100", "h200", "a100", "l40s", "4090"]
Work = Literal["caption", "ocr"]

GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A kind of card by its maker's data sheet: memory, dense bfloat16 products, memory bandwidth."""

    memory: int  # bytes
    teraflops: float
    terabytes_s: float


CARDS: dict[GpuType, Card] = {
    "h100": Card(memory=85 * GB, teraflops=989, terabytes_s=3.35),
    "h200": Card(memory=150 * GB, teraflops=989, terabytes_s=4.8),
    "a100": Card(memory=85 * GB, teraflops=312, terabytes_s=2.04),
    "l40s": Card(memory=48 * GB, teraflops=362, terabytes_s=0.86),
    "4090": Card(memory=25 * GB, teraflops=165, terabytes_s=1.01),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Rates of llava-v1.6-mistral-7b's shape on one card, from docs/performance.md or at the commit it names."""

    card: GpuType
    precision: Literal["16 bits", "fp8"]
    work: Work
    prompt_tokens_s: float  # prefilled
    answer_tokens_s: float  # decoded, all slots together
    source: str


MEASURED = (
    Measured(card="h200", precision="16 bits", work="caption", prompt_tokens_s=44_350, answer_tokens_s=9_250,
             source="docs/performance.md, commit 6fb5cc1: 2,048 captions in 8.34 + 100.95 + 21.70 s"),
    Measured(card="h200", precision="16 bits", work="ocr", prompt_tokens_s=43_070, answer_tokens_s=7_520,
             source="docs/performance.md, commit 6fb5cc1: 2,048 transcripts in 8.41 + 103.94 + 47.39 s"),
    Measured(card="h200", precision="fp8", work="caption", prompt_tokens_s=72_850, answer_tokens_s=10_015,
             source="docs/performance.md, commit 6fb5cc1: 2,048 captions in 8.37 + 61.45 + 20.04 s"),
    Measured(card="h100", precision="16 bits", work="caption", prompt_tokens_s=44_300, answer_tokens_s=6_150,
             source="docs/performance.md, 25 November 2026, pages: 14.23 captions/s, 20.4 s of decoding for 1,280"),
    Measured(card="h100", precision="16 bits", work="ocr", prompt_tokens_s=44_000, answer_tokens_s=4_730,
             source="docs/performance.md, 25 November 2026, pages: 11.40 transcripts/s, 47.1 s of decoding for 1,280"),
    Measured(card="h100", precision="fp8", work="caption", prompt_tokens_s=73_200, answer_tokens_s=6_150,
             source="commit 145a233: 19.86 captions/s; decoding as in 16 bits"),
)  # fmt: skip
TILE_S = 0.00079  # of the vision tower, H100 and H200: docs/performance.md
START_S = 30.0  # of a job on a GPU until its engine is ready, weights in the page cache: docs/performance.md
JOB_SHARE = 0.96  # of the bare engine's rate that a job reaches: docs/performance.md
_MISTRAL_LAYERS = 6.98e9  # weights of the layers that every token goes through
_MISTRAL_KV = 131_072  # bytes of a token's keys and values
_ROWS, _LENGTH = 128, 2_276  # at work, and their tokens, when a step was measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A text network in the numbers that its speed follows from."""

    layer_weights: float
    kv_bytes: int  # of a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Seconds that one model takes, for what a row has, and by which share they may be wrong."""

    tile_s: float
    prompt_token_s: float
    answer_token_s: float
    start_s: float
    share: float  # of these rates that a job reaches
    spread: float
    source: str

    def row_s(self, tiles: float, prompt_tokens: float, answer_tokens: float) -> float:
        """Return the seconds of a row with so many of each."""
        work = tiles * self.tile_s + prompt_tokens * self.prompt_token_s + answer_tokens * self.answer_token_s
        return work / self.share


def rates_of(card: GpuType, *, fp8: bool, work: Work, shape: Shape) -> Rates:
    """Return the rates of a card for a network of this shape: measured, or scaled from what was, and so much wider."""
    precision = "fp8" if fp8 else "16 bits"
    known = [one for one in MEASURED if one.card == card]
    base = _nearest(known or [one for one in MEASURED if one.card == "h100"], precision, work)
    spread, notes = 0.10, [base.source]
    prompt_s, answer_s, tile_s = 1 / base.prompt_tokens_s, 1 / base.answer_tokens_s, TILE_S
    if (base.precision, base.work) != (precision, work):
        spread += 0.05
        notes.append(f"measured for {base.work} in {base.precision}")
    if not known:
        ours, theirs = CARDS["h100"], CARDS[card]
        prompt_s, tile_s = (seconds * ours.teraflops / theirs.teraflops for seconds in (prompt_s, tile_s))
        answer_s *= ours.terabytes_s / theirs.terabytes_s
        spread += 0.30
        notes.append(f"nobody has measured a {card}: scaled by its data sheet")
    larger = shape.layer_weights / _MISTRAL_LAYERS
    if abs(larger - 1) > 0.05 or shape.kv_bytes != _MISTRAL_KV:
        prompt_s *= larger
        answer_s *= _step_bytes(shape) / _step_bytes(Shape(layer_weights=_MISTRAL_LAYERS, kv_bytes=_MISTRAL_KV))
        spread += 0.10 + 0.05 * abs(log2(larger))
        notes.append(f"scaled from mistral-7b's shape to {shape.layer_weights / 1e9:.3g} billion weights in layers")
    return Rates(
        tile_s=tile_s,
        prompt_token_s=prompt_s,
        answer_token_s=answer_s,
        start_s=START_S,
        share=JOB_SHARE,
        spread=spread,
        source="; ".join(notes),
    )


def _nearest(known: list[Measured], precision: str, work: Work) -> Measured:
    return max(known, key=lambda one: (one.precision == precision, one.work == work))


def _step_bytes(shape: Shape) -> float:
    """Return what a decode step reads: the weights, and keys and values of the rows at work."""
    return 2 * shape.layer_weights + _ROWS * _LENGTH * shape.kv_bytes
