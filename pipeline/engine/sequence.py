"""One prompt being generated: its status, what it holds, and its answer."""

from dataclasses import replace
from enum import Enum

import numpy as np

from pipeline.engine.completion import Completion
from pipeline.engine.kernels.pages import Allocation
from schemas.answer import Answer, answer_from
from schemas.errors import Failure
from schemas.sample import Prompt, Sample


class Status(Enum):
    """Status of a sequence; only the engine's thread changes it once the sequence is added."""

    WAITING = "waiting"  # for its image features and a prefill; so does a retry
    RUNNING = "running"  # it has a slot and pages
    FINISHED = "finished"
    FAILED = "failed"  # for the reason that its failure says, or none: nobody waits for it any more


class Sequence:
    """A prompt of a sample on its way to an answer. The engine's thread changes it, its caller waits until it is done.

    One with a `failure` from the start never runs and has no completion.
    """

    def __init__(
        self, sample: Sample, prompt: Prompt, completion: Completion | None = None, failure: Failure | None = None
    ) -> None:
        assert (completion is None) == (failure is not None)
        self.sample, self.prompt, self.failure = sample, prompt, failure
        self.status = Status.WAITING if failure is None else Status.FAILED
        self.caller = 0  # who waits for it, in the order in which callers came
        self._completion = completion
        self._allocation: Allocation | None = None

    @property
    def completion(self) -> Completion:
        """Return the tokens of the current attempt."""
        assert self._completion is not None
        return self._completion

    @property
    def allocation(self) -> Allocation:
        """Return the slot and pages that it holds while it runs."""
        assert self._allocation is not None
        return self._allocation

    @allocation.setter
    def allocation(self, allocation: Allocation) -> None:
        self._allocation = allocation

    @property
    def is_done(self) -> bool:
        """Tell whether nothing will change any more."""
        return self.status in (Status.FINISHED, Status.FAILED)

    @property
    def num_tokens(self) -> int:
        """Count the tokens of the prompt, and of the answer so far."""
        return len(self.prompt.token_ids) + self.completion.num_tokens

    @property
    def max_tokens(self) -> int:
        """Return the most tokens that prompt and answer may have together."""
        return len(self.prompt.token_ids) + self.prompt.max_new_tokens

    def retry(self) -> bool:
        """Begin the retry under penalty and wait again; False where the ended attempt needs none."""
        completion = self.completion.retry()
        if completion is None:
            return False
        self._completion, self.status = completion, Status.WAITING
        return True

    def abort(self) -> None:
        """Stop, as nobody waits for the answer any more."""
        if not self.is_done:
            self.status = Status.FAILED

    def answer(self) -> Answer:
        """Return the answer of a done sequence: a text, or why there is none. Decodes its tokens."""
        assert self.is_done
        if self.failure is None and not self.completion.has_answer:
            rule = "the network's numbers must be finite, float16 overflows where bfloat16 and float32 do not"
            self.failure = Failure(stage="generate", type="NotFinite", message=f"{rule}; some were not")
        if self.failure is None:
            generation, self.failure = self.completion.generation(), self.completion.failure
            if self.failure is None:
                return answer_from(self.sample, self.prompt, generation)
        empty = replace(self.prompt, token_ids=np.zeros(0, np.int32), num_common=0, failure=self.failure)
        return answer_from(self.sample, empty, None)


def describe_length(prompt: Prompt) -> str:
    """Say how long a prompt and its answer may be, for messages."""
    return f"{len(prompt.token_ids)} prompt tokens and up to {prompt.max_new_tokens} new ones"
