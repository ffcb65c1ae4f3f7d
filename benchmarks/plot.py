"""Draws the samples of `benchmarks.million` as an SVG: lines of memory over the rows that were answered.

python -m benchmarks.plot /tmp/million/samples.jsonl docs/memory.svg
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 340, 60, 40, 20, 130
COLOURS = {
    "driver": "#1b6ca8",
    "preprocess": "#c8553d",
    "generate": "#3a7d44",
    "store": "#8d6a9f",
    "spilled": "#888888",
}
LABELS = {
    "driver": "driver",
    "preprocess": "preprocess actor",
    "generate": "generate actor",
    "store": "object store",
    "spilled": "spilled",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From rows and megabytes to places in the picture."""

    most_rows: float
    most_mb: float

    def x(self, rows: float) -> float:
        """Pixels from the left."""
        return round(LEFT + rows / self.most_rows * (WIDTH - LEFT - RIGHT), 1)

    def y(self, megabytes: float) -> float:
        """Pixels from the top."""
        return round(HEIGHT - BOTTOM - megabytes / self.most_mb * (HEIGHT - BOTTOM - TOP), 1)


def draw(samples: Sequence[dict[str, float]]) -> str:
    """The picture of the samples that were taken while rows were answered: afterwards the units they are counted by are
    merged and go."""
    answered = [sample["rows"] for sample in samples]
    samples = samples[: answered.index(max(answered)) + 1]
    most_mb = max(sample[name] for sample in samples for name in COLOURS)
    scale = Scale(most_rows=samples[-1]["rows"], most_mb=-(-most_mb // 200) * 200)
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-group="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_axes(scale),
        *(_line(samples, name, scale) for name in COLOURS),
        *_names(samples[-1], scale),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes(scale: Scale) -> list[str]:
    right = scale.x(scale.most_rows)
    lines = []
    for step in range(5):
        megabytes, rows = scale.most_mb * step / 4, scale.most_rows // 4000 * 1000 * step
        y, x = scale.y(megabytes), scale.x(rows)
        lines.append(f'<path d="M{LEFT} {y}H{right}" stroke="#dddddd"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{megabytes:,.0f}</text>')
        anchor = "middle" if step < 4 else "end"  # beside the names of the lines
        lines.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{rows:,.0f}</text>')
    middle = (LEFT + right) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">rows answered</text>')
    lines.append(f'<text x="{LEFT - 6}" y="{TOP - 6}" text-anchor="end">MB</text>')
    return lines


def _line(samples: Sequence[dict[str, float]], name: str, scale: Scale) -> str:
    points = " ".join(f"{scale.x(sample['rows'])},{scale.y(sample[name])}" for sample in samples)
    return f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.5"/>'


def _names(last: dict[str, float], scale: Scale) -> Iterator[str]:
    """Beside the ends of their lines, from the top, one not on the other."""
    y = 0.0
    for name in sorted(COLOURS, key=lambda name: -last[name]):
        y = max(y + 14, scale.y(last[name]) + 4)
        yield f'<text x="{scale.x(scale.most_rows) + 6}" y="{y}" fill="{COLOURS[name]}">{LABELS[name]}</text>'


def main() -> None:
    """Read and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("samples", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    samples = [json.loads(line) for line in arguments.samples.read_text().splitlines()]
    arguments.picture.write_text(draw([sample for sample in samples if sample["rows"]]))


if __name__ == "__main__":
    main()
