"""How soon the page of a run can be used, in a real Chromium without a window: milliseconds, and its megabytes.

    python -m benchmarks.page out/ [--rounds 5]

The page is made first (`llava-batch report`). Times are from the start of its loading: when its first answers are laid
out and its buttons work, and how long a search over all of its answers takes then. The median of the rounds counts. The
last line of stdout is one JSON object.
"""

import argparse
import html
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.reports.report import write_report

# Added to the page: what it measures stands in the document once the page's own script has run.
_PROBE = """<script>{
const told = {}, words = document.getElementById("words");
document.body.offsetHeight; told.usable_ms = performance.now();
words.value = "a e"; words.dispatchEvent(new Event("input", {bubbles: true}));
document.body.offsetHeight; told.search_ms = performance.now() - told.usable_ms;
const end = document.createElement("pre");
end.id = "told"; end.textContent = JSON.stringify(told); document.body.append(end);
}</script></body>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="a complete run folder on this machine")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page, began = Path(folder) / "page.html", time.monotonic()
        write_report(arguments.out, str(page))
        made_s, text = time.monotonic() - began, page.read_text(encoding="utf-8")
        before, _, after = text.rpartition("</body>")
        page.write_text(f"{before}{_PROBE}{after}", encoding="utf-8")
        rounds = [_open(page, Path(folder) / "profile") for _ in range(arguments.rounds)]
    result = {name: round(statistics.median(one[name] for one in rounds), 1) for name in rounds[0]}
    sys.stdout.write(
        json.dumps({**result, "made_s": round(made_s, 1), "mb": round(len(text.encode()) / 1e6, 1)}) + "\n"
    )


def _open(page: Path, profile: Path) -> dict[str, float]:
    """Open the page and return what it has measured of itself."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no Chromium here: apt-get install chromium, or Google Chrome")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--window-size=1280,900", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r'<pre id="told">(.*?)</pre>', done.stdout)
    told: dict[str, float] = json.loads(html.unescape(found))
    return told


if __name__ == "__main__":
    main()
