"""Show what is cut as repetition: print that repeats and comes to an end, and cycles that do not, at several rooms.

    python -m benchmarks.repetition

Every text is written token by token, with a certainty that would let any circle go on, in the demo model's vocabulary
of bytes: the longest that a text can be. A text is kept where all of it is in the answer; of a circle without an end it
is counted after how many tokens it is cut. The last line of stdout is one JSON object.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

from demo.checkpoint import EOS, byte_tokenizer
from pipeline.engine.completion import Completion
from schemas.answer import Generation
from schemas.engine import Sampling
from schemas.sample import Prompt

ROOMS = (1190, 1869, 4096)  # what an image of five tiles, or of three, leaves of a slot; and the most
CERTAIN = -1e-5  # the log-probability of every token

PRINT = {
    "400 x ha": "ha" * 400,
    "30 CSV rows of zeros": "0,0,0,0,0,0\n" * 30,
    "60 rows of a table of equal cells": "| 0.00 | 0.00 | 0.00 |\n" * 60,
    "40 empty rows of a form": "Name: ________  Date: ______\n" * 40,
    "a refrain twelve times": "Row, row, row your boat\nGently down the stream\nLife is but a dream\n\n" * 12,
    "500 blank lines": "Top" + "\n" * 500 + "Bottom",
    "leaders of dots": "Chapter 1 " + "." * 900 + " 3",
    "600 binary digits": "01" * 300,
    "null 200 times": "[" + "null, " * 200 + "null]",
    "250 emoji": "🙂" * 250,
}
CIRCLES = {
    "one letter": "a",
    "a word": "the ",
    "a line": "Total 0.00 EUR\n",
    "a paragraph": PRINT["a refrain twelve times"][:70],
}


def write(text: str, room: int, *, end: bool) -> Generation:
    """Return the answer of a model that writes this text, as far as it is let."""
    tokenizer = byte_tokenizer()
    model: Any = SimpleNamespace(tokenizer=tokenizer, stop_ids=(EOS,))
    prompt = Prompt(id="p", text="?", token_ids=np.ones(1, np.int32), max_new_tokens=room)
    completion = Completion(model, Sampling(cut_repetition=True), prompt)
    for token_id in [*tokenizer.encode(text, add_special_tokens=False), *([EOS] if end else [])]:
        completion.append(token_id, CERTAIN)
    return completion.generation()


def kept(text: str, room: int) -> str:
    """Tell what becomes of print in a room."""
    if len(text.encode()) >= room:
        return "no room"
    return "kept" if write(text, room, end=True).text == text else "cut"


def main() -> None:
    """Print two tables, and the counts as one JSON object."""
    cells = {name: [kept(text, room) for room in ROOMS] for name, text in PRINT.items()}
    _table("print", cells)
    circles = {name: [write(text * room, room, end=False) for room in ROOMS] for name, text in CIRCLES.items()}
    _table(
        "circle",
        {name: [f"{one.num_generated_tokens} ({one.finish_reason})" for one in row] for name, row in circles.items()},
    )
    counts = {what: sum(row.count(what) for row in cells.values()) for what in ("kept", "cut", "no room")}
    sys.stdout.write(json.dumps(counts) + "\n")


def _table(what: str, rows: dict[str, list[str]]) -> None:
    head = " | ".join(f"room of {room:,}" for room in ROOMS)
    sys.stdout.write(f"| {what} | {head} |\n|---|{'---|' * len(ROOMS)}\n")
    for name, cells in rows.items():
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
