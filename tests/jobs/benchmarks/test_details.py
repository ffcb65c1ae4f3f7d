"""What single benchmarks do that the others do not."""

import importlib.util
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.benchmarks.chartqa import CHARTQA
from jobs.benchmarks.coco import COCO, published_scores
from jobs.benchmarks.docvqa import DOCVQA
from jobs.benchmarks.gqa import GQA
from jobs.benchmarks.infovqa import INFOVQA
from jobs.benchmarks.mmbench import MMBENCH
from jobs.benchmarks.mmmu import MMMU
from jobs.benchmarks.ocrbench import OCRBENCH
from jobs.benchmarks.own import OWN
from jobs.benchmarks.pope import POPE
from jobs.benchmarks.scienceqa import SCIENCEQA
from jobs.benchmarks.textvqa import TEXTVQA
from jobs.benchmarks.vizwiz import VIZWIZ
from jobs.benchmarks.vqav2 import VQAV2
from schemas.benchmark import Benchmark, Judged, Question, Reference
from tests.jobs.benchmarks import datasets


def judge_all(benchmark: Benchmark, path: str, answers: list[str]) -> list[Judged]:
    return [benchmark.judge(*pair) for pair in zip(benchmark.read(path), answers, strict=True)]


def test_images_alone_in_bytes_are_read_as_structs_are(tmp_path: Path) -> None:
    path = datasets.docvqa(tmp_path)
    table = pq.read_table(path)
    bare = pa.chunked_array([pa.array([b"the bytes of it"])])
    pq.write_table(table.set_column(table.schema.get_field_index("image"), "image", bare), tmp_path / "a.parquet")
    assert next(DOCVQA.read(path)).images == (b"the bytes of it",)


def test_an_image_that_is_not_there_is_an_empty_one(tmp_path: Path) -> None:
    columns = {"questionId": datasets.TEXT, "question": datasets.TEXT, "answers": datasets.TEXTS}
    row = {"questionId": "1", "question": "Why?", "answers": ["so"], "image": None}
    path = datasets.write(tmp_path, [row], {**columns, "image": datasets.IMAGE})
    assert next(DOCVQA.read(path)).images == (b"",)


def test_a_split_with_secret_answers_is_refused(tmp_path: Path) -> None:
    columns = {"questionId": datasets.TEXT, "question": datasets.TEXT, "answers": datasets.TEXTS}
    row = {"questionId": "7", "question": "Why?", "answers": None, "image": datasets.picture("a")}
    path = datasets.write(tmp_path, [row], {**columns, "image": datasets.IMAGE})
    with pytest.raises(ValueError, match="question 7 must have answers; this split keeps them secret"):
        next(DOCVQA.read(path))


def test_vqav2_reports_each_answer_type(tmp_path: Path) -> None:
    judged = judge_all(VQAV2, datasets.vqav2(tmp_path), ["down", "no", "two"])
    assert VQAV2.summarise(judged) == pytest.approx(
        {"vqa accuracy": (1 + 0.9) / 3, "vqa accuracy number": 0.9, "vqa accuracy other": 1, "vqa accuracy yes/no": 0}
    )


def test_gqa_joins_questions_and_images_by_id(tmp_path: Path) -> None:
    questions = list(GQA.read(datasets.gqa(tmp_path)))
    assert [(question.id, question.images) for question in questions] == [
        ("201640614", (b"the bytes of n235859",)),
        ("201307251", (b"the bytes of n161313",)),
        ("201307252", (b"the bytes of n161313",)),
    ]


def test_gqa_counts_both_rules(tmp_path: Path) -> None:
    judged = judge_all(GQA, datasets.gqa(tmp_path), ['"Woman"', "No.", "tree"])
    assert GQA.summarise(judged) == pytest.approx({"exact match": 1 / 3, "exact match folded": 2 / 3})


def test_a_gqa_question_without_its_image_is_refused(tmp_path: Path) -> None:
    path = datasets.gqa(tmp_path)
    (tmp_path / "testdev_balanced_images" / "testdev-00000-of-00001.parquet").unlink()
    columns = {"id": datasets.TEXT, "image": datasets.IMAGE}
    rows = [{"id": "n235859", "image": datasets.picture("n235859")}]
    datasets.write(tmp_path, rows, columns, "testdev_balanced_images/a.parquet")
    with pytest.raises(ValueError, match="must have its image, 1 images are missing, as 'n161313'"):
        list(GQA.read(path))


def test_docvqa_counts_both_rules_at_a_distance_of_one_half(tmp_path: Path) -> None:
    judged = judge_all(DOCVQA, datasets.docvqa(tmp_path), ["0.99"])
    assert DOCVQA.summarise(judged) == {"anls": 0, "anls lenient": 0.5}


def test_scienceqa_asks_about_no_image_where_there_is_none(tmp_path: Path) -> None:
    _, second = SCIENCEQA.read(datasets.scienceqa(tmp_path))
    assert second.images == ()
    assert second.prompt.startswith("Is it a noun?\nA. no\nB. yes\n")


def test_mmmu_sends_the_images_that_are_named_in_order_of_number(tmp_path: Path) -> None:
    first, second = MMMU.read(datasets.mmmu(tmp_path))
    assert first.images == (b"the bytes of image_1", b"the bytes of image_2", b"the bytes of image_3")
    assert second.prompt == "<image 1> What is x?\n\nAnswer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        pytest.param("x = 1.50", 1, id="a number"),
        pytest.param("so it is 3/2.", 1, id="a text"),
        pytest.param("2", 0, id="wrong"),
    ],
)
def test_an_open_mmmu_question_accepts_any_of_a_list(answer: str, score: float, tmp_path: Path) -> None:
    _, second = MMMU.read(datasets.mmmu(tmp_path))
    assert MMMU.judge(second, answer).score == score


def test_an_mmmu_letter_is_never_drawn_by_lot(tmp_path: Path) -> None:
    first, _ = MMMU.read(datasets.mmmu(tmp_path))
    judged = MMMU.judge(first, "I cannot tell")
    assert (judged.score, judged.parsed) == (0, None)


def test_mmbench_is_right_only_in_every_order(tmp_path: Path) -> None:
    judged = judge_all(MMBENCH, datasets.mmbench(tmp_path), ["B", "B", "dog"])
    assert MMBENCH.summarise(judged)["circular accuracy"] == pytest.approx(1 / 2)
    assert MMBENCH.summarise(judged)["accuracy"] == pytest.approx(2 / 3)
    assert [one.cluster for one in judged] == ["241", "241", "252"]


def test_a_cluster_that_is_drawn_twice_weighs_twice(tmp_path: Path) -> None:
    wrong_once, right_once, right_alone = judge_all(MMBENCH, datasets.mmbench(tmp_path), ["A", "A", "B"])
    drawn = [wrong_once, right_once, wrong_once, right_once, right_alone]
    assert MMBENCH.summarise(drawn)["circular accuracy"] == pytest.approx(1 / 3)


def test_mmbench_leaves_out_options_and_hints_that_are_nan(tmp_path: Path) -> None:
    first, _, third = MMBENCH.read(datasets.mmbench(tmp_path))
    assert first.prompt.startswith("What is it?\nA. cat\nB. dog\nAnswer")
    assert third.prompt.startswith("It barks.\nWhat is it?\nA. cat\nB. dog\nC. cow\nAnswer")


@pytest.mark.parametrize("gap", ["nan", "", " ", None])
def test_an_mmbench_option_behind_one_that_is_not_there_keeps_its_letter(gap: str | None, tmp_path: Path) -> None:
    path = datasets.mmbench(tmp_path, [(7, "nan", ("cat", gap, "cow", "dog"), "C")])
    (question,) = MMBENCH.read(path)
    assert question.prompt.startswith("What is it?\nA. cat\nC. cow\nD. dog\nAnswer")
    scores = {answer: MMBENCH.judge(question, answer).score for answer in ("C", "C. cow", "a cow", "B", "B. cat", "")}
    assert scores == {"C": 1, "C. cow": 1, "a cow": 1, "B": 0, "B. cat": 0, "": 0}


def test_an_mmbench_split_without_answers_is_refused(tmp_path: Path) -> None:
    path = datasets.mmbench(tmp_path, [(7, "nan", ("cat", "dog"), "nan")])
    with pytest.raises(ValueError, match="question 7 must have answers; this split keeps them secret"):
        list(MMBENCH.read(path))


def test_pope_reports_five_numbers_over_all_and_for_each_split(tmp_path: Path) -> None:
    judged = judge_all(POPE, datasets.pope(tmp_path), ["Yes", "yes", ""])
    found = POPE.summarise(judged)
    assert list(found)[:5] == ["accuracy", "precision", "recall", "f1", "yes share"]
    assert list(found.values())[:5] == pytest.approx([1 / 3, 1 / 2, 1 / 2, 1 / 2, 2 / 3])
    assert found["recall popular"] == 0
    assert found["f1 random"] == pytest.approx(2 / 3)


def test_pope_refuses_a_truth_that_is_neither(tmp_path: Path) -> None:
    path = datasets.pope(tmp_path)
    table = pq.read_table(path)
    maybe = pa.chunked_array([["maybe"] * 3])
    pq.write_table(table.set_column(table.schema.get_field_index("answer"), "answer", maybe), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="answer of question 1 must be yes or no, got 'maybe'"):
        next(POPE.read(path))


def test_ocrbench_reads_formulas_without_spaces_and_with_case(tmp_path: Path) -> None:
    path = datasets.ocrbench(tmp_path)
    assert judge_all(OCRBENCH, path, ["ＣＥＮＴＲＥ", "$x^{2}=A$"])[1].score == 1
    judged = judge_all(OCRBENCH, path, ["ＣＥＮＴＲＥ", "x^{2}=a"])
    assert OCRBENCH.summarise(judged)["score of 1000"] == 0
    assert OCRBENCH.summarise(judged)["score of 1000, any width"] == 500


def test_cider_weighs_words_by_the_whole_dataset_even_where_a_part_is_asked(tmp_path: Path) -> None:
    (first,) = COCO.read(datasets.coco(tmp_path), limit=1)
    assert first.reference.frequencies is not None
    assert first.reference.frequencies.num_images == 2


@pytest.mark.skipif(
    not (importlib.util.find_spec("pycocoevalcap") and shutil.which("java")),
    reason="java or pycocoevalcap is not installed",
)
def test_captions_without_odd_tokens_score_the_same_by_the_java_tokeniser(tmp_path: Path) -> None:
    questions = list(COCO.read(datasets.coco(tmp_path)))
    said = ["A black motorcycle, parked.", "Two dogs don't run on the grass!"]
    ours = COCO.summarise([COCO.judge(*pair) for pair in zip(questions, said, strict=True)])
    answers = {question.id: text for question, text in zip(questions, said, strict=True)}
    assert published_scores(questions, answers) == pytest.approx(ours)


def test_own_questions_are_scored_by_their_own_metrics(tmp_path: Path) -> None:
    judged = judge_all(OWN, datasets.own(tmp_path), ["cat", "It is B.", "Cats welcom"])
    assert [one.score for one in judged] == pytest.approx([1, 1, 1 - 1 / 12])
    found = OWN.summarise(judged)
    assert next(iter(found)) == "score"
    assert (found["score animals"], found["cer"], found["wer"]) == pytest.approx((1, 1 / 12, 1 / 2))


def test_nothing_read_is_an_edit_where_the_truth_is_blank_too() -> None:
    question = Question(id="1", prompt="Read.", images=(), reference=Reference(answers=(" ",), kind="reading"))
    judged = OWN.judge(question, "")
    assert (judged.score, judged.counts) == (0, (1, 0, 1, 0))
    assert OWN.summarise([judged])["cer"] == 1


def test_own_questions_may_be_a_csv_with_lists_as_json(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"the bytes of a")
    (tmp_path / "q.csv").write_text('id,image,question,answer\r\n7,a.png,"What, now?","[""tea"", ""Tea""]"\r\n')
    (question,) = OWN.read(str(tmp_path / "q.csv"))
    assert (question.id, question.prompt, question.images) == ("7", "What, now?", (b"the bytes of a",))
    assert question.reference.answers == ("tea", "Tea")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"answers": "x"}, r"row 1: fields must be among id, .*, got 'answers'", id="unknown field"),
        pytest.param({"question": ""}, "row 1: question must be given, got ''", id="no question"),
        pytest.param({"metric": "bleu"}, "row 1: metric must be one of exact_match, .*, got 'bleu'", id="metric"),
        pytest.param({"metric": "choice"}, "row 1: answer must be one of the options, got 'so'", id="no options"),
        pytest.param({"metric": "choice", "options": ["x"]}, "answer must be one of A, got 'so'", id="no letter"),
        pytest.param({"metric": "yes_no"}, "row 1: answer must be one of yes, no, got 'so'", id="neither yes nor no"),
        pytest.param({"image": "b.png"}, "row 1: image b.png cannot be read", id="no image"),
    ],
)
def test_a_bad_row_of_ones_own_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"the bytes of a")
    row = {"id": "1", "image": "a.png", "question": "Why?", "answer": "so"} | change
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        next(OWN.read(str(tmp_path)))


def test_images_are_found_beside_a_file_named_by_its_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.own(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert next(OWN.read("a.jsonl")).images == (b"the bytes of a",)


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n[1]\n")
    with pytest.raises(ValueError, match="q.jsonl, line 2 must be a JSON object, got '\\[1\\]'"):
        next(OWN.read(str(tmp_path)))


@pytest.mark.parametrize(
    ("benchmark", "truths"),
    [(TEXTVQA, ("a",) * 10), (TEXTVQA, ("?",) * 10), (VQAV2, ("a",) * 9 + ("A",)), (VIZWIZ, ("the",) * 9 + ("a",)),
     (DOCVQA, ("",)), (INFOVQA, (" ",)), (CHARTQA, ("",)), (OCRBENCH, ("",)), (GQA, ("",)), (MMMU, ("",))],
)  # fmt: skip
@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_is_wrong_where_the_truth_normalises_to_nothing_too(benchmark, truths, answer) -> None:
    question = Question(id="1", prompt="Which letter?", images=(), reference=Reference(answers=truths))
    judged = benchmark.judge(question, answer)
    assert (judged.score, judged.parsed, sum(judged.counts)) == (0, None, 0)


def test_an_answer_that_normalises_to_nothing_is_right_where_the_truth_is_the_same() -> None:
    question = Question(id="1", prompt="Which letter?", images=(), reference=Reference(answers=("a",) * 10))
    assert TEXTVQA.judge(question, "a").score == 1
