"""The numbers of each benchmark straight from its judged answers, one after the other: the slow way."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from schemas.benchmark import Judged

Numbers = dict[str, float]


def by_split(judged: Sequence[Judged], numbers: Callable[[Sequence[Judged]], Numbers]) -> Numbers:
    found = dict(numbers(judged))
    for split in sorted({one.split for one in judged if one.split is not None}):
        some = [one for one in judged if one.split == split]
        found |= {f"{name} {split}": value for name, value in numbers(some).items()}
    return found


def means(name: str, beside: str | None = None) -> Callable[[Sequence[Judged]], Numbers]:
    def numbers(judged: Sequence[Judged]) -> Numbers:
        found = {name: sum(one.score for one in judged) / len(judged)}
        return found | {beside: sum(one.counts[0] for one in judged) / len(judged)} if beside else found

    return lambda judged: by_split(judged, numbers)


def pope(judged: Sequence[Judged]) -> Numbers:
    def share(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    def numbers(some: Sequence[Judged]) -> Numbers:
        true_yes, false_yes, true_no, false_no = (sum(one.counts[cell] for one in some) for cell in range(4))
        precision, recall = share(true_yes, true_yes + false_yes), share(true_yes, true_yes + false_no)
        return {
            "accuracy": (true_yes + true_no) / len(some),
            "precision": precision,
            "recall": recall,
            "f1": share(2 * precision * recall, precision + recall),
            "yes share": (true_yes + false_yes) / len(some),
        }

    return by_split(judged, numbers)


def mmbench(judged: Sequence[Judged]) -> Numbers:
    def numbers(some: Sequence[Judged]) -> Numbers:
        clusters: dict[str | None, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for one in some:
            clusters[one.cluster][one.id].append(one.score)
        right = weights = 0.0
        for rows in clusters.values():
            weight = len(next(iter(rows.values())))
            weights += weight
            right += weight * all(score for scores in rows.values() for score in scores)
        return {"circular accuracy": right / weights, "accuracy": sum(one.score for one in some) / len(some)}

    return by_split(judged, numbers)


def ocrbench(judged: Sequence[Judged]) -> Numbers:
    hits, wide = (sum(some) / len(judged) for some in zip(*((j.score, j.counts[0]) for j in judged), strict=True))
    shares = by_split(judged, lambda some: {"accuracy": sum(one.score for one in some) / len(some)})
    return {"score of 1000": 1000 * hits, "score of 1000, any width": 1000 * wide, **shares}


def own(judged: Sequence[Judged]) -> Numbers:
    found = means("score")(judged)
    read = [one.counts for one in judged if one.counts]
    if read:
        character_edits, num_characters, word_edits, num_words = map(sum, zip(*read, strict=True))
        found |= {"cer": character_edits / max(1, num_characters), "wer": word_edits / max(1, num_words)}
    return found


def coco(judged: Sequence[Judged]) -> Numbers:
    sums = [math.fsum(counts) for counts in zip(*(one.counts for one in judged), strict=True)]
    said, right, (num_words, reference_words, rouge) = sums[:4], sums[4:8], sums[8:]
    found = {"cider": sum(one.score for one in judged) / len(judged), "rouge-l": rouge / len(judged)}
    ratio, product = (num_words + 1e-15) / (reference_words + 1e-9), 1.0
    for place in range(4):
        product *= (right[place] + 1e-15) / (said[place] + 1e-9)
        found[f"bleu-{place + 1}"] = min(1.0, math.exp(1 - 1 / ratio)) * product ** (1 / (place + 1))
    return found


DIRECT: Mapping[str, Callable[[Sequence[Judged]], Numbers]] = {
    **dict.fromkeys(("vqav2", "textvqa", "vizwiz"), means("vqa accuracy")),
    **dict.fromkeys(("ai2d", "scienceqa", "mmmu", "seedbench"), means("accuracy")),
    **dict.fromkeys(("docvqa", "infovqa"), means("anls", beside="anls lenient")),
    "gqa": means("exact match", beside="exact match folded"),
    "chartqa": means("relaxed accuracy"),
    "mmbench": mmbench,
    "pope": pope,
    "ocrbench": ocrbench,
    "coco": coco,
    "own": own,
}
