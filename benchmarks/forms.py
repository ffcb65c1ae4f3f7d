"""What a step costs where none, half and all of its rows have a form: milliseconds, on random weights of a real shape.

    python -m benchmarks.forms --slots 128
    python -m benchmarks.forms --shape tiny --device cpu --slots 8 --tokens 40 --rounds 1      a try without a GPU

`plain` is an engine without any forms; the others are one engine whose rows may have one. Answers of two lengths are
timed, and the difference is the steps': prefills are in neither. Every answer is JSON of a schema that never ends, in a
vocabulary of as many tokens as the network has. The last line of stdout is one JSON object.
"""

import argparse
import itertools
import json
import statistics
import string
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from benchmarks.random_model import SHAPES, write_model
from demo.checkpoint import NUM_SPECIAL, byte_tokenizer
from pipeline.engine.engine import Engine
from pipeline.engine.network.forms import Forms
from pipeline.engine.network.load import LoadedModel
from schemas.engine import Dtype, EngineSettings, Sampling
from schemas.form import Form
from schemas.sample import Prompt, Sample

_ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "price": {"type": "number"},
        "kind": {"enum": ["food", "drink", "tool", "other"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
    },
    "required": ["name", "price", "kind", "tags"],
}
FORM = Form(kind="json_schema", text=json.dumps({"type": "array", "items": _ITEM, "minItems": 10_000}))
_SHORT = 16  # tokens of the shorter answers
_PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    shape: str
    device: str
    dtype: Dtype
    slots: int
    tokens: int
    prompt: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Rows of which a share has a form."""

    name: str
    share: float

    def samples(self, options: Options, length: int) -> list[Sample]:
        """Return a row a slot, with answers of that length."""
        rng = np.random.default_rng(0)
        ids = rng.integers(NUM_SPECIAL, 200, (options.slots, options.prompt), np.int32)
        forms = [FORM if row < self.share * options.slots else None for row in range(options.slots)]
        return [
            Sample(
                id=f"{row}", prompts=(Prompt(id="p", text="?", token_ids=own, max_new_tokens=length, form=forms[row]),)
            )
            for row, own in enumerate(ids)
        ]


CASES = (Case(name="none", share=0.0), Case(name="half", share=0.5), Case(name="all", share=1.0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the cases in turn, round by round."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(options.shape, Path(folder))
        loaded = with_vocabulary(model.load(_settings(options, row_forms=False)))
    engine = Engine(loaded, _settings(options, row_forms=False))
    plain = Case(name=_PLAIN, share=0.0)
    times: dict[str, list[float]] = {case.name: [] for case in (plain, *CASES)}
    for _ in range(options.rounds):
        engine.set_sampling(_settings(options, row_forms=False).sampling)
        times[_PLAIN].append(step_ms(engine, plain, options))
        engine.set_sampling(_settings(options, row_forms=True).sampling)
        for case in CASES:
            times[case.name].append(step_ms(engine, case, options))
    engine.close()
    medians = {name: statistics.median(own) for name, own in times.items()}
    for name, ms in medians.items():
        _say(f"{name:<6} {ms:8.3f} ms a step   {ms / medians[_PLAIN]:6.3f} of plain   {_spread(times[name])}")
    line = {"step_ms": medians, "rounds": times, "slots": options.slots, "vocabulary": loaded.num_tokens}
    sys.stdout.write(json.dumps(line) + "\n")


def step_ms(engine: Engine, case: Case, options: Options) -> float:
    """Return the milliseconds of one step, after a short run that does not count."""
    seconds = []
    for length in (_SHORT, _SHORT, options.tokens):
        rows = case.samples(options, length)
        began = time.perf_counter()
        for answer in engine.generate(rows):
            assert answer.status == "ok", answer
            assert answer.num_generated_tokens == length, answer
        seconds.append(time.perf_counter() - began)
    return 1000 * (seconds[2] - seconds[1]) / (options.tokens - _SHORT)


def with_vocabulary(model: LoadedModel) -> LoadedModel:
    """Return the model with a token of letters for each of its embeddings: masks cost by how many there are."""
    content = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    words = itertools.islice(_words(vocabulary), max(0, model.num_tokens - len(vocabulary)))
    vocabulary |= {word: len(vocabulary) + number for number, word in enumerate(words)}
    backend = Tokenizer.from_str(json.dumps(content))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")
    return replace(model, tokenizer=tokenizer, forms=Forms(tokenizer, model.stop_ids, model.num_tokens))


def _words(taken: dict[str, int]) -> Iterator[str]:
    """Yield words of a byte-level vocabulary: letters, digits and marks, half of them behind a blank."""
    letters = string.ascii_letters + string.digits + '",:.{}[]-'
    for length in itertools.count(1):
        for parts in itertools.product(letters, repeat=length):
            word = "".join(parts)
            yield from (one for one in (word, f"Ġ{word}") if one not in taken)


def _settings(options: Options, *, row_forms: bool) -> EngineSettings:
    return EngineSettings(
        dtype=options.dtype,
        device=options.device,
        slots=options.slots,
        sampling=Sampling(ignore_eos=True, row_forms=row_forms),
    )


def _spread(times: list[float]) -> str:
    return f"rounds {min(times):.3f} to {max(times):.3f}"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="mistral-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16")
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256, help="of the longer answers")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--rounds", type=int, default=5)
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
