"""Reading: character and word error rates of transcriptions, counted by jiwer, a row at a time or for a corpus."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Normalisation = Literal["exact", "spaces", "words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Distance of one transcription, or of many together, from its truth: insertions, deletions and replacements."""

    character_edits: int
    num_characters: int  # of the truth
    word_edits: int
    num_words: int  # of the truth

    @property
    def cer(self) -> float:
        """Return the character edits a character of truth; may exceed 1. An empty truth counts as one character."""
        return self.character_edits / max(1, self.num_characters)

    @property
    def wer(self) -> float:
        """Return the word edits a word of truth; may exceed 1. An empty truth counts as one word."""
        return self.word_edits / max(1, self.num_words)


def read_against(truth: str, answer: str, normalisation: Normalisation = "spaces") -> Reading:
    """Compare one transcription with its truth, both normalised alike."""
    import jiwer  # an extra, see packages.py

    truth, answer = normalised(truth, normalisation), normalised(answer, normalisation)
    characters = jiwer.process_characters(truth, answer)
    # jiwer splits words at single spaces: a line break would glue two of them
    words = jiwer.process_words(" ".join(truth.split()), " ".join(answer.split()))
    return Reading(
        character_edits=characters.substitutions + characters.deletions + characters.insertions,
        num_characters=characters.hits + characters.substitutions + characters.deletions,
        word_edits=words.substitutions + words.deletions + words.insertions,
        num_words=words.hits + words.substitutions + words.deletions,
    )


def nothing_read(truth: str, normalisation: Normalisation = "spaces") -> Reading:
    """Return what an answer that failed comes to: all of its truth is missing, and of an empty one a character and a
    word, for what was never read is not right."""
    found = read_against(truth, "", normalisation)
    return replace(found, character_edits=max(1, found.character_edits), word_edits=max(1, found.word_edits))


def add_up(readings: Iterable[Reading]) -> Reading:
    """Return the corpus: all edits over all truth, so a long row weighs more; what is read into an empty truth
    counts."""
    rows = list(readings)
    return Reading(
        character_edits=sum(row.character_edits for row in rows),
        num_characters=sum(row.num_characters for row in rows),
        word_edits=sum(row.word_edits for row in rows),
        num_words=sum(row.num_words for row in rows),
    )


def normalised(text: str, normalisation: Normalisation) -> str:
    """Normalise a text. `exact`: only the ends are stripped. `spaces`: NFC, and any white space is one space.

    `words`: that, in lower case (case-folded) and without punctuation, which separates words only where space does.
    """
    if normalisation == "exact":
        return text.strip()
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if normalisation == "spaces":
        return text
    kept = (letter for letter in text.casefold() if not unicodedata.category(letter).startswith("P"))
    return " ".join("".join(kept).split())
