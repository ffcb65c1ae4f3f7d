"""Card: the README.md of a dataset folder: what answered what, under which settings, and how it is made again."""

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.exports.rows import Choice, Run
from pipeline.storage import filesystem as fs
from schemas.job import JobSettings, parse_prompts
from schemas.wording import printable, redacted

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_LARGER = ((10**8, "10M<n<100M"), (10**9, "100M<n<1B"))
_TAGS = ("image-text-to-text", "llava-next", "synthetic", "llava-batch")
_NOT_TOLD = ("input", "output", "prompt", "model", "revision")  # stand elsewhere in the card


@dataclass(frozen=True, slots=True, kw_only=True)
class CardOptions:
    """The parts of a card that nobody but the user knows."""

    language: tuple[str, ...] = ()
    license: str | None = None


@dataclass(slots=True, kw_only=True)
class Counted:
    """Sums over the chosen answers."""

    rows: int = 0
    ends: Counter[str]
    errors: Counter[tuple[str, str]]
    prompt_tokens: int = 0
    drawn_tokens: int = 0


def make_card(run: Run, choice: Choice, options: CardOptions) -> str:
    """Return the card of these answers: front matter for the hub, then the same for people."""
    counted = count(run, choice)
    parts = [_front_matter(run, counted, options), *_about(run, counted), *_prompts(run), *_settings(run)]
    return "\n\n".join([*parts, *_errors(counted), *_again(run)]) + "\n"


def count(run: Run, choice: Choice) -> Counted:
    """Return what the chosen answers come to."""
    counted = Counted(ends=Counter(), errors=Counter())
    for row in run.chosen(choice, _COLUMNS):
        counted.rows += 1
        if row["status"] == "error":
            counted.errors[row["error_stage"], row["error_type"]] += 1
        else:
            counted.ends[row["finish_reason"]] += 1
            counted.prompt_tokens += row["num_prompt_tokens"] or 0
            counted.drawn_tokens += row["num_generated_tokens"] or 0
    return counted


_COLUMNS = ["status", "finish_reason", "error_stage", "error_type", "num_prompt_tokens", "num_generated_tokens"]


def command_of(run: Run) -> str:
    """Return the command that makes a run again; of paths on the run's machine only the last name is told."""
    settings, defaults = run.settings, JobSettings.model_fields
    job = str(run.description["identity"].get("job", "caption"))
    words = ["llava-batch", job]
    for name, value in settings.items():
        field = defaults.get(name)
        if field is None or (name not in ("input", "output") and value in (field.default, None)):
            continue
        values = value if isinstance(value, list) else [value]
        told = [_told(name, one) for one in values]
        if told:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else told)]
    return shlex.join(words)


def _told(name: str, value: object) -> str:
    text = redacted(str(value))
    if name not in ("input", "output", "allow_root", "model", "adapter"):
        return text
    is_path = fs.is_local(text) and text.startswith(("/", "~", "file:"))
    return text.rstrip("/").rsplit("/", 1)[-1] if is_path else text


def _front_matter(run: Run, counted: Counted, options: CardOptions) -> str:
    told: dict[str, Any] = {
        "pretty_name": f"Answers of {_told('model', run.model)}",
        "annotations_creators": ["machine-generated"],
        "task_categories": ["image-to-text"],
        "size_categories": [_size(counted.rows)],
        "source_datasets": _sources(run),
        "tags": list(_TAGS),
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    }
    if options.language:
        told["language"] = list(options.language)
    if options.license:
        told["license"] = options.license
    return f"---\n{yaml.safe_dump(told, sort_keys=False, allow_unicode=True)}---"


def _size(rows: int) -> str:
    return next((name for most, name in (*_SIZES, *_LARGER) if rows < most), "n>1B")


def _sources(run: Run) -> list[str]:
    """Return the datasets of the hub that were read; a dataset of one's own is `original`."""
    found = (re.match(r"hf://datasets/([^/]+/[^/@]+)", str(url)) for url in run.settings.get("input", ()))
    return sorted({match[1] for match in found if match}) or ["original"]


def _about(run: Run, counted: Counted) -> Iterator[str]:
    ok = sum(counted.ends.values())
    revision = run.settings.get("revision") or run.description["identity"].get("model_hash") or "unknown"
    yield f"# Answers of {_cell(_told('model', run.model))}"
    yield "Made by LLaVA-NeXT batch inference: one row for every image and prompt, failed ones with their reason."
    rows = {
        "model": _told("model", run.model),
        "revision or hash": str(revision),
        "input": ", ".join(_told("input", url) for url in run.settings.get("input", ())),
        "answers": f"{counted.rows:,}: {ok:,} ok, {sum(counted.errors.values()):,} failed",
        "cut at their longest length": _share(counted.ends["length"], ok),
        "cut for repeating themselves": _share(counted.ends["repetition"], ok),
        "tokens": f"{counted.prompt_tokens:,} of prompts and images, {counted.drawn_tokens:,} generated",
        "begun": run.begun.isoformat(),
    }
    yield _table(("", ""), rows.items())


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.2%})" if whole else "0"


def _prompts(run: Run) -> Iterator[str]:
    prompts = parse_prompts(tuple(run.settings.get("prompt", ())))
    yield "## Prompts"
    if not prompts:
        yield "Every row asked its own: see the column `prompt`."
    for prompt in prompts:
        yield f"`{prompt.id}`:\n\n{_fenced(prompt.text)}"


def _settings(run: Run) -> Iterator[str]:
    yield "## Settings"
    told = ((name, value) for name, value in run.settings.items() if name not in _NOT_TOLD)
    yield _table(("setting", "value"), ((name, _told(name, value)) for name, value in told))
    versions = run.description.get("versions", {})
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items())


def _errors(counted: Counted) -> Iterator[str]:
    if counted.errors:
        yield "## Failed rows"
        rows = ((f"{type} at {stage}", f"{rows:,}") for (stage, type), rows in counted.errors.most_common())
        yield _table(("error", "rows"), rows)


def _again(run: Run) -> Iterator[str]:
    yield "## Made again by"
    yield _fenced(command_of(run))


def _table(heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)])


def _cell(text: str) -> str:
    """Return a text as it may stand in a table of Markdown, whatever is in it."""
    text = printable(redacted(text)).replace("\\", "\\\\").replace("|", "\\|")
    return re.sub(r"([<>`*_\[\]#])", r"\\\1", text)


def _fenced(text: str) -> str:
    """Return a block of code around a text that may hold fences itself."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{redacted(text)}\n{fence}"
