"""The page of a run: its structure, its texts and its pictures, without a browser."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.__main__ import main
from pipeline.exports.export import ExportOptions, export
from pipeline.exports.rows import open_run
from pipeline.reports.compare import word_difference
from pipeline.reports.facts import EVENLY, FAILED, LONGEST, choose, read_facts
from pipeline.reports.report import fitting_difference, report, write_report
from pipeline.reports.thumbnails import shrink
from schemas.errors import Refused
from tests.exports.runs import make_images, make_run
from tests.images import noise
from tests.run_folder.test_first_release import as_the_first_release_wrote_it
from tests.web_server import serving

pytest_plugins = ["tests.exports.complete"]

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;%%DATA%%\u2028"
NAMES = ("a.jpg", "b<i>.jpg", "broken.jpg", *(f"n{number}.jpg" for number in range(9)))


class Parsed(HTMLParser):
    """The elements of a page, with the text of its data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        last = (
            next((attrs for tag, attrs in reversed(self.elements) if tag == self._open[-1]), {}) if self._open else {}
        )
        if last.get("id") == "data":
            self.data += data
        elif self._open and self._open[-1] not in ("script", "style"):
            self.text += f" {data}"

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.data)
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    texts = {"a.jpg": HOSTILE, "n3.jpg": "x" * 500, "n4.jpg": "cut..."}
    return make_run(folder, make_images(folder / "in", NAMES), texts, prompt=(f"ask={HOSTILE.replace('%', '')}",))


def test_every_text_is_a_text_and_nothing_is_asked_of_a_network(run: str) -> None:
    page = report(open_run(run))
    parsed = Parsed(page)
    assert [row["t"] for row in parsed.told()["rows"] if row["id"] == "a.jpg"] == [HOSTILE]
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    assert "img" not in {tag for tag, _ in parsed.elements}
    assert not [attrs for _, attrs in parsed.elements if {"src", "href", "onerror", "onclick"} & attrs.keys()]
    assert "://" not in page
    assert "default-src 'none'" in page


def test_the_page_says_what_was_run_and_what_failed(run: str) -> None:
    text = " ".join(Parsed(report(open_run(run))).text.split())
    assert "answers 11 of 12" in text
    assert "NotAnImage at decode" in text
    assert "broken.jpg: the bytes look like text" in text
    assert f"llava-batch retry-failed {run} --stage decode --type NotAnImage" in text
    assert "max_new_tokens 256" in text


def test_every_answer_has_its_picture(run: str) -> None:
    told = Parsed(report(open_run(run))).told()
    assert [row["id"] for row in told["rows"]] == list(NAMES)
    pictures = [row.get("g") for row in told["rows"]]
    assert pictures.count(None) == 1
    assert all(uri.startswith("data:image/webp;base64,") for uri in told["images"])
    assert "NotAnImage" in next(row for row in told["rows"] if row["id"] == "broken.jpg")["r"]


def test_answers_of_several_prompts_share_a_picture(several: str) -> None:
    told = Parsed(report(open_run(several))).told()
    assert len(told["rows"]) == 26
    assert len(told["images"]) == 12
    assert told["rows"][0]["g"] == told["rows"][1]["g"] == 0


def test_rows_are_shown_evenly_and_for_what_they_are(run: str) -> None:
    complete = open_run(run)
    facts = read_facts(complete, 8)
    assert facts.interest[2] == FAILED
    assert facts.interest[6] == LONGEST
    assert choose(complete, facts, 12, 4).keys() == set(range(12))
    large = open_run(run)
    large.manifest["rows"] = 1_000_000
    chosen = choose(large, facts, 2_000, 64)
    even = [position for position, why in chosen.items() if why == EVENLY]
    assert 1_900 < len(chosen) <= 2_000
    assert (min(chosen), max(chosen)) == (0, 999_999)
    assert max(np.diff(even)) < 10_000


def test_a_run_whose_input_is_gone_is_shown_without_pictures(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", ["a.jpg"])
    out = make_run(tmp_path, source)
    (source / "a.jpg").unlink()
    told = Parsed(report(open_run(out))).told()
    assert told["images"] == []
    assert str(source) in told["note"]
    assert told["rows"][0]["t"] == "about a.jpg"


def test_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    out = make_run(tmp_path, make_images(tmp_path / "in", ["a.jpg"]), {"a.jpg": "<" * 50_000})
    (row,) = Parsed(report(open_run(out))).told()["rows"]
    assert 0 < len(row["t"]) < 4_000
    assert row["z"] == 50_000


@pytest.mark.parametrize("most", [60_000, 8_900, 2_000])
def test_thumbnails_fit(most: int) -> None:
    assert len(shrink(noise(2_000, 1_500, seed=1).resize((4_000, 3_000)), most)) <= most


def test_the_page_stands_in_the_run_and_is_written_over(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["report", run]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{run}/.run/report.html"] * 2
    assert Path(run, ".run", "report.html").stat().st_size < 200_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["nowhere"], "nowhere has none", id="no run"),
        pytest.param(["OUT", "--rows", "0"], "--rows must be from 1 to 2000", id="no rows"),
        pytest.param(["OUT", "--to", "OUT/.run/run.json"], "is something else", id="another file"),
        pytest.param(["OUT", "--to", "OUT"], "is something else", id="a folder"),
        pytest.param(["OUT", "--to", "https://x/y.html"], "--to must be a path", id="http"),
        pytest.param(["OUT", "--compare", "nowhere"], "--compare must be a run folder", id="nothing to compare"),
        pytest.param(["OUT", "--compare", ""], "--compare must not be empty, got ''", id="a variable that is unset"),
    ],
)
def test_bad_usage_is_one_line(run: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["report", *(word.replace("OUT", run) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_two_runs_are_shown_where_they_differ(run: str, tmp_path: Path) -> None:
    source = Path(run).parent / "in"
    other = make_run(
        tmp_path, source, {"a.jpg": HOSTILE, "n3.jpg": "about n3, jpg", "n4.jpg": "cut..."}, prompt=("ask=?",)
    )
    place = write_report(run, str(tmp_path / "difference.html"), other)
    parsed = Parsed(Path(place).read_text(encoding="utf-8"))
    assert [row["id"] for row in parsed.told()["rows"]] == ["n3.jpg"]
    assert parsed.told()["rows"][0]["diff"] == [["-", "x" * 500], ["+", "about n3, jpg"]]
    assert "answers differ 1 of 12 compared" in " ".join(parsed.text.split())


def test_runs_over_other_rows_are_not_compared(run: str, several: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="as many prompts"):
        write_report(run, str(tmp_path / "x"), several)
    other = make_run(tmp_path, make_images(tmp_path / "in", ["b.jpg"]))
    with pytest.raises(Refused, match=r"has b.jpg where .* has a.jpg"):
        write_report(run, str(tmp_path / "x"), other)


def test_texts_differ_in_words() -> None:
    found = word_difference("a red cat, asleep", "a black cat, asleep!")
    assert found == [("=", "a "), ("-", "red"), ("+", "black"), ("=", " cat, asleep"), ("+", "!")]


def test_a_long_difference_is_cut() -> None:
    long = [("-", "a " * 1_000), ("=", "b"), ("+", "<" * 1_000)]
    assert fitting_difference(long, 100_000) == long
    cut = fitting_difference(long, 500)
    assert cut[0][0] == "-"
    assert len(str(cut)) < 600


def test_a_run_of_the_first_release_is_shown(tmp_path: Path) -> None:
    out = make_run(tmp_path, make_images(tmp_path / "in", ["a.jpg", "broken.jpg"]))
    as_the_first_release_wrote_it(Path(out))
    told = Parsed(report(open_run(out))).told()
    assert [row["t"][:11] for row in told["rows"]] == ["about a.jpg", "the bytes l"]
    export(out, str(tmp_path / "a.jsonl"), "jsonl", ExportOptions())
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(row["text"], row["first_text"]) for row in rows] == [("about a.jpg", None), (None, None)]


def test_pictures_of_urls_are_fetched_under_the_limits_of_their_run(tmp_path: Path) -> None:
    with serving() as web:
        (tmp_path / "urls.txt").write_text(web.url("/ok"))
        made = make_run(tmp_path, tmp_path / "urls.txt", allow_private=True)
        assert len(Parsed(report(open_run(made))).told()["images"]) == 1
        (tmp_path / "denied").mkdir()
        denied = make_run(tmp_path / "denied", tmp_path / "urls.txt", allow_private=True, deny_hosts=("127.0.0.1",))
        (row,) = Parsed(report(open_run(denied))).told()["rows"]
        assert row["r"].startswith("HostNotAllowed")
