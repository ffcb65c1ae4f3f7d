"""Stop texts are found where transformers' criterion finds them, in every published vocabulary, whatever is sampled."""

import functools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.generation.stopping_criteria import StopStringCriteria

from demo.checkpoint import byte_tokenizer
from pipeline.engine.completion import Completion
from schemas.answer import Generation
from schemas.engine import Sampling
from schemas.sample import Prompt
from tests.published import PUBLISHED
from tests.vocabularies import tokenizer_of

FORMATS = {one.format: one for one in PUBLISHED if one.format != "110b"}  # whose vocabulary is 72b's
NAMES = ("demo", *FORMATS)
WORDS = "The end.\n\nUSER: Größe 日本語 🙂🦙 e\u0301 ### 12.50  stop</s> <0x0A> ab abc\tx"
LONGEST, AT_ONCE = 24, 500


@functools.cache
def vocabulary(name: str) -> PreTrainedTokenizerFast:
    return byte_tokenizer() if name == "demo" else tokenizer_of(FORMATS[name])


class Few:
    """A vocabulary of which transformers' criterion looks at a few tokens alone: at all of them it takes minutes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, token_ids: set[int]) -> None:
        self._tokenizer = tokenizer
        self._few = {token: id for token, id in tokenizer.get_vocab().items() if id in token_ids}

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)

    def __call__(self, *texts, **settings):
        return self._tokenizer(*texts, **settings)

    def get_vocab(self) -> dict[str, int]:
        return self._few


def written(tokenizer, token_ids: list[int], **sampling) -> Generation:
    """What becomes of these tokens, then an end that no vocabulary has."""
    prompt = Prompt(id="p", text="?", token_ids=np.array([len(tokenizer) + 9], np.int32), max_new_tokens=99)
    completion = Completion(
        SimpleNamespace(tokenizer=tokenizer, stop_ids=(len(tokenizer),)), Sampling(**sampling), prompt
    )
    for token_id in [*token_ids, len(tokenizer)]:
        completion.append(token_id, -0.5)
    assert completion.failure is None
    return completion.generation()


def pool_of(tokenizer) -> list[int]:
    """Every byte, all special tokens, parts of words, and some of the vocabulary at random."""
    vocabulary = tokenizer.get_vocab()
    few = [id for token, id in vocabulary.items() if len(token) == 1 or token.startswith("<0x")]
    few = [id for id in few if id < 1000]
    words = tokenizer.encode(WORDS, add_special_tokens=False)
    return [*few, *words * 8, *tokenizer.all_special_ids, *random.Random(0).sample(sorted(vocabulary.values()), 40)]


def sequences(tokenizer, rng: random.Random, count: int) -> list[list[int]]:
    pool, words = pool_of(tokenizer), tokenizer.encode(WORDS, add_special_tokens=False)
    found = []
    for _ in range(count):
        at = rng.randrange(len(words))
        found.append((words[at : at + rng.randrange(12)] + rng.choices(pool, k=LONGEST))[:LONGEST])
    return found


def stops_of(tokenizer, rng: random.Random) -> tuple[str, ...]:
    """Texts of a few neighbouring letters, and names of special tokens in part or with others."""
    special = rng.choice(tokenizer.all_special_tokens)
    at = rng.randrange(len(WORDS) - 1)
    return tuple(
        {WORDS[at : at + rng.randint(1, 5)], rng.choice(("\n", "🙂", "é", "ö", "b", f"b{special}", special[1:]))}
    )


def check(name: str, count: int, seed: int) -> None:
    """Compare many sequences under one set of stop texts with transformers' criterion, token by token."""
    tokenizer, rng = vocabulary(name), random.Random(f"{name}{seed}")
    stop = stops_of(tokenizer, rng)
    drawn = sequences(tokenizer, rng, count)
    criterion = StopStringCriteria(Few(tokenizer, {id for ids in drawn for id in ids}), list(stop))
    together = torch.tensor(drawn)
    stopped = torch.stack([criterion(together[:, :n], None) for n in range(1, LONGEST + 1)], dim=1)
    for ids, hits in zip(drawn, stopped.tolist(), strict=True):
        num = hits.index(True) + 1 if True in hits else None
        found = written(tokenizer, ids, stop=stop)
        assert found.num_generated_tokens == (num or LONGEST + 1), (stop, ids)
        whole = tokenizer.decode(ids[:num], skip_special_tokens=True)
        assert whole.startswith(found.text.rstrip("\ufffd")), (stop, ids)
        assert num or found.text == whole, (stop, ids)
        only = [one for one in stop if one in whole]
        if num and len(only) == 1 and not set(ids[:num]) & set(tokenizer.all_special_ids):
            assert found.text == whole.split(only[0])[0], (stop, ids)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_stops_where_transformers_does(name: str) -> None:
    for seed in range(4):
        check(name, 50, seed)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_answers_stop_where_transformers_does(name: str) -> None:
    for seed in range(10_000 // AT_ONCE):
        check(name, AT_ONCE, 100 + seed)
