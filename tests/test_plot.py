"""The picture of a long run's memory."""

import re

from benchmarks.plot import COLOURS, draw


def sample(rows: int, driver: float) -> dict[str, float]:
    return {"rows": rows, **dict.fromkeys(COLOURS, 10.0), "driver": driver}


def test_the_lines_end_with_the_last_answer_though_units_go_when_they_are_merged() -> None:
    picture = draw([sample(0, 100), sample(4000, 120), sample(8000, 110), sample(8000, 390), sample(3000, 395)])
    lines = [re.findall(r"[\d.]+,", points) for points in re.findall(r'points="([^"]+)"', picture)]
    assert len(lines) == len(COLOURS)
    for line in lines:
        assert len(line) == 3
        assert line == sorted(line, key=lambda x: float(x[:-1]))
    assert ">200<" in picture
    assert ">400<" not in picture
