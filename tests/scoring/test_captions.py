import importlib.util
import random
import shutil

import pytest

from pipeline.scoring.captions import add_up_bleu, bleu, bleu_counts, cider_d, ngram_frequencies, rouge_l
from pipeline.scoring.words import java_words, plain_words

JAVA = pytest.mark.skipif(
    not (importlib.util.find_spec("pycocoevalcap") and shutil.which("java")),
    reason="java or pycocoevalcap is not installed",
)
DOG, CAT = ["two", "dogs", "run", "on", "the", "grass"], ["a", "cat", "sleeps", "on", "a", "red", "chair"]
FREQUENCIES = ngram_frequencies([[DOG], [CAT]])


def test_the_truth_itself_scores_10_and_anything_else_0() -> None:
    assert cider_d(DOG, [DOG], FREQUENCIES) == pytest.approx(10)
    assert cider_d(CAT, [DOG], FREQUENCIES) == 0
    assert cider_d([], [DOG], FREQUENCIES) == 0


def test_a_word_that_every_image_has_is_worth_nothing() -> None:
    assert cider_d(["on"], [DOG], FREQUENCIES) == 0


def test_one_image_alone_scores_0_because_no_word_is_rare() -> None:
    assert cider_d(DOG, [DOG], ngram_frequencies([[DOG]])) == 0


def test_an_ngram_counts_once_an_image() -> None:
    frequencies = ngram_frequencies([[["a", "a"], ["a"]], [["a", "b"]]])
    assert frequencies.num_images == 2
    assert frequencies.counts == {("a",): 2, ("b",): 1, ("a", "a"): 1, ("a", "b"): 1}


def test_bleu_counts_words_as_often_as_one_caption_has_them() -> None:
    counts = bleu_counts(["the", "the", "the", "the"], [["the", "cat"], ["the", "the", "mat"]])
    assert (counts.right[0], counts.said[0]) == (2, 4)
    assert bleu(counts)[0] == pytest.approx(1 / 2)


def test_bleu_of_a_corpus_is_of_its_sums_and_short_answers_are_penalised() -> None:
    short, whole = bleu_counts(DOG[:4], [DOG]), bleu_counts(CAT, [CAT])
    assert bleu(add_up_bleu([short, whole]))[0] == pytest.approx(2.718281828459045 ** (1 - 13 / 11))
    assert bleu(whole) == pytest.approx((1, 1, 1, 1))


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        pytest.param(DOG, 1, id="equal"),
        pytest.param(DOG[:3], 2.44 * 0.5 / (0.5 + 1.44), id="half of the words, in order"),
        pytest.param(DOG[::-1], 1 / 6, id="backwards only one is in order"),
        pytest.param([], 0, id="nothing"),
    ],
)
def test_rouge_l_is_of_the_longest_common_subsequence(answer: list[str], score: float) -> None:
    assert rouge_l(answer, [DOG]) == pytest.approx(score)


def test_scores_stay_between_0_and_10_or_1() -> None:
    draw = random.Random(0)
    truths = [[draw.choices("abcdefg", k=draw.randint(1, 9)) for _ in range(3)] for _ in range(60)]
    frequencies = ngram_frequencies(truths)
    for captions in truths:
        answer = draw.choices("abcdefg", k=draw.randint(0, 9))
        assert 0 <= cider_d(answer, captions, frequencies) <= 10
        assert 0 <= rouge_l(answer, captions) <= 1
        assert all(0 <= one <= 1 for one in bleu(bleu_counts(answer, captions)))


WORDS = [
    ("A man's dog isn't on the table.", "a man 's dog is n't on the table"),
    ("It costs $5.50, or 10% more!", "it costs $ 5.50 or 10 % more"),
    ('"Stop" sign (red) at 5 o\'clock', "stop sign -lrb- red -rrb- at 5 o'clock"),
    ("can't cannot won't", "ca n't can not wo n't"),
    ("A black-and-white photo; two-story house...", "a black-and-white photo two-story house"),
    ("A U.S. flag at 10 a.m. by Mr. Smith", "a u.s. flag at 10 a.m. by mr. smith"),
    ("1990s & 2,000 people, 1/2 cup, 12:30pm, the 19th", "1990s & 2,000 people 1/2 cup 12:30 pm the 19th"),
    ("they're we've I'd she'll", "they 're we 've i 'd she 'll"),
    ("", ""),
    ("No. Really?!", "no really ?!"),
    ("a 3-tier cake, a 1-year-old and a 3-D 747-400", "a 3-tier cake a 1-year-old and a 3-d 747-400"),
    ("a 1,000-foot or 3.5-inch T-shirt from the '60s", "a 1,000-foot or 3.5-inch t-shirt from the '60s"),
    ("a “big” dog — happy – asleep… 10–12", "a big dog happy asleep 10 12"),
]
PLAIN = "a the dog cat man woman riding on with red blue bus street near sitting two three white plate"
HARD = """
3-tier 2-story 4-way 50-yard 18-wheeler 1-year-old 3-D 747-400 B-52 F-16 3.5-inch 1,000-foot 1950's 1950s-style
two-year-old 8x10 4x4 1990-95 10–12 5:30 12:30pm 3rd 1st-floor 50% $5 #5 1/2 T-shirt 7-Eleven U.S. p.m. don't it's
man's o'clock mother-in-law's “big” ‘big’ "big" (big) big/small A&W — – … -- ... ! , ; : & St. Mr. 24/7 2-for-1
20-something 5-foot-tall 2,000-pound 3-in-1 4-H mid-air pre-1950 3ft 10am café Coca-Cola -5 1-on-1 17-inch, 3-D.
big— big–small word…word it’s '60s rock'n'roll 30-40 5-piece
"""


def captions_of(seed: int, count: int) -> list[str]:
    """Captions of plain words with two that a tokeniser may trip over."""
    draw = random.Random(seed)
    chosen = [[*draw.choices(PLAIN.split(), k=6), *draw.choices(HARD.split(), k=2)] for _ in range(count)]
    return [" ".join(draw.sample(words, k=len(words))) + draw.choice(("", " dog.", " .")) for words in chosen]


@pytest.mark.parametrize(("text", "words"), WORDS)
def test_captions_are_cut_into_words_much_as_the_penn_treebank_does(text: str, words: str) -> None:
    assert " ".join(plain_words(text)) == words


@JAVA
def test_java_cuts_these_captions_the_same_way() -> None:
    assert [" ".join(words) for words in java_words([text for text, _ in WORDS])] == [words for _, words in WORDS]


@JAVA
def test_java_cuts_three_hundred_captions_the_same_way() -> None:
    captions = captions_of(seed=0, count=300)
    assert [plain_words(text) for text in captions] == java_words(captions)
