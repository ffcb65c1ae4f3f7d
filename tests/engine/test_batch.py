"""Which prompts run together, and where their padding goes."""

import numpy as np

from pipeline.engine.batch import Row, group, left_pad, windows
from schemas.errors import Failure
from schemas.sample import Prompt, Sample


def sample(name: str, *lengths: int) -> Sample:
    prompts = [Prompt(id=str(n), text="?", token_ids=np.ones(n, np.int32), max_new_tokens=1) for n in lengths]
    return Sample(id=name, prompts=tuple(prompts))


def rows(*samples: Sample) -> list[Row]:
    return [Row(sample=s, prompt=prompt) for s in samples for prompt in s.prompts]


def test_padding_stands_before_the_prompt_and_is_masked() -> None:
    batch = left_pad([np.array([5, 6, 7], np.int32), np.array([8], np.int32)])
    assert batch.token_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_prompt_that_holds_the_padding_token_keeps_it() -> None:
    batch = left_pad([np.array([0, 9, 0], np.int32), np.array([0], np.int32)])
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_rows_of_like_length_share_a_batch_the_longest_first() -> None:
    assert group(rows(sample("a", 3), sample("b", 90), sample("c", 4), sample("d", 80)), 2) == [[1, 3], [2, 0]]


def test_the_prompts_of_a_sample_stay_side_by_side() -> None:
    assert group(rows(sample("a", 3, 90), sample("b", 50), sample("c", 90, 2)), 2) == [[0, 1], [3, 4], [2]]


def test_failed_prompts_are_in_no_batch() -> None:
    failed = Prompt(id="bad", text="?", failure=Failure(stage="decode", type="Truncated", message="ends early"))
    assert group(rows(Sample(id="a", prompts=(failed,)), sample("b", 3)), 2) == [[1]]


def test_a_window_holds_whole_samples_until_it_has_enough_prompts() -> None:
    stream = [sample("a", 1), sample("b", 1, 2, 3), sample("c", 1), sample("d", 1)]
    assert [[s.id for s in window] for window in windows(stream, 2)] == [["a", "b"], ["c", "d"]]
    assert list(windows([], 2)) == []
