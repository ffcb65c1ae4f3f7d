"""Strips: a page that was read in strips goes to the engine as a sample a strip and comes back as one answer."""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from difflib import Match, SequenceMatcher
from itertools import islice, pairwise
from typing import get_args

from schemas.answer import Answer, FinishReason, StripAnswer
from schemas.sample import Sample, Size, Strip

_SLACK = 1.5  # words are not spread evenly over a strip
_LEAST_WORDS, _LEAST_LETTERS = 3, 8  # that must agree before text counts as read twice
_LIKE = 0.75  # of letters: half a line read badly against the whole one
_LINE, _WORD = r"[^\n]*\S[^\n]*", r"\S+"


def samples_of_strips(sample: Sample) -> Iterator[Sample]:
    """Return what the engine is asked: the sample itself, or one for each strip with its tiles and its own prompts."""
    if not sample.strips:
        yield sample
        return
    prompts, tiles = iter(sample.prompts), 0
    for number, strip in enumerate(sample.strips, start=1):
        yield Sample(
            id=f"{sample.id}#strip={number}",
            prompts=tuple(islice(prompts, len(sample.asked))),
            image_sizes=(Size((strip.right or sample.image_sizes[0].width) - strip.left, strip.bottom - strip.top),),
            tiles_per_image=(strip.num_tiles,),
            tiles=sample.tiles[tiles : tiles + strip.num_tiles],
        )
        tiles += strip.num_tiles


def join_answers(samples: Sequence[Sample], answers: Sequence[Answer]) -> Iterator[Answer]:
    """Yield one answer for everything a row was asked, from the answers to `samples_of_strips`, in their order."""
    coming = iter(answers)
    for sample in samples:
        own = list(islice(coming, len(sample.prompts)))
        for i in range(len(sample.asked)):
            yield _join(sample, own[i :: len(sample.asked)]) if sample.strips else own[i]


def join_texts(texts: Sequence[str], strips: Sequence[Strip]) -> str:
    """Return the texts of strips in order, a line for each; what two overlapping strips both read is there once."""
    joined = texts[0]
    for (above, below), text in zip(pairwise(strips), texts[1:], strict=True):
        shared = above.bottom - below.top if above.left == below.left else 0  # columns of print have nothing in common
        joined = _without_overlap(joined, text, share=max(0.0, shared / (below.bottom - below.top)))
    return joined


def _join(sample: Sample, answers: Sequence[Answer]) -> Answer:
    """Return the answer of a page from those of its strips, one prompt's."""
    strips = tuple(
        StripAnswer(top=strip.top, bottom=strip.bottom, text=answer.text, finish_reason=answer.finish_reason)
        for strip, answer in zip(sample.strips, answers, strict=True)
    )
    page = sample.image_sizes[0]
    joined = replace(
        answers[0],
        id=sample.id,
        num_prompt_tokens=_total([answer.num_prompt_tokens for answer in answers]),
        num_image_tokens=_total([answer.num_image_tokens for answer in answers]),
        num_generated_tokens=_total([answer.num_generated_tokens for answer in answers]),
        num_tries=max((answer.num_tries for answer in answers if answer.num_tries), default=None),
        num_cut_tokens=_total([answer.num_cut_tokens for answer in answers]),
        first_text=None,
        image_width=page.width,
        image_height=page.height,
        num_tiles=sample.tiles_per_image[0],
        image_sha256=sample.image_sha256,
        strips=strips,
    )
    failed = next((number for number, answer in enumerate(answers) if answer.status == "error"), None)
    if failed is not None:
        return _failed(joined, answers[failed], f"strip {failed + 1} of {len(answers)}")
    return replace(
        joined,
        text=join_texts([str(answer.text) for answer in answers], sample.strips),
        first_text=_first_text(answers, sample.strips),
        finish_reason=max((answer.finish_reason for answer in answers), key=_REASONS.index),
        mean_logprob=_mean_logprob(answers),
    )


_REASONS: tuple[FinishReason | None, ...] = get_args(FinishReason)  # the worst last


def _failed(joined: Answer, answer: Answer, which: str) -> Answer:
    return replace(
        joined,
        status="error",
        text=None,
        finish_reason=None,
        mean_logprob=None,
        error_stage=answer.error_stage,
        error_type=answer.error_type,
        error_message=f"{which}: {answer.error_message}",
    )


def _first_text(answers: Sequence[Answer], strips: Sequence[Strip]) -> str | None:
    """Return the page as its first attempts had read it, where a retry is the answer of some strip."""
    if all(answer.first_text is None for answer in answers):
        return None
    texts = [answer.text if answer.first_text is None else answer.first_text for answer in answers]
    return join_texts([text or "" for text in texts], strips)


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _mean_logprob(answers: Sequence[Answer]) -> float:
    weights = [answer.num_generated_tokens or 0 for answer in answers]
    sums = [(answer.mean_logprob or 0.0) * weight for answer, weight in zip(answers, weights, strict=True)]
    return sum(sums) / max(1, sum(weights))


def _without_overlap(above: str, below: str, share: float) -> str:
    """Return both texts, cut where they agree: at the end of one and the beginning of the other, at most `share` of
    `below`.

    Of a line that a border runs through one of the two has only half; it is dropped with what the other has whole.
    Where anything speaks against it all of both stays: rather twice than not at all.
    """
    if not above or not below or not share:
        return above + ("\n" if above and below else "") + below
    by_lines = "\n" in above and "\n" in below
    ends, begins = (list(re.finditer(_LINE if by_lines else _WORD, text)) for text in (above, below))
    said, again = [part[0] for part in ends], [part[0] for part in begins]
    shown = len(again) * share * _SLACK  # parts of the lower strip that the upper one shows too
    match = _same_lines(said, again, max(1, int(shown))) if by_lines else _same_words(said, again, math.ceil(shown))
    if match is None:
        return f"{above}\n{below}"
    last, first = match.a + match.size, match.b + match.size
    spoilt = [*said[last:], *again[: match.b]]
    others = {*" ".join(said[:last]).split(), *" ".join(again[match.b :]).split()}
    if not _has_numbers_of(" ".join(spoilt).split(), others) or not (by_lines or _is_half(said[last:], again[first:])):
        return f"{above}\n{below}"
    if (said[last:] and not again[first:]) or (again[: match.b] and not said[: match.a]):
        return f"{above}\n{below}"  # what is aside is no half of a line that the other has
    return above[: ends[last - 1].end()] + below[begins[first - 1].end() :]


def _same_lines(above: Sequence[str], below: Sequence[str], most: int) -> Match | None:
    """Return the lines at the end of one and the beginning of the other, with one aside that a border may run through.
    None where they are more than both strips show, or any of them is there twice: equal lines may be these or
    others."""
    match = _longest_match(above, below)
    agreed = above[match.a : match.a + match.size]
    near = len(above) - match.a - match.size <= 1 and match.b <= 1 and match.size <= most
    once = all(texts.count(line) == 1 for line in agreed for texts in (above, below))
    return match if near and once and _is_enough(agreed) else None


def _same_words(above: Sequence[str], below: Sequence[str], most: int) -> Match | None:
    """Return the same of texts without lines: at most so many words are aside, and no part of a repeated phrase
    counts."""
    match = _longest_match(above, below)
    agreed = above[match.a : match.a + match.size]
    near = len(above) - match.a - match.size <= most and match.b <= most and match.size <= most + _LEAST_WORDS
    parts = [part for part in (agreed, agreed[1:], agreed[:-1]) if part]
    once = all(_times(part, texts) == 1 for part in parts for texts in (above, below))
    return match if near and once and _is_enough(agreed) else None


def _longest_match(above: Sequence[str], below: Sequence[str]) -> Match:
    return SequenceMatcher(None, above, below, autojunk=False).find_longest_match()


def _is_enough(agreed: Sequence[str]) -> bool:
    words = " ".join(agreed).split()
    return len(words) >= _LEAST_WORDS or len("".join(words)) >= _LEAST_LETTERS


def _times(part: Sequence[str], texts: Sequence[str]) -> int:
    """Return how often these stand in a row among others."""
    return sum(texts[i : i + len(part)] == part for i in range(len(texts) - len(part) + 1))


def _is_half(words: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether words are the first of others, read badly; one with a digit never is unless it is the same."""
    text, whole = " ".join(words), " ".join(others[: len(words)])
    likeness = SequenceMatcher(None, text, whole, autojunk=False).ratio()
    return not words or (likeness >= _LIKE and _has_numbers_of(words, others[: len(words)]))


def _has_numbers_of(words: Sequence[str], others: Collection[str]) -> bool:
    """Return whether all that has a digit is there too: what differs in one is another number."""
    return all(word in others for word in words if any(letter.isdigit() for letter in word))
