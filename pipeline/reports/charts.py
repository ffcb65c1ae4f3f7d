"""Charts: counts as small drawings (SVG) that take their colours from the page."""

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

_WIDTH, _HEIGHT, _GAP = 360, 120, 2
_BINS = 24
_BOTTOM = 18  # pixels below the bars, for labels

Counts = npt.NDArray[np.int64]


def histogram(title: str, counts: Counts, unit: str) -> str:
    """Return bars of how many answers have how many of something."""
    last = int(np.flatnonzero(counts)[-1]) if counts.any() else 0
    width = max(1, -(-(last + 1) // _BINS))
    bins = [int(counts[start : start + width].sum()) for start in range(0, last + 1, width)]
    names = [f"{start:,}" + (f" to {start + width - 1:,}" if width > 1 else "") for start in range(0, last + 1, width)]
    return bars(title, bins, [f"{name} {unit}" for name in names], ("0", f"{last:,} {unit}"))


def shares(title: str, counts: Counts) -> str:
    """Return bars over 0 to 1."""
    step = 1 / len(counts)
    names = [f"{index * step:.2f} to {(index + 1) * step:.2f}" for index in range(len(counts))]
    return bars(title, counts.tolist(), names, ("0", "1"))


def bars(title: str, values: Sequence[float], names: Sequence[str], ends: tuple[str, str]) -> str:
    """Return a drawing with a bar for each value; a name of a bar shows where the pointer is."""
    most = max(values, default=0) or 1
    step = (_WIDTH - 2) / max(1, len(values))
    drawn = "".join(_bars(values, names, most, step))
    label = f"{title}: {sum(values):,.0f} in {len(values)} bars, the highest {most:,.4g}"
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <span>most {most:,.4g}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _BOTTOM}" role="img" aria-label="{escape(label)}">{drawn}'
        f'<path class="axis" d="M0 {_HEIGHT}.5H{_WIDTH}"/>'
        f'<text x="1" y="{_HEIGHT + 14}">{escape(ends[0])}</text>'
        f'<text x="{_WIDTH - 1}" y="{_HEIGHT + 14}" text-anchor="end">{escape(ends[1])}</text></svg></figure>'
    )


def _bars(values: Sequence[float], names: Sequence[str], most: float, step: float) -> Iterator[str]:
    for index, (value, name) in enumerate(zip(values, names, strict=True)):
        height = max(1.0 if value else 0.0, value / most * (_HEIGHT - 4))
        x, y = 1 + index * step, _HEIGHT - height
        width = max(1.0, step - _GAP)
        yield (
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5">'
            f"<title>{escape(name)}: {value:,.4g}</title></rect>"
        )
