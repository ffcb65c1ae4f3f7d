"""Look: some rows of the input, spread over all of it, read and prepared for real: what a job would find."""

import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.plan import Plan
from pipeline.sources.reader import unit_reader
from pipeline.stages.preprocess import Preprocess
from schemas.request import table_to_requests
from schemas.sample import Prompt, Sample, Size, table_to_samples

_UNITS = 32  # looked into
_Z = 1.96  # of a normal distribution's middle 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate, and between what it lies 19 times in 20, as far as its assumptions hold."""

    low: float
    mid: float
    high: float

    def times(self, factor: float) -> "Interval":
        """Return all three multiplied."""
        return Interval(low=self.low * factor, mid=self.mid * factor, high=self.high * factor)

    def wider(self, spread: float) -> "Interval":
        """Return the interval with a relative error of its own beside it."""
        return Interval(low=self.low / (1 + spread), mid=self.mid, high=self.high * (1 + spread))


def mean_of(values: Sequence[float]) -> Interval:
    """Return the mean of a sample, and the interval of that of all."""
    numbers = np.asarray(values, float)
    mid = float(numbers.mean()) if len(numbers) else 0.0
    error = _Z * float(numbers.std(ddof=1)) / sqrt(len(numbers)) if len(numbers) > 1 else mid
    return Interval(low=max(0.0, mid - error), mid=mid, high=mid + error)


def share_of(count: int, total: int) -> Interval:
    """Return a share in a sample, and Wilson's interval of that in all."""
    share, z2 = count / total, _Z**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z * sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return Interval(low=max(0.0, middle - half), mid=share, high=min(1.0, middle + half))


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Facts of the rows that were looked at; token counts are of a row, its prompts together."""

    rows: int
    failed: dict[str, int]  # rows by stage and type, as fetch/FileNotFound, whose prompts all failed
    examples: dict[str, str]
    formats: dict[str, int]  # of images that travel with their row
    duplicates: int  # rows whose first image is another's, byte for byte
    widths: tuple[int, int, int]  # least, median, most
    heights: tuple[int, int, int]
    image_bytes: Interval
    tiles: Interval
    image_tokens: Interval
    prompt_tokens: Interval
    longest_prompt: int
    cpu_s: Interval  # of one core, to prepare a row
    seconds: float

    @property
    def num_failed(self) -> int:
        """Count the rows that would get no answer."""
        return sum(self.failed.values())


def look_at(plan: Plan, rows: int, seconds: float) -> Look:
    """Read and prepare about so many rows from everywhere in the input; stop after so many seconds."""
    stage, began, seen = Preprocess(plan.settings), time.monotonic(), _Seen()
    for table in rows_from_everywhere(plan, rows):
        before = time.process_time()
        samples = table_to_samples(stage(table))
        seen.cpu.append((time.process_time() - before) / table.num_rows)
        for sample in samples:
            seen.add(sample)
        images = [image.data for request in table_to_requests(table) for image in request.images if image.data]
        seen.sizes += map(len, images)
        seen.formats.update(map(_format_of, images))
        if time.monotonic() - began > seconds:
            break
    return seen.look(seen.sizes or _file_sizes(plan), time.monotonic() - began)


def rows_from_everywhere(plan: Plan, rows: int) -> Iterator[pa.Table]:
    """Yield a few rows of each of some units from everywhere, so that those seen when time is up are as well."""
    read, num_units = unit_reader(plan.listing), plan.listing.num_units
    units = np.unique(np.linspace(0, num_units - 1, min(num_units, _UNITS)).astype(int))
    each = max(1, -(-rows // len(units)))
    rng = np.random.default_rng(0)
    for unit in rng.permutation(units).tolist():
        there = plan.rows_of(unit)
        chosen = np.sort(rng.choice(there, min(each, there), replace=False))
        yield read(unit).take(pa.array(chosen))


@dataclass(slots=True)
class _Seen:
    """Numbers of the rows, so that no row's pixels stay in memory."""

    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    formats: Counter[str] = field(default_factory=Counter)
    hashes: Counter[str] = field(default_factory=Counter)
    image_sizes: list[Size] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)
    image_tokens: list[int] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    longest: int = 0
    cpu: list[float] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Count one row."""
        self.rows += 1
        if sample.image_sha256:
            self.hashes[sample.image_sha256] += 1
        prompts = [prompt for prompt in sample.prompts if not prompt.failure]
        failures = [prompt.failure for prompt in sample.prompts if prompt.failure]
        if not prompts:
            kind = f"{failures[0].stage}/{failures[0].type}"
            self.failed[kind] += 1
            self.examples.setdefault(kind, f"{sample.id}: {failures[0].message}")
            return
        self.image_sizes += sample.image_sizes[:1]
        self.tiles.append(len(sample.tiles))
        self.image_tokens.append(_of_images(sample, prompts))
        self.prompt_tokens.append(
            _of_images(sample, prompts) + sum(len(one.token_ids) - one.num_image_tokens for one in prompts)
        )
        self.longest = max(self.longest, *(len(prompt.token_ids) for prompt in prompts))

    def look(self, image_bytes: list[int], seconds: float) -> Look:
        """Return what these rows come to."""
        return Look(
            rows=self.rows,
            failed=dict(self.failed.most_common()),
            examples=self.examples,
            formats=dict(self.formats.most_common()),
            duplicates=sum(count - 1 for count in self.hashes.values()),
            widths=_spread([size.width for size in self.image_sizes]),
            heights=_spread([size.height for size in self.image_sizes]),
            image_bytes=mean_of(image_bytes),
            tiles=mean_of(self.tiles),
            image_tokens=mean_of(self.image_tokens),
            prompt_tokens=mean_of(self.prompt_tokens),
            longest_prompt=self.longest,
            cpu_s=mean_of(self.cpu[1:] or self.cpu),  # the first includes what is loaded once
            seconds=seconds,
        )


def _of_images(sample: Sample, prompts: Sequence[Prompt]) -> int:
    """Return a row's image tokens as they are prefilled: once for all prompts, or those of each strip."""
    if sample.strips:
        return sum(prompt.num_image_tokens for prompt in prompts) // max(1, len(sample.asked))
    return prompts[0].num_image_tokens


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    return (min(values), int(np.median(values)), max(values)) if values else (0, 0, 0)


def _file_sizes(plan: Plan) -> list[int]:
    """Return the bytes of the listed files where these are the images; nothing is known of what URLs lead to."""
    if plan.listing.source.is_table:
        return []
    sizes: list[int] = plan.listing.files.column("size").slice(0, 100_000).to_pylist()
    return sizes


def _format_of(data: bytes | memoryview) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.format or "unknown"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # the row's own error says more
        return "unknown"
