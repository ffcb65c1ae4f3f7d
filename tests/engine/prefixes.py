"""Samples behind a system message, which the job gives them or which is their own."""

from dataclasses import replace

import numpy as np

from pipeline.engine.engine import Engine
from schemas.sample import Prompt, Sample
from tests.engine.oracle import Oracle, Question, mixed_questions

SYSTEM = "You answer in short sentences about what can be seen and nothing else. "  # a token a letter, and one before
TEXTS = ("What is this?", "Where is it?", "How many of them are there, and of which colour?")


def behind(system: str, oracle: Oracle, sample: Sample, *, common: bool = True) -> Sample:
    """The sample with every prompt behind a system message, which is the job's or not."""
    ids = np.asarray(oracle.processor.tokenizer(system)["input_ids"], np.int32)

    def longer(prompt: Prompt) -> Prompt:
        joined = np.concatenate([ids, prompt.token_ids])
        return replace(prompt, token_ids=joined, num_common=len(ids) if common else 0)

    return replace(sample, prompts=tuple(map(longer, sample.prompts)))


def mixed_samples(oracle: Oracle, **fields) -> list[Sample]:
    """Rows of one prompt and of three behind the job's system message, and among them rows with one of their own."""
    questions = mixed_questions(**fields)
    questions += [replace(q, id=f"{q.id}-thrice", texts=TEXTS) for q in questions[:4]]
    questions += [Question(id="none", texts=TEXTS), Question(id="long", texts=("Why? " * 40,))]
    found = [behind(SYSTEM, oracle, oracle.sample(question)) for question in questions]
    own = [replace(q, id=f"{q.id}-own") for q in questions[:3]]
    return found[:5] + [behind("Mine. " * 9, oracle, oracle.sample(q), common=False) for q in own] + found[5:]


def unshared(samples: list[Sample]) -> list[Sample]:
    """The same prompts, each to be run from its start."""
    return [replace(s, prompts=tuple(replace(p, num_common=0) for p in s.prompts)) for s in samples]


def exact(engine: Engine, samples: list[Sample]) -> dict[tuple[str, str], tuple[str | None, float | None]]:
    """Text and log-probability of every answer: a number that moved in its last bit would show."""
    return {(a.id, a.prompt_id): (a.text, a.mean_logprob) for a in engine.generate(samples)}
