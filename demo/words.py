"""What is printed: lines of words, numbers, prices, dates and codes, of at most 24 characters."""

import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_LINE = 24
# Stems of words that have no place in a picture that people are shown.
_UNWANTED = re.compile(
    r"sex|fuck|shit|cunt|nig|rap(e|is)|whor|slut|bitch|bastard|porn|nazi|kill|murd|gay|lesb|homo|hell|damn|asse?$|ars|piss"
    r"|cock|dick|tit|breast|penis|vagi|nud|nak|drug|suic|terr|jew|quee|crap|boob|fag|cum|dyk|negr|reta|crip|idio|stup|moro"
    r"|prosti|gods?$|gun|bomb|corps|abort|blood|dea[dt]|die|hate|victim|slave|weap|war$|tort|assau|abus|bugg|virgin|viol|thrust|oppress|infec|atroc|defec|dement|bigot"
)
# Lines of these letters alone look the same in small and capital letters.
_SAME_IN_BOTH_CASES = frozenset("cosuvwxzCOSUVWXZ")
_CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # without I and O, which many faces draw as 1 and 0
_CODE_DIGITS = "23456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicon:
    """The words a picture may show."""

    words: tuple[str, ...]


def is_held_out(word: str) -> bool:
    """One word in eight, whatever its capitals, is kept from training."""
    return zlib.crc32(word.lower().encode()) % 8 == 0


def read_lexicon(files: Sequence[Path], held_out: bool) -> Lexicon:
    """The wanted words of 2 to 12 letters of some word lists, one a line: those held out, or the others."""
    lines = {line.strip() for file in files for line in file.read_text("latin-1").splitlines()}
    wanted = [w for w in lines if re.fullmatch(r"[a-z]{2,10}('[a-z]{1,2})?", w) and not _UNWANTED.search(w)]
    words = tuple(sorted(w for w in wanted if is_held_out(w) == held_out))
    if not words:
        raise ValueError(f"the word lists must hold words of 2 to 12 letters, {', '.join(map(str, files))} hold none")
    return Lexicon(words=words)


def make_line(rng: random.Random, lexicon: Lexicon, limit: int) -> str:
    """A line of 1 to `limit` characters, no blank at its ends and none doubled."""
    makers: tuple[Callable[[random.Random, Lexicon, int], str], ...]
    makers = (_words, _words, _words, _sentence, _item, _numbers, _code)
    for _ in range(20):
        line = rng.choice(makers)(rng, lexicon, rng.randint(1, limit))
        if 0 < len(line) <= limit and not is_ambiguous(line):
            return line
    return str(rng.randint(2, 9))


def is_ambiguous(line: str) -> bool:
    """Whether its letters could as well be capitals: nothing in the line gives away their height."""
    return all(c in _SAME_IN_BOTH_CASES or not c.isalnum() for c in line) and any(c.isalpha() for c in line)


def _words(rng: random.Random, lexicon: Lexicon, length: int) -> str:
    return _in_case(rng, _fill(rng, lexicon, length))


def _fill(rng: random.Random, lexicon: Lexicon, length: int) -> str:
    """Words up to about `length` characters; a last one that does not fit is left out."""
    words: list[str] = []
    while sum(map(len, words)) + len(words) < length:
        words.append(rng.choice(lexicon.words))
    if len(words) > 1 and len(" ".join(words)) > length:
        words.pop()
    return " ".join(words)


def _in_case(rng: random.Random, text: str) -> str:
    style = rng.random()
    if style < 0.3:
        return text.upper()
    if style < 0.55:
        return " ".join(word[0].upper() + word[1:] for word in text.split(" "))
    return text if style < 0.8 else text[0].upper() + text[1:]


def _sentence(rng: random.Random, lexicon: Lexicon, length: int) -> str:
    text = _in_case(rng, _fill(rng, lexicon, max(2, length - 2)))
    style = rng.random()
    if style < 0.5:
        return text + rng.choice(".,!?:;.,!?")
    if style < 0.65:
        return rng.choice(('"{}"', "({})", "* {}", "- {}", "'{}'", "# {}", "+ {}", "{} =", "= {}")).format(text)
    words = text.split(" ")
    cut = rng.randrange(len(words))
    words[cut] += rng.choice((",", ":", ";", " &", " /", "-" + rng.choice(lexicon.words), " -", "."))
    return " ".join(words)


def _item(rng: random.Random, lexicon: Lexicon, length: int) -> str:
    """A thing and its price or amount."""
    name = _in_case(rng, _fill(rng, lexicon, max(2, length - 6)))
    amount = rng.choice(("{}", "${}", "{} %", "x{}", "{}x", "{} kg", "{} m", "@{}", "+{}", "={}"))
    value = rng.choice((f"{rng.randint(0, 99)}.{rng.randint(0, 99):02}", str(rng.randint(0, 9999))))
    return rng.choice(("{} {}", "{}: {}", "{} {}", "{}, {}")).format(name, amount.format(value))


def _numbers(rng: random.Random, lexicon: Lexicon, length: int) -> str:
    digits = "".join(rng.choice("0123456789") for _ in range(length))
    forms = (
        digits,
        f"${rng.randint(0, 9999)}.{rng.randint(0, 99):02}",
        f"{rng.randint(1, 28):02}/{rng.randint(1, 12):02}/{rng.randint(1980, 2040)}",
        f"{rng.randint(1980, 2040)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
        f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}",
        f"+{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(1000, 9999)}",
        f"{rng.randint(0, 100)}%",
        f"{rng.randint(1, 999)},{rng.randint(0, 999):03}",
        f"{rng.randint(1, 99)} + {rng.randint(1, 99)} = {rng.randint(2, 198)}",
        f"({rng.randint(100, 999)}) {rng.randint(100, 999)}-{rng.randint(1000, 9999)}",
        f"No. {rng.randint(1, 99999)}",
        f"{rng.randint(-99, 99)}.{rng.randint(0, 9)} C",
        f"{rng.choice(lexicon.words)}@{rng.choice(lexicon.words)}.com",
        f"{rng.choice(lexicon.words)}.{rng.choice(lexicon.words)}/{rng.randint(0, 999)}",
    )
    return rng.choice(forms)


def _code(rng: random.Random, lexicon: Lexicon, length: int) -> str:
    """Letters and digits without sense; a letter that looks like a digit or like its own capital is avoided."""
    letters = rng.choice((_CODE_LETTERS, _CODE_LETTERS, "abdefghijkmnpqrty"))
    groups: list[str] = []
    while sum(map(len, groups)) + len(groups) < length:
        alphabet = rng.choice((letters, _CODE_DIGITS, letters + _CODE_DIGITS))
        groups.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 6))))
    return rng.choice(("-", " ", " ", "/", ".", ":")).join(groups)[:length].strip(" -/.:")
