"""Scores of a thousand random answers are those of the original programs.

What those gave is written down as a sum and a digest: GT-Vision-Lab/VQA at a013f00, haotian-liu/LLaVA at c121f04,
google-research/pix2struct at 945f27e, EvolvingLMMs-Lab/lmms-eval at 75571cf, MMMU-Benchmark/MMMU at bb0b95a with its
lottery taken out, open-compass/VLMEvalKit at e8e78f0, RUCAIBox/POPE at 3df3ba1 and pycocoevalcap 1.2. Where a package
of theirs is installed it is asked again:

    pip install --no-deps pycocoevalcap==1.2 llava-torch==1.2.2.post1 lmms-eval==0.7.3
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.scoring.anls import anls, anls_lenient
from pipeline.scoring.captions import add_up_bleu, bleu, bleu_counts, cider_d, ngram_frequencies, rouge_l
from pipeline.scoring.choice import LETTERS, inferred_letter, mmmu_letter
from pipeline.scoring.mmmu import open_match
from pipeline.scoring.pope import said
from pipeline.scoring.relaxed import relaxed_match
from pipeline.scoring.vqa import m4c_accuracy, vqa_accuracy
from tests.scoring import random_answers
from tests.scoring.random_answers import Pair

COCO = pytest.mark.skipif(not importlib.util.find_spec("pycocoevalcap"), reason="pycocoevalcap is not installed")
LLAVA = pytest.mark.skipif(not importlib.util.find_spec("llava"), reason="llava-torch is not installed")
LMMS_EVAL = pytest.mark.skipif(not importlib.util.find_spec("lmms_eval"), reason="lmms-eval is not installed")


def place(letter: str | None) -> int:
    return -1 if letter is None else LETTERS.index(letter)


def cider_scores(pairs: Iterable[Pair]) -> list[float]:
    rows = [(pair.answer.split(), [text.split() for text in pair.truths]) for pair in pairs]
    frequencies = ngram_frequencies(captions for _, captions in rows)
    return [cider_d(answer, captions, frequencies) for answer, captions in rows]


def each(score: Callable[[str, Sequence[str]], float]) -> Callable[[Iterable[Pair]], list[float]]:
    return lambda pairs: [score(pair.answer, pair.truths) for pair in pairs]


OURS = {
    "vqa_accuracy": (each(vqa_accuracy), random_answers.annotated),
    "m4c_accuracy": (each(m4c_accuracy), random_answers.annotated),
    "anls": (each(anls), random_answers.short_texts),
    "anls_lenient": (each(anls_lenient), random_answers.short_texts),
    "relaxed_match": (each(lambda answer, truths: relaxed_match(answer, truths[0])), random_answers.numbers),
    "mmmu_letter": (each(lambda answer, options: place(mmmu_letter(answer, options))), random_answers.choices),
    "inferred_letter": (each(lambda answer, options: place(inferred_letter(answer, options))), random_answers.choices),
    "open_match": (each(open_match), random_answers.open_questions),
    "said": (each(lambda answer, _: said(answer) == "yes"), random_answers.yes_or_no),
    "cider_d": (cider_scores, random_answers.captions),
    "rouge_l": (
        each(lambda answer, truths: rouge_l(answer.split(), [text.split() for text in truths])),
        random_answers.captions,
    ),
}


@pytest.mark.parametrize(
    ("name", "total", "digest"),
    [
        pytest.param("m4c_accuracy", 561.3, "2d8023c36bfc5ba6", id="m4c_accuracy"),
        pytest.param("vqa_accuracy", 560.3, "47ffa0918d83a5bc", id="vqa_accuracy"),
        pytest.param("anls", 86.1, "2dad435e382d1af1", id="anls"),
        pytest.param("anls_lenient", 182.6, "8138e2cd7175bbe3", id="anls_lenient"),
        pytest.param("relaxed_match", 76, "40b13ad7e0da9a24", id="relaxed_match"),
        pytest.param("mmmu_letter", 369, "890aa0b24e6b02d8", id="mmmu_letter"),
        pytest.param("inferred_letter", -77, "8de6f67246ba752e", id="inferred_letter"),
        pytest.param("open_match", 169, "e56cc85552a2321a", id="open_match"),
        pytest.param("said", 541, "df5948cc64038d23", id="said"),
        pytest.param("cider_d", 427.708038, "bc637ba67540d7cf", id="cider_d"),
        pytest.param("rouge_l", 265.59188, "9cc7faa604855a1d", id="rouge_l"),
    ],
)
def test_a_thousand_scores_are_those_that_the_original_gave(name: str, total: float, digest: str) -> None:
    score, pairs = OURS[name]
    found = score(pairs())
    assert len(found) == random_answers.NUM_ANSWERS
    assert sum(found) == pytest.approx(total, abs=1e-6)
    assert hashlib.sha256(" ".join(f"{float(one):.6f}" for one in found).encode()).hexdigest()[:16] == digest


def test_bleu_of_a_thousand_captions_is_what_the_original_gave() -> None:
    original = (0.495500170192842, 0.14024348962904, 0.03425548270554994, 1.8293645929809661e-06)
    counts = [bleu_counts(p.answer.split(), [text.split() for text in p.truths]) for p in random_answers.captions()]
    assert bleu(add_up_bleu(counts)) == pytest.approx(original)


@COCO
def test_captions_score_as_pycocoevalcap_scores_them() -> None:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truths = {number: list(pair.truths) for number, pair in enumerate(random_answers.captions())}
    answers = {number: [pair.answer] for number, pair in enumerate(random_answers.captions())}
    for name, original in (("cider_d", Cider()), ("rouge_l", Rouge())):
        score, pairs = OURS[name]
        assert score(pairs()) == pytest.approx(list(original.compute_score(truths, answers)[1]), abs=1e-12)


@COCO
def test_bleu_is_that_of_pycocoevalcap_for_the_corpus_and_for_each_caption() -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    pairs = random_answers.captions()
    counts = [bleu_counts(pair.answer.split(), [text.split() for text in pair.truths]) for pair in pairs]
    truths = {number: list(pair.truths) for number, pair in enumerate(pairs)}
    answers = {number: [pair.answer] for number, pair in enumerate(pairs)}
    corpus, each_caption = Bleu(4).compute_score(truths, answers, verbose=0)
    assert bleu(add_up_bleu(counts)) == pytest.approx(corpus)
    assert [bleu(one) for one in counts] == [pytest.approx(some) for some in zip(*each_caption, strict=True)]


@LLAVA
def test_textvqa_accuracy_is_that_of_llavas_evaluator() -> None:
    original = load("llava", "eval/m4c_evaluator.py").TextVQAAccuracyEvaluator()
    for pair in random_answers.annotated():
        scores = original._compute_answer_scores(list(pair.truths))
        expected = scores.get(original.answer_processor(pair.answer), 0.0)
        assert m4c_accuracy(pair.answer, pair.truths) == pytest.approx(expected), pair


@LLAVA
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its file open
def test_yes_and_no_are_those_of_llavas_pope(tmp_path: Path) -> None:
    pairs = list(random_answers.yes_or_no())
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(f'{{"label": "{pair.truths[0]}"}}\n' for pair in pairs))
    answers = [{"text": pair.answer} for pair in pairs]
    load("llava", "eval/eval_pope.py").eval_pope(answers, labels)
    assert [said(pair.answer) for pair in pairs] == [answer["text"] for answer in answers]


@LMMS_EVAL
def test_relaxed_accuracy_is_that_of_lmms_eval() -> None:
    original = load("lmms_eval", "tasks/chartqa/utils.py").relaxed_correctness
    for pair in random_answers.numbers():
        assert relaxed_match(pair.answer, pair.truths[0]) == original(pair.answer, pair.truths[0]), pair


def load(package: str, path: str) -> ModuleType:
    """One file of an installed package, without its package, which wants another torch."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    file = importlib.util.spec_from_file_location("original", Path(spec.submodule_search_locations[0], path))
    assert file is not None
    assert file.loader is not None
    module = importlib.util.module_from_spec(file)
    file.loader.exec_module(module)
    return module
