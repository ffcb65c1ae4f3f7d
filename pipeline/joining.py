"""Joining: a page that was read in strips goes to the engine as a sample a strip and comes back as one answer."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import islice, pairwise
from typing import get_args

from schemas.answer import Answer, FinishReason, StripAnswer
from schemas.sample import Sample, Size, Strip

_SLACK = 1.5  # words are not spread evenly over a strip
_LEAST_WORDS, _LEAST_LETTERS = 3, 8  # that must agree before text counts as read twice


def samples_of_strips(sample: Sample) -> Iterator[Sample]:
    """What the engine is asked: the sample itself, or one for each strip with its tiles and its own prompts."""
    if not sample.strips:
        yield sample
        return
    prompts, tiles = iter(sample.prompts), 0
    for number, strip in enumerate(sample.strips, start=1):
        yield Sample(
            id=f"{sample.id}#strip={number}",
            prompts=tuple(islice(prompts, len(sample.asked))),
            image_sizes=(Size(sample.image_sizes[0].width, strip.bottom - strip.top),),
            tiles_per_image=(strip.num_tiles,),
            tiles=sample.tiles[tiles : tiles + strip.num_tiles],
        )
        tiles += strip.num_tiles


def join_answers(samples: Sequence[Sample], answers: Sequence[Answer]) -> Iterator[Answer]:
    """One answer for everything a row was asked, from the answers to `samples_of_strips`, in their order."""
    coming = iter(answers)
    for sample in samples:
        own = list(islice(coming, len(sample.prompts)))
        for i in range(len(sample.asked)):
            yield _join(sample, own[i :: len(sample.asked)]) if sample.strips else own[i]


def join_texts(texts: Sequence[str], strips: Sequence[Strip]) -> str:
    """The texts of strips in order, a line for each; what two overlapping strips both read is there once."""
    joined = texts[0]
    for (above, below), text in zip(pairwise(strips), texts[1:], strict=True):
        shared = above.bottom - below.top
        joined = _without_overlap(joined, text, share=max(0.0, shared / (below.bottom - below.top)))
    return joined


def _join(sample: Sample, answers: Sequence[Answer]) -> Answer:
    """The answer of a page from those of its strips, one prompt's."""
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


def _total(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _mean_logprob(answers: Sequence[Answer]) -> float:
    weights = [answer.num_generated_tokens or 0 for answer in answers]
    sums = [(answer.mean_logprob or 0.0) * weight for answer, weight in zip(answers, weights, strict=True)]
    return sum(sums) / max(1, sum(weights))


def _without_overlap(above: str, below: str, share: float) -> str:
    """Both texts, cut where they agree: at the end of one and the beginning of the other, at most `share` of `below`.

    Of a line that a cut runs through one of the two has only half; it is dropped with what the other has whole. Where
    nothing agrees all of both stays: rather twice than not at all.
    """
    if not above or not below or not share:
        return above + ("\n" if above and below else "") + below
    ends, begins = list(re.finditer(r"\S+", above)), list(re.finditer(r"\S+", below))
    window = math.ceil(len(begins) * share * _SLACK) + _LEAST_WORDS
    ends, begins = ends[-window:], begins[:window]
    tail, head = [word[0] for word in ends], [word[0] for word in begins]
    match = SequenceMatcher(None, tail, head, autojunk=False).find_longest_match()
    agreed = "".join(tail[match.a : match.a + match.size])
    if match.size < _LEAST_WORDS and len(agreed) < _LEAST_LETTERS:
        return f"{above}\n{below}"
    return above[: ends[match.a + match.size - 1].end()] + below[begins[match.b + match.size - 1].end() :]
