"""Admission: a sample's prompts become sequences, checked, and grouped by what they share."""

from dataclasses import replace

from pipeline.engine.completion import Completion
from pipeline.engine.kernels.pages import num_pages
from pipeline.engine.network.load import LoadedModel
from pipeline.engine.prefill_group import PrefillGroup, group_sequences, prefix_length
from pipeline.engine.sequence import Sequence, describe_length
from pipeline.engine.shapes import Shapes
from pipeline.preprocess.geometry import num_image_tokens
from schemas.engine import Sampling
from schemas.errors import Failure, Refused
from schemas.sample import Prompt, Sample


def admit(sample: Sample, model: LoadedModel, sampling: Sampling, shapes: Shapes, caller: int = 0) -> list[Sequence]:
    """Make a sequence of every prompt. One that failed before, or that no slot can hold, has failed already."""
    sequences = [_admit(sample, prompt, model, sampling, shapes) for prompt in sample.prompts]
    for sequence in sequences:
        sequence.caller = caller
    return sequences


def group(sequences: list[Sequence], image_token_id: int, shapes: Shapes) -> list[PrefillGroup]:
    """Group the sequences of one sample that are waiting, none larger than slots and pages can ever hold at once."""
    waiting = [sequence for sequence in sequences if not sequence.is_done]
    if not waiting:
        return []
    fit = shapes.pages // max(num_pages(sequence.max_tokens) for sequence in waiting)
    return group_sequences(waiting, min(shapes.max_prompts_per_prefill, fit), image_token_id)


def _admit(sample: Sample, prompt: Prompt, model: LoadedModel, sampling: Sampling, shapes: Shapes) -> Sequence:
    failure = prompt.failure or _too_long(prompt, shapes.max_sequence_length)
    if failure is not None:
        return Sequence(sample, prompt, failure=failure)
    _check_image_tokens(sample, prompt, model)
    room = shapes.max_sequence_length - len(prompt.token_ids)
    num_common = prefix_length(prompt, shapes.bucket)
    prompt = replace(prompt, max_new_tokens=min(prompt.max_new_tokens, room), num_common=num_common)
    try:
        return Sequence(sample, prompt, Completion(model, sampling, prompt))
    except Refused as error:  # of the row's own form, which no other row has
        return Sequence(sample, prompt, failure=Failure(stage="generate", type="FormRefused", message=str(error)))


def _too_long(prompt: Prompt, most: int) -> Failure | None:
    if len(prompt.token_ids) < most:
        return None
    message = f"{describe_length(prompt)} do not fit the {most} tokens of a slot: raise --capacity"
    return Failure(stage="generate", type="TooLong", message=message)


def _check_image_tokens(sample: Sample, prompt: Prompt, model: LoadedModel) -> None:
    # A total would hide a row with one too few beside a row with one too many, and shift the features of both.
    found = int((prompt.token_ids == model.image_token_id).sum())
    expected = sum(num_image_tokens(size, model.vision.anyres) for size in sample.image_sizes)
    assert found == prompt.num_image_tokens == expected, (sample.id, prompt.id, found, expected)
