"""Relaxed correctness of ChartQA: a number may be off by five hundredths, anything else must be equal."""

_TOLERANCE = 0.05


def relaxed_match(answer: str, truth: str) -> bool:
    """Compare as pix2struct's relaxed_correctness, which lmms-eval and Qwen-VL share; case is ignored, space is not.

    "12%" is 0.12, so it never matches "12"; a truth of zero is compared as text.
    """
    number, true_number = _number(answer), _number(truth)
    if number is None or not true_number:
        return answer.lower() == truth.lower()
    return abs(number - true_number) / abs(true_number) <= _TOLERANCE


def _number(text: str) -> float | None:
    """Read a number as Python does: "1e3", "inf", " 3 " and "1_000" are numbers, "1,000" and "3 m" are not."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
