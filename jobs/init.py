"""init: a commented job.yaml to begin with, which the job takes as it is.

python -m jobs init caption
python -m jobs init ocr --input scans/ --to ocr.yaml
"""

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from jobs.flags import File, settings_from, under
from jobs.ocr import OcrSettings
from schemas.errors import Refused
from schemas.job import KINDS, JobSettings
from schemas.setting_kinds import HEADINGS
from schemas.wording import typed

Job = Literal["caption", "ocr", "sweep"]

_SET = {
    "caption": ("input", "output", "model", "prompt", "max_new_tokens", "max_error_rate"),
    "ocr": ("input", "output", "model", "strips", "max_new_tokens", "max_error_rate"),
}
_PROMPT = "describe=Describe the image in more details."
_WIDTH = 116
_SWEEP = """\
# A sweep: models x benchmarks x prompts x settings, every combination a cell with a score and its interval.
#   python -m benchmarks.real_pixels out/data      # the three small benchmarks below, for the demo model
#   llava-batch sweep --config {to} --dry-run
#   llava-batch sweep --config {to}

output: {output}
models: {{small: {model}}}          # name: model, or any settings of a job: {{model: ..., adapter: ...}}
benchmarks:                         # docs/benchmarks.md lists them; a list of names takes their published data
  shapes: {{benchmark: vqav2, data: out/data/shapes}}
  present: {{benchmark: pope, data: out/data/present}}
  lines: {{benchmark: ocrbench, data: out/data/lines}}
prompts:                            # null asks as the benchmark was published
  plain: "{{question}}"
  polite: "Please answer: {{question}}"
settings:                           # settings of a job, each a column of the table
  float32: {{dtype: float32}}
# baseline: {{prompt: plain, settings: float32}}   # what the others are compared with; else the first of each
# limit: 100                        # the first questions of each benchmark only
# minutes: 60                       # stop then; the next call goes on
# job: {{max_new_tokens: 64}}         # settings of a job for every cell
"""


def init(
    job: Annotated[Job, Parameter(help="Which job the file is for.", group=under("This call"))],
    *,
    to: Annotated[File | None, Parameter(help="The file; JOB.yaml when not given.", group=under("Output"))] = None,
    input: Annotated[str, Parameter(help="The input to write in it.", group=under("Input"))] = "photos/",
    output: Annotated[str | None, Parameter(help="The output to write in it.", group=under("Output"))] = None,
    model: Annotated[str, Parameter(help="The model to write in it.", group=under("Model"))] = "demo",
) -> int:
    """Write a commented file of settings, for --config.

    llava-batch init caption
    llava-batch init ocr --input scans/ --to ocr.yaml
    """
    path = Path(f"{job}.yaml") if to is None else to
    if not path.name.strip():
        raise Refused(f"--to must be the name of a file, got {str(path)!r}: is a variable of the shell unset?")
    # What a job refuses, as a password in a URL, is not written either.
    given = {"input": (input,), "output": f"out/{job}" if output is None else output, "model": model}
    settings = settings_from(given)
    texts = {"input": settings.input[0], "output": settings.output, "model": settings.model}
    if job == "sweep":
        quoted = {name: json.dumps(text, ensure_ascii=False) for name, text in texts.items()}
        content = _SWEEP.format(to=path, output=quoted["output"], model=quoted["model"])
    else:
        content = "\n".join(_lines(job, path, texts)) + "\n"
    try:
        with path.open("xb") as file:
            file.write(content.encode("utf-8", "backslashreplace"))  # its own name, in a comment, may be no text
    except FileExistsError as error:
        raise Refused(f"--to {path} is there already, and is not written over: choose another name") from error
    except OSError as error:
        raise Refused(f"--to {typed(path)} cannot be written: {error.strerror}") from error
    sys.stdout.write(f"{path}: look through it, then\n  llava-batch {job} --config {path} --dry-run\n")
    return 0


def _lines(job: Literal["caption", "ocr"], path: Path, texts: dict[str, str]) -> Iterator[str]:
    """Yield every setting under its heading: those to look at as they are, the others behind a #, with their
    defaults."""
    yield f"# Settings of llava-batch {job}; every one is a flag of the same name as well, which overrides it here."
    yield f"#   llava-batch {job} --config {path} --dry-run     reads eight rows, answers nothing"
    yield f"#   llava-batch {job} --config {path}               goes on where it was stopped"
    model = OcrSettings if job == "ocr" else JobSettings
    chosen = {**texts, "input": [texts["input"]], "prompt": [_PROMPT], "strips": "auto"}
    for heading in HEADINGS:
        yield f"\n# --- {heading} ---"
        for name, field in model.model_fields.items():
            if KINDS[name].heading != heading:
                continue
            yield from textwrap.wrap(field.description or "", _WIDTH, initial_indent="# ", subsequent_indent="# ")
            if name in _SET[job]:
                yield f"{name}: {_yaml(chosen.get(name, field.default))}"
            else:
                yield f"# {name}: {_yaml(field.default)}"


def _yaml(value: object) -> str:
    """Return a value in the form that YAML and JSON share."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
