"""GQA, questions about scenes: lmms-lab's GQA, balanced test-dev (12,578 questions about 398 images).

Two folders: testdev_balanced_instructions with id, imageId, question and answer, all strings, and
testdev_balanced_images with id string and image {bytes, path}. Questions are asked image by image, as those come.
"""

from collections import defaultdict
from collections.abc import Iterator

from jobs.benchmarks.prompts import SHORT_ANSWER, fill
from jobs.benchmarks.rows import encoded, read_rows
from pipeline.scoring.exact import folded_match, gqa_match
from pipeline.scoring.summary import mean_score
from schemas.benchmark import Benchmark, Judged, Question, Reference
from schemas.errors import Refused


def ask(path: str, prompt: str) -> Iterator[Question]:
    """Yield all questions; {question}. `path` is the folder that has the two."""
    asked: dict[str, list[tuple[str, str]]] = defaultdict(list)
    truths: dict[str, str] = {}
    for row in read_rows(f"{path}/testdev_balanced_instructions", ("id", "imageId", "question", "answer")):
        asked[row["imageId"]].append((row["id"], fill(prompt, {"question": row["question"]})))
        truths[row["id"]] = row["answer"]
    for row in read_rows(f"{path}/testdev_balanced_images", ("id", "image")):
        for id, text in asked.pop(row["id"], ()):
            reference = Reference(answers=(truths[id],))
            yield Question(id=id, prompt=text, images=(encoded(row["image"]),), reference=reference)
    if asked:
        raise Refused(f"every question must have its image, {len(asked)} images are missing, as {next(iter(asked))!r}")


def judge(question: Question, answer: str) -> Judged:
    """Judge by GQA's exact match of the answer as LLaVA hands it in; lmms-eval's, which folds more, is counted beside
    it."""
    accepted = question.reference.answers
    return question.marked(
        answer, float(gqa_match(answer, accepted)), answer.strip() or None, (float(folded_match(answer, accepted)),)
    )


GQA = Benchmark(
    name="gqa",
    data="hf://datasets/lmms-lab/GQA",
    prompt=f"{{question}}\n{SHORT_ANSWER}",
    max_new_tokens=16,
    ask=ask,
    judge=judge,
    summarise=mean_score("exact match", beside="exact match folded"),
)
