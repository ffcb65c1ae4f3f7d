"""Multiple choice: which letter an answer gives, by rule and never by chance; None where it gives none."""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase, punctuation

LETTERS = ascii_uppercase
# What VLMEvalKit looks for, letter by letter.
_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_PUNCTUATION = str.maketrans("", "", punctuation)


def lettered(options: Sequence[str]) -> str:
    """Return the options as they are asked: a line each, after its letter and a full stop."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def lettered_if_there(options: Sequence[str]) -> str:
    """Return the same without those that are empty; the others keep the letters of their positions."""
    return "\n".join(f"{letter}. {option}" for letter, option in _those_there(options).items())


def scienceqa_letter(answer: str, num_options: int) -> str | None:
    """Find the letter as LLaVA's eval_science_qa.py: "B", "B. because", or one "The answer is B."; A to E, and one of
    the options."""
    if answer in tuple(LETTERS[:5]):
        letter = answer
    elif len(answer) >= 3 and answer[0] in LETTERS[:5] and answer[1:3] == ". ":
        letter = answer[0]
    else:
        found = re.findall(r"The answer is ([A-Z]).", answer)
        letter = found[0] if len(found) == 1 else ""
    return letter if letter in tuple(LETTERS[: min(5, num_options)]) else None


def leading_letter(answer: str, num_options: int) -> str | None:
    """Find the letter as lmms-eval's AI2D: "B." at the beginning, or nothing but "B", in any case and with any ASCII
    punctuation."""
    stripped = answer.strip()
    start = re.match(r"([A-Z])\.", stripped)
    letter = start.group(1) if start else stripped.translate(_PUNCTUATION).upper()
    return letter if letter in tuple(LETTERS[:num_options]) else None


def first_letter(answer: str, num_options: int) -> str | None:
    """Find the letter as lmms-eval's SEED-Bench: the first character, in any case, so "Because" is B."""
    letter = answer.strip()[:1].upper()
    return letter if letter in tuple(LETTERS[:num_options]) else None


def inferred_letter(answer: str, options: Sequence[str]) -> str | None:
    """Find the letter as VLMEvalKit's can_infer for MMBench: the one letter among the last words, or the one option
    that is named.

    An empty option is none: its letter is a word like any other. A refusal, and the Z that stands for one where no
    letter of an option does, is None whatever else is said. Of the rest MMBench's own server asks a language model;
    here they are None.
    """
    there = _those_there(options)
    if _FAILED in answer:
        return _option_named(answer, there)
    if any(phrase in answer for phrase in _REFUSALS) or _is_none_of(answer, there):
        return None
    return _letter_alone(answer, there) or _option_named(answer, there)


def mmmu_letter(answer: str, options: Sequence[str]) -> str | None:
    """Find the letter as MMMU's parse_multi_choice_response, except where that draws a letter by lot: None.

    "(B)" before " B ", and before an option's text in more than five words; of several the last.
    """
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    said = f" {answer} "
    letters = LETTERS[: len(options)]
    for shape in ("({})", " {} "):
        positions = {letter: said.rfind(shape.format(letter)) for letter in letters}
        if max(positions.values()) >= 0:
            return max(positions, key=lambda letter: positions[letter])
    if len(said.split()) <= 5:
        return None
    positions = {letter: said.lower().rfind(option.lower()) for letter, option in zip(letters, options, strict=True)}
    return max(positions, key=lambda letter: positions[letter]) if max(positions.values()) >= 0 else None


def _those_there(options: Sequence[str]) -> dict[str, str]:
    """Return the options that have a text, by their letters."""
    return {letter: option for letter, option in zip(LETTERS, options, strict=False) if option}


def _is_none_of(answer: str, options: Mapping[str, str]) -> bool:
    words = _words(answer)
    return "Z" in words and not set(words) & set(options)


def _words(answer: str) -> list[str]:
    return re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()


def _letter_alone(answer: str, options: Mapping[str, str]) -> str | None:
    words = _words(answer)
    found = [letter for letter in options if letter in words]
    if len(found) == 1 and words.index(found[0]) > len(words) - 5:
        return found[0]
    stated = re.search(r"answer\s+is\s+\**([ABCD])\**", answer, re.IGNORECASE)
    letter = stated.group(1).upper() if stated else ""
    return letter if letter in options else None


def _option_named(answer: str, options: Mapping[str, str]) -> str | None:
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    found = [letter for letter, option in options.items() if option.lower() in answer.lower()]
    return found[0] if len(found) == 1 else None
