"""Fakes that come in by the front door: engines that a job is given instead of the real one."""

from collections.abc import Iterator, Sequence

from schemas.answer import Answer, Generation, answer_from
from schemas.job import JobSettings
from schemas.sample import Prompt, Sample


class EchoEngine:
    """Answers every prompt with what it was given: its text and the sizes of its images."""

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        for sample in samples:
            for prompt in sample.prompts:
                yield answer_from(sample, prompt, None if prompt.failure else self._echo(sample, prompt))

    def _echo(self, sample: Sample, prompt: Prompt) -> Generation:
        sizes = " ".join(f"{size.width}x{size.height}" for size in sample.image_sizes)
        return Generation(text=f"{prompt.text} {sizes}", finish_reason="stop", num_generated_tokens=1, mean_logprob=0.0)


def load_echo_engine(settings: JobSettings) -> EchoEngine:
    return EchoEngine()
