"""Questions of one's own: a JSONL or CSV file, or several, that name images beside them.

Fields: id, image (a path relative to the file, an absolute one or a URL; or a list of them), question,
answer (a text, or a list of all that are accepted), metric (one of METRICS; `exact_match` where there is none),
options (a list, for `choice`; the answer is then a letter), split. In a CSV a list is written as JSON.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jobs.benchmarks.prompts import fill
from jobs.benchmarks.rows import files_of
from pipeline.scoring.anls import anls, anls_lenient
from pipeline.scoring.choice import LETTERS, inferred_letter, lettered
from pipeline.scoring.exact import exact_match, folded_match
from pipeline.scoring.ocrbench import contains_answer
from pipeline.scoring.pope import said
from pipeline.scoring.reading import nothing_read, read_against
from pipeline.scoring.relaxed import relaxed_match
from pipeline.scoring.vqa import m4c_accuracy, vqa_accuracy
from pipeline.storage import filesystem as fs
from schemas.benchmark import Benchmark, Judged, Numbers, Question, Reference, Summary
from schemas.errors import Refused

_SUFFIXES = (".jsonl", ".csv")
_DEFAULT = "exact_match"
_FIELDS = ("id", "image", "question", "answer", "metric", "options", "split")


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question} and {options}."""
    for file in files_of(path, _SUFFIXES, f"files that end in {' or '.join(_SUFFIXES)}"):
        lines = _csv_lines if file.url.lower().endswith(".csv") else _json_lines
        for number, fields in enumerate(lines(file.url), 1):
            where = f"{file.url}, row {number}"
            _check(fields, where)
            images = [_image(name, file.url, where) for name in _texts(fields["image"])]
            yield _question(fields, images, prompt)


def judge(question: Question, answer: str) -> Judged:
    """Return the score by the question's own metric; an empty answer is wrong by all of them."""
    truth = question.reference
    if not answer.strip():
        return question.judged(0.0, None, _reading_counts(truth, ""))
    score = METRICS[truth.kind or _DEFAULT](answer, truth)
    return question.judged(score or 0.0, None if score is None else answer.strip(), _reading_counts(truth, answer))


def _scores_and_edits(group: Sequence[Judged]) -> list[float]:
    read = [one.counts for one in group if one.counts]
    edits = [sum(counts[index] for counts in read) for index in range(4)]
    return [sum(one.score for one in group), len(read), *edits]


def _score_and_rates(rows: Numbers, scores: Numbers, read: Numbers, *edits: Numbers) -> dict[str, Numbers]:
    """Return the mean score; the character and word error rates of all texts that were read together, where some
    were."""
    character_edits, num_characters, word_edits, num_words = edits
    return {
        "score": scores / rows,
        "cer": np.where(read > 0, character_edits / np.maximum(1, num_characters), np.nan),
        "wer": np.where(read > 0, word_edits / np.maximum(1, num_words), np.nan),
    }


def _score(rows: Numbers, scores: Numbers, *_: Numbers) -> dict[str, Numbers]:
    return {"score": scores / rows}


def _letter(answer: str, truth: Reference) -> float | None:
    letter = inferred_letter(answer, truth.options)
    return None if letter is None else float(letter == truth.answers[0])


def _yes_or_no(answer: str, truth: Reference) -> float:
    return float(said(answer) == truth.answers[0])


def _characters_right(answer: str, truth: Reference) -> float:
    return max(0.0, 1 - read_against(truth.answers[0], answer).cer)


METRICS: Mapping[str, Callable[[str, Reference], float | None]] = {
    "exact_match": lambda answer, truth: float(exact_match(answer, truth.answers)),
    "folded_match": lambda answer, truth: float(folded_match(answer, truth.answers)),
    "contains": lambda answer, truth: float(contains_answer(answer, truth.answers)),
    "vqa_accuracy": lambda answer, truth: vqa_accuracy(answer, truth.answers),
    "m4c_accuracy": lambda answer, truth: m4c_accuracy(answer, truth.answers),
    "anls": lambda answer, truth: anls(answer.strip(), truth.answers),
    "anls_lenient": lambda answer, truth: anls_lenient(answer.strip(), truth.answers),
    "relaxed_accuracy": lambda answer, truth: float(relaxed_match(answer.strip(), truth.answers[0])),
    "choice": _letter,
    "yes_no": _yes_or_no,
    "reading": _characters_right,
}


def _reading_counts(truth: Reference, answer: str) -> tuple[float, ...]:
    if truth.kind != "reading":
        return ()
    row = read_against(truth.answers[0], answer) if answer.strip() else nothing_read(truth.answers[0])
    return (row.character_edits, row.num_characters, row.word_edits, row.num_words)


def _question(fields: Mapping[str, Any], images: Sequence[bytes], prompt: str) -> Question:
    options = _texts(fields.get("options"))
    return Question(
        id=str(fields["id"]),
        prompt=fill(prompt, {"question": str(fields["question"]), "options": lettered(options)}),
        images=tuple(images),
        reference=Reference(answers=_texts(fields["answer"]), options=options, kind=fields.get("metric") or _DEFAULT),
        split=fields.get("split") or None,
    )


def _check(fields: Mapping[str, Any], where: str) -> None:
    for name in fields:
        if name not in _FIELDS:
            raise Refused(f"{where}: fields must be among {', '.join(_FIELDS)}, got {name!r}")
    for name in ("id", "image", "question", "answer"):
        if fields.get(name) in (None, "", []):
            raise Refused(f"{where}: {name} must be given, got {fields.get(name)!r}")
    metric = fields.get("metric") or _DEFAULT
    if metric not in METRICS:
        raise Refused(f"{where}: metric must be one of {', '.join(METRICS)}, got {metric!r}")
    allowed = {"choice": LETTERS[: len(_texts(fields.get("options")))], "yes_no": ("yes", "no")}.get(metric)
    answer = _texts(fields["answer"])[0]
    if allowed is not None and answer not in tuple(allowed):
        raise Refused(f"{where}: answer must be one of {', '.join(allowed) or 'the options'}, got {answer!r}")


def _texts(cell: object) -> tuple[str, ...]:
    """Return one text, or a list of them; numbers are texts."""
    if cell is None or cell == "":
        return ()
    return tuple(map(str, cell)) if isinstance(cell, list) else (str(cell),)


def _image(name: str, file_url: str, where: str) -> bytes:
    folder = file_url.rpartition("/")[0]
    url = f"{folder}/{name}" if folder and "://" not in name and not name.startswith("/") else name
    try:
        return fs.read_bytes(url)
    except OSError as error:
        raise Refused(f"{where}: image {name} cannot be read: {error}") from error


def _json_lines(url: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(fs.read_bytes(url).decode().split("\n"), 1):
        if line.strip():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise Refused(f"{url}, line {number} must be a JSON object: {error}") from error
            if not isinstance(fields, dict):
                raise Refused(f"{url}, line {number} must be a JSON object, got {line!r}")
            yield fields


def _csv_lines(url: str) -> Iterator[Mapping[str, Any]]:
    text = io.StringIO(fs.read_bytes(url).decode("utf-8-sig"), newline="")
    for row in csv.DictReader(text, restkey="a cell that has no header"):
        yield {name: _listed(cell) for name, cell in row.items()}


def _listed(cell: object) -> object:
    """Return a cell's texts: a JSON list is one, any other cell is text."""
    if not isinstance(cell, str) or not cell.startswith("["):
        return cell
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return cell


OWN = Benchmark(
    name="own",
    data="questions.jsonl",
    prompt="{question}\n{options}",
    max_new_tokens=256,
    ask=ask,
    judge=judge,
    summarise=Summary(add=_scores_and_edits, numbers=_score_and_rates, split_numbers=_score),
)
