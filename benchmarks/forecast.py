"""What `plan --calibrate` says of three jobs of the demo model on this machine, and what they take then.

python -m benchmarks.forecast --out FOLDER [--jobs captions ocr] [--rows 240] [--calibrate 48]

Both run one after the other; a machine that others use meanwhile gives numbers of its own. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
HELDOUT = ["--input", str(ROOT / "demo" / "heldout.parquet"), "--id-column", ""]
JOBS = {
    "captions": ["caption", "--prompt", "Describe the image."],
    "ocr": ["ocr", "--prompt", "What does the text say?"],
    "two questions": ["caption", "--prompt", "a=Is there any text?", "--prompt", "b=What colour is the shape?"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--calibrate", type=int, default=48)
    given = parser.parse_args()
    found = []
    for name in given.jobs:
        job, *flags = JOBS[name]
        flags += [*HELDOUT, "--limit", str(given.rows), "--output", str(given.out / name.replace(" ", "-"))]
        said = run(["plan", "--job", job, *flags, "--calibrate", str(given.calibrate), "--json"])
        began = time.monotonic()
        run([job, *flags])
        took, hours = time.monotonic() - began, json.loads(said)["hours"]
        line = {"job": name, "took_s": round(took, 1), **{end: round(3600 * hours[end], 1) for end in hours}}
        found.append({**line, "off": round(line["mid"] / took - 1, 3)})
        sys.stderr.write(f"{found[-1]}\n")
    sys.stdout.write(json.dumps({"rows": given.rows, "calibrate": given.calibrate, "jobs": found}) + "\n")


def run(command: list[str]) -> str:
    """Run a command of ours to its good end; return what it prints."""
    done = subprocess.run([sys.executable, "-m", "jobs", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode and command[0] != "plan":  # a plan's 1 says that something stands in the way
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    main()
