"""Words of captions, in lower case and without punctuation, as CIDEr, BLEU and ROUGE-L count them.

`plain_words` is our own, close to the Penn Treebank tokeniser that published numbers were made with, but not that;
`java_words` is that one, where pycocoevalcap and Java are installed.
"""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from schemas.packages import install_line

_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_WORD = re.compile(
    r"""
    [a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+      # an address
    | (?:[a-z]\.){2,}                               # u.s., a.m.
    | (?:mr|mrs|ms|dr|st|vs|etc|jr|sr|prof|ave|blvd|inc|co|ltd|no(?=\.\s*\d))\.
    | \d+:\d+                                       # 12:30pm is two words, 19th is one
    | \d+(?:,\d{3})+(?=-[^\W\d_])(?:-[^\W_]+)+          # 1,000-foot
    | (?<!\w)'\d+s(?!\w)                             # '60s
    | (?:(?<!\w)[+-])?\d++(?:[,.:/-]\d++)*+(?!-?[^\W\d_])  # 3.5, 1,000, 1/2, 1990-95, -2
    | n't | 'n'(?=[^\W_]) | '(?:s|m|d|ll|re|ve)(?!\w)
    | [^\W_]+?(?=n't(?!\w)|'n'[^\W_])                # do of don't, rock of rock'n'roll
    | [^\W_]+(?:[-&_/.](?=[^\W_])[^\W_]+)*(?:'(?!(?:s|m|d|ll|re|ve)(?!\w))[^\W_]+)*
    | '' | `` | \.\.\. | -- | [?!]{2,} | \*+ | \S
    """,
    re.VERBOSE,
)
_PARTED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
}
_PLAIN = str.maketrans(
    {"\u2019": "'", "\u2018": "`", '"': " '' ", "\u201c": " '' ", "\u201d": " '' ", "\u2026": " ... "}
    | dict.fromkeys("\u2013\u2014", " -- ")
)
_SPELT = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def plain_words(text: str) -> tuple[str, ...]:
    """Return the words of one caption by rules of our own; brackets are spelt out, as the original leaves them in."""
    said = text.lower().translate(_PLAIN)
    found: list[str] = []
    for word in _WORD.findall(said):
        found += _PARTED.get(word, (_SPELT.get(word, word),))
    return tuple(word for word in found if word not in _DROPPED)


def java_words(texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the words of many captions by the Stanford tokeniser of pycocoevalcap, in one run of Java."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations or shutil.which("java") is None:
        raise ValueError(f"words by Java need java and pycocoevalcap, which {install_line('captions')} installs")
    (jar,) = Path(package.submodule_search_locations[0], "tokenizer").glob("stanford-corenlp-*.jar")
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = "\n".join(" ".join(text.split()) for text in texts)
    done = subprocess.run(
        [*command, "-encoding", "utf-8"], input=lines.encode(), capture_output=True, check=True, timeout=3600
    )
    found = done.stdout.decode().split("\n")[: len(texts)]
    if len(found) != len(texts):
        raise ValueError(f"the tokeniser must give a line for each of {len(texts)} captions, got {len(found)}")
    return [tuple(word for word in line.split() if word not in _DROPPED) for line in found]
