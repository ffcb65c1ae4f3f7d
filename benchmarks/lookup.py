"""What prompt lookup would save: drafts of a text from its own earlier part, counted on texts that are there.

    python -m benchmarks.lookup texts/*.txt --tokenizer MODEL
    python -m benchmarks.lookup out/answers/*.parquet --tokenizer MODEL [--drafts 1 2 4 8]

A step drafts what once followed the last three tokens, else the last two, and keeps what the text goes on with. That
is an upper bound for a model that says these very texts. A line a number of drafts: tokens a step, the share of drafts
that are kept, and what a token costs beside a step without drafts, where a draft costs `--draft-cost` of a row's part
of a step (14.5 GFLOP at 660 TFLOP/s beside 22.4 ms of 208 rows: 0.2). The last line of stdout is one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from transformers import AutoTokenizer

_GRAMS = (3, 2)  # tokens that must have been seen before, the longest first
_SHORTEST = 32  # tokens of a text that counts


def main() -> None:
    """Count, and print a line a number of drafts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="texts, or Parquet files with a column `answer`")
    parser.add_argument("--tokenizer", required=True, help="a folder that transformers can read")
    parser.add_argument("--tokens", type=int, default=1024, help="of a text, at most")
    parser.add_argument("--drafts", type=int, nargs="+", default=[1, 2, 4, 8], help="a step, at most")
    parser.add_argument("--draft-cost", type=float, default=0.2, help="of a row's part of a step")
    flags = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(flags.tokenizer)
    read = [text for file in flags.files for text in _texts(file)]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"][: flags.tokens] for text in read]
    texts = [ids for ids in encoded if len(ids) >= _SHORTEST]
    found = [_count(texts, most, flags.draft_cost) for most in flags.drafts]
    for one in found:
        sys.stderr.write(
            f"{one['drafts']} drafts: {one['tokens_a_step']:.3f} tokens a step, {100 * one['kept']:.0f} % kept, "
            f"a token costs {one['cost']:.3f} of one without, {one['cost_in_a_fixed_shape']:.3f} in a fixed shape\n"
        )
    sys.stdout.write(json.dumps({"texts": len(texts), "tokens": sum(map(len, texts)), "found": found}) + "\n")


def _texts(file: Path) -> Iterator[str]:
    if file.suffix != ".parquet":
        yield file.read_text(encoding="utf-8", errors="replace")
        return
    yield from (text for text in pq.read_table(file, columns=["answer"])["answer"].to_pylist() if text)


def _count(texts: Sequence[Sequence[int]], most: int, draft_cost: float) -> dict[str, float]:
    steps = tokens = drafted = kept = 0
    for ids in texts:
        for own_drafted, own_kept in walk(ids, most):
            steps, tokens = steps + 1, tokens + 1 + own_kept
            drafted, kept = drafted + own_drafted, kept + own_kept
    return {
        "drafts": most,
        "tokens_a_step": tokens / steps,
        "kept": kept / max(1, drafted),
        "cost": (steps + draft_cost * drafted) / tokens,
        "cost_in_a_fixed_shape": steps * (1 + draft_cost * most) / tokens,  # where every row has `most` each step
    }


def walk(ids: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield for every step behind the first token how many tokens it drafts and how many of them are kept."""
    followed: dict[tuple[int, ...], int] = {}  # by what was seen, where it went on the last time
    noted, at = 1, 1
    while at < len(ids):
        for end in range(noted, at):  # behind a step all that is known may be looked up, but its very end
            followed |= {tuple(ids[end - gram : end]): end for gram in _GRAMS if end >= gram}
        noted = at
        start = next((followed[key] for gram in _GRAMS if (key := tuple(ids[at - gram : at])) in followed), None)
        draft = () if start is None else ids[start : min(start + most, at)]
        kept = 0
        while kept < len(draft) and at + kept < len(ids) - 1 and draft[kept] == ids[at + kept]:
            kept += 1
        yield len(draft), kept
        at += 1 + kept


if __name__ == "__main__":
    main()
