"""A sequence's status, from waiting to done, with and without a retry."""

from dataclasses import replace

import pytest

from pipeline.engine.repetition import SPAN
from pipeline.engine.sequence import Sequence, Status
from schemas.engine import Sampling
from schemas.errors import Failure
from tests.engine.groups import SPELLED, sequence_of, sequences_of

LATE = Failure(stage="decode", type="Truncated", message="the picture ends early")


def repeating() -> Sequence:
    """A sequence whose first attempt has said the same token until its room was full."""
    (one,) = sequences_of("a", [1, 3, 4])
    prompt = replace(one.prompt, max_new_tokens=SPAN)
    found = sequence_of(one.sample, prompt, SPELLED, Sampling(cut_repetition=True))
    while found.completion.finish_reason is None:
        found.completion.append(5, -0.5)
    return found


def test_a_sequence_waits_at_first_and_one_that_failed_before_is_done() -> None:
    (one,) = sequences_of("a", [1, 3, 4])
    failed = Sequence(one.sample, one.prompt, failure=LATE)
    assert (one.status, one.is_done) == (Status.WAITING, False)
    assert (failed.status, failed.is_done) == (Status.FAILED, True)
    assert (failed.answer().status, failed.answer().error_type) == ("error", "Truncated")


def test_a_retry_waits_again_with_no_tokens_and_there_is_only_one() -> None:
    one = repeating()
    one.status = Status.RUNNING
    first = one.completion
    assert one.retry()
    assert (one.status, one.completion.num_tokens, one.num_tokens) == (Status.WAITING, 0, 3)
    first.append(7, -0.5)  # a token of the first attempt that is read late
    assert one.completion.num_tokens == 0
    while one.completion.finish_reason is None:
        one.completion.append(5, -0.5)
    assert not one.retry()


def test_an_aborted_sequence_is_done_and_a_finished_one_stays_finished() -> None:
    one, other = sequences_of("a", [1, 3, 4], [1, 3, 5])
    other.status = Status.FINISHED
    for sequence in (one, other):
        sequence.abort()
    assert (one.status, other.status) == (Status.FAILED, Status.FINISHED)


def test_a_sequence_counts_its_prompt_and_its_tokens() -> None:
    (one,) = sequences_of("a", [1, 3, 4])
    assert (one.num_tokens, one.max_tokens) == (3, 4)
    one.completion.append(5, -0.5)
    assert one.num_tokens == 4


def test_slot_and_pages_are_there_only_once_they_are_allocated() -> None:
    (one,) = sequences_of("a", [1, 3, 4])
    with pytest.raises(AssertionError):
        _ = one.allocation
