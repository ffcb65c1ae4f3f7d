"""The page in a real Chromium without a window: it draws itself, fits its width, and runs nothing that rows say."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.exports.rows import open_run
from pipeline.reports.report import report
from tests.exports.runs import make_images, make_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or Google Chrome")

# Added to the page: what it measures stands in the title once it has drawn itself.
PROBE = """<script>
const one = id => document.getElementById(id), told = {};
const event = name => new Event(name, {bubbles: true});
told.cards = one("cards").children.length;
told.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
told.scripts = document.scripts.length;
told.said = one("cards").querySelector(".say").textContent;
one("words").value = "about n4"; one("words").dispatchEvent(event("input"));
told.searched = one("cards").children.length;
one("words").value = ""; one("words").dispatchEvent(event("input"));
document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "j", bubbles: true}));
told.focused = document.activeElement.className;
document.activeElement.click();
told.open = one("one").open;
one("close").click();
told.closed = !one("one").open;
told.dark = matchMedia("(prefers-color-scheme: dark)").matches;
told.ink = getComputedStyle(document.body).color;
const end = document.createElement("pre");
end.id = "told";
end.textContent = JSON.stringify(told); document.body.append(end);
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    hostile = "</script><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
    names = ["a.jpg", *(f"n{number}.jpg" for number in range(70))]
    out = make_run(folder, make_images(folder / "in", names), {"a.jpg": hostile + " word" * 300})
    path = folder / "page.html"
    path.write_text(report(open_run(out)).replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    return path


def dump(page: Path, width: int, dark: bool) -> str:
    assert CHROMIUM is not None
    home, scheme = page.parent / "profile", 0 if dark else 1
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={home}"]
    command += [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    return done.stdout


@pytest.mark.parametrize(("width", "dark"), [(390, True), (2560, False)])
def test_the_page_draws_itself_and_fits(page: Path, width: int, dark: bool) -> None:
    dom = dump(page, width, dark)
    (found,) = re.findall(r'<pre id="told">(.*?)</pre>', dom)
    told = json.loads(html.unescape(found))
    assert told["said"].startswith("</script><script>")
    assert (told["cards"], told["searched"], told["wide"], told["scripts"]) == (60, 11, 0, 3)
    assert (told["focused"], told["open"], told["closed"]) == ("card", True, True)
    assert told["dark"] is dark
    assert told["ink"] == ("rgb(231, 233, 238)" if dark else "rgb(26, 29, 35)")
    assert "<title>run</title>" not in dom
