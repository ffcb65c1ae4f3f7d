"""An answer's end and text, token by token, with a real tokenizer of one token a byte."""

from dataclasses import replace

import numpy as np
import pytest

from demo.checkpoint import EOS
from pipeline.engine.completion import Completion
from pipeline.engine.engine import Engine
from pipeline.engine.network.load import load_model
from schemas.answer import Generation
from schemas.engine import Sampling
from schemas.sample import Prompt
from tests.engine.oracle import FP32, Spelled, mixed_questions
from tests.tiny import checkpoint


def completed(
    oracle, text: str, max_new_tokens: int = 99, end: bool = True, logprob: float = -0.5, **sampling
) -> Generation:
    """What becomes of a model that writes this text, and then its end token or nothing."""
    prompt = Prompt(id="p", text="?", token_ids=np.ones(1, np.int32), max_new_tokens=max_new_tokens)
    completion = Completion(oracle.with_text, Sampling(**sampling), prompt)
    for token in oracle.with_text.tokenizer.encode(text, add_special_tokens=False) + [EOS] * end:
        completion.append(token, logprob)
    return completion.generation()


@pytest.mark.parametrize(
    ("written", "stop", "text", "num_tokens"),
    [
        pytest.param("a dog", (), "a dog", 6, id="no stop string, the end token counts"),
        pytest.param("a dog. A cat", (".",), "a dog", 6, id="one token"),
        pytest.param("a dog\n\nUSER: no", ("\n\nUSER:",), "a dog", 12, id="several tokens"),
        pytest.param("one two", ("zz", "wo", "tw"), "one ", 6, id="the first to be whole"),
        pytest.param("été là", ("à",), "été l", 9, id="a character of two tokens"),
        pytest.param("a dog", ("cat",), "a dog", 6, id="never written"),
        pytest.param(".a", (".",), "", 1, id="nothing before it"),
        pytest.param("a<pad>b<pad>c!", ("bc",), "abc!", 7, id="special tokens in between stand for their names"),
        pytest.param("a<pad>b<pad>c!", ("b<pad>c",), "a", 5, id="a special token amid a stop text"),
        pytest.param("a b<pad>\nc", ("<pad>\n",), "a b", 5, id="one before other text"),
        pytest.param("a b<user>", ("b<user>", "<user>"), "a ", 4, id="the one that begins first"),
        pytest.param("a b<user>c", ("r>c",), "a b", 5, id="a special token's name in part"),
    ],
)
def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(oracle, written, stop, text, num_tokens):
    generation = completed(oracle, written, stop=stop)
    assert (generation.text, generation.num_generated_tokens) == (text, num_tokens)
    assert generation.finish_reason == "stop"


def test_a_stop_string_before_min_new_tokens_is_text(oracle):
    assert completed(oracle, "a.bcd.e", stop=(".",), min_new_tokens=4).text == "a.bcd"
    assert completed(oracle, "a.bcde", stop=(".",), min_new_tokens=4).text == "a.bcde"


def test_a_stop_string_before_min_new_tokens_is_text_in_an_answer_without_more_room(oracle):
    generation = completed(oracle, "ab.", max_new_tokens=3, end=False, stop=(".",), min_new_tokens=4)
    assert (generation.text, generation.finish_reason) == ("ab.", "length")


def test_the_last_token_allowed_may_still_be_the_stop(oracle):
    assert completed(oracle, "ab.", max_new_tokens=3, stop=(".",)).finish_reason == "stop"
    assert completed(oracle, "abc", max_new_tokens=3, end=False, stop=(".",)).finish_reason == "length"


def test_an_end_token_that_is_ignored_ends_nothing(oracle):
    generation = completed(oracle, "a</s>b", max_new_tokens=3, end=False, ignore_eos=True)
    assert (generation.text, generation.finish_reason) == ("ab", "length")


def test_a_token_after_the_end_changes_nothing(oracle):
    generation = completed(oracle, "abcdef", max_new_tokens=3)
    assert (generation.text, generation.num_generated_tokens, generation.mean_logprob) == ("abc", 3, -0.5)


def test_a_stop_string_that_is_a_special_token_ends_answers_by_its_id():
    model = load_model(str(checkpoint()), replace(FP32, sampling=Sampling(stop=("<user>", "."))))
    assert model.stop_ids == (EOS, model.tokenizer.convert_tokens_to_ids("<user>"))


def test_the_engine_stops_one_row_at_its_stop_string_and_lets_the_others_go_on(oracle):
    samples = [oracle.sample(question) for question in mixed_questions()]
    whole = [answer.text for answer in Engine(oracle.with_text, FP32).generate(samples)]
    stop = next(letter for letter in whole[0][1:] if letter not in "".join(whole[1:]) and letter != "\ufffd")
    settings = replace(FP32, sampling=Sampling(stop=(stop,)))
    answers = list(Engine(oracle.with_text, settings).generate(samples))
    assert [answer.text for answer in answers] == [whole[0].split(stop)[0], *whole[1:]]
    assert [answer.finish_reason for answer in answers] == ["stop"] + ["length"] * (len(whole) - 1)


class Unreadable(Spelled):
    """A vocabulary whose own code raises over answers that begin with one token."""

    def __init__(self, token_id: int, error: type[BaseException] = OverflowError) -> None:
        self.token_id, self.error = token_id, error

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        if token_ids[:1] == [self.token_id]:
            raise self.error("no such piece")
        return super().decode(token_ids, skip_special_tokens)


class Panic(BaseException):
    """As a library that is written in Rust raises it: no Exception."""


@pytest.mark.parametrize("error", [OverflowError, Panic])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(cut_repetition=True), Sampling(stop=("###",))])
def test_what_a_vocabulary_raises_over_one_answer_is_that_rows_error(oracle, sampling, error) -> None:
    samples = [oracle.sample(question) for question in mixed_questions()]
    whole = [str(answer.text) for answer in oracle.engine().generate(samples)]
    first = int(whole[0].split()[0])
    broken = Unreadable(first, error)
    broken.backend_tokenizer = oracle.with_text.tokenizer.backend_tokenizer
    answers = list(Engine(replace(oracle.model, tokenizer=broken), replace(FP32, sampling=sampling)).generate(samples))
    for answer, text in zip(answers, whole, strict=True):
        if text.split()[0] == str(first):
            assert (answer.status, answer.error_stage, answer.error_type) == ("error", "generate", "Undecodable")
            assert str(answer.error_message).endswith(f"it raised {error.__name__}: no such piece")
        else:
            assert (answer.status, answer.text) == ("ok", text)
    assert {answer.status for answer in answers} == {"ok", "error"}
