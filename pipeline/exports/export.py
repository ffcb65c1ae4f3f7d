"""Export: the answers of a complete run in one of the forms, put where they are wanted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.exports.card import CardOptions
from pipeline.exports.dataset import write_dataset
from pipeline.exports.destination import check_apart, check_destination, end_folder, write_file
from pipeline.exports.documents import write_documents, write_dolma
from pipeline.exports.images import Pictures
from pipeline.exports.lines import Formulas, Lines, csv_head, csv_lines, llava_lines, openai_lines, parts_of, to_jsonl
from pipeline.exports.push import check_push, push_dataset
from pipeline.exports.rows import Choice, Chosen, Run, check_prompts, open_run
from pipeline.exports.sidecars import OPENINGS, Exists, PromptsAs, SidecarOptions, read_openings, write_sidecars
from pipeline.exports.webdataset import write_webdataset
from schemas.errors import Refused
from schemas.wording import counted

Format = Literal["jsonl", "csv", "llava", "openai", "sidecars", "webdataset", "dataset", "markdown", "text", "dolma"]
FORMATS: tuple[Format, ...] = get_args(Format)
# Forms that cannot hold a row without a text leave failed rows out, where nothing else is said.
_OF_TEXTS = ("llava", "sidecars", "webdataset")
_OPTIONS: dict[str, tuple[Format, ...]] = {
    "formulas": ("csv",),
    **dict.fromkeys(
        ("prefix", "suffix", "strip_opening", "openings", "exists", "prompts_as", "newlines"), ("sidecars",)
    ),
    "images": ("webdataset", "dataset"),
    **dict.fromkeys(("language", "license", "push"), ("dataset",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The flags of an export; None is not given. Each belongs to some of the forms."""

    status: Chosen | None = None
    finish_reason: tuple[str, ...] = ()
    prompt_id: tuple[str, ...] = ()
    formulas: Formulas | None = None
    prefix: str | None = None
    suffix: str | None = None
    strip_opening: bool | None = None
    openings: Path | None = None
    exists: Exists | None = None
    prompts_as: PromptsAs | None = None
    newlines: Literal["space", "keep"] | None = None
    images: bool | None = None
    language: tuple[str, ...] | None = None
    license: str | None = None
    push: str | None = None


def export(folder: str, destination: str, to: Format, options: ExportOptions) -> str:
    """Export a run; return what was written, in words. Raises Refused before anything is."""
    _check_options(to, options)
    check_destination(destination)
    if options.push is not None:
        check_push(destination, options.push)
    sidecars = _sidecar_options(options)
    run = open_run(folder)
    check_apart(folder, destination)
    choice = Choice(
        status=options.status or ("ok" if to in _OF_TEXTS else "all"),
        finish_reason=options.finish_reason,  # type: ignore[arg-type]
        prompt_id=options.prompt_id,
    )
    check_prompts(run, choice)
    if to == "sidecars":
        written = write_sidecars(run, destination, choice, sidecars)
        return f"{counted(written.files, 'sidecar')} written, {written.left:,} left as they were"
    return _WRITERS[to](run, destination, choice, options)


def _check_options(to: Format, options: ExportOptions) -> None:
    if to not in FORMATS:
        raise Refused(f"--to must be one of {', '.join(FORMATS)}, got {to!r}")
    for name, forms in _OPTIONS.items():
        if getattr(options, name) is not None and to not in forms:
            raise Refused(f"--{name.replace('_', '-')} is for --to {' and '.join(forms)}, got --to {to}")
    if to in ("sidecars", "webdataset") and options.status == "error":
        raise Refused(f"--status error has no texts, which --to {to} is made of: take --to jsonl or csv")


def _sidecar_options(options: ExportOptions) -> SidecarOptions:
    strip = options.strip_opening or options.openings is not None
    return SidecarOptions(
        prefix=options.prefix or "",
        suffix=options.suffix or "",
        openings=read_openings(options.openings or OPENINGS) if strip else (),
        exists=options.exists or "skip",
        prompts_as=options.prompts_as or "lines",
        newlines=options.newlines or "space",
    )


_Write = Callable[[Run, str, Choice, ExportOptions], str]


def _file(
    to: Format, lines: Callable[[Run, ExportOptions], Lines], head: Callable[[Run], bytes] | None = None
) -> _Write:
    def write(run: Run, destination: str, choice: Choice, options: ExportOptions) -> str:
        key = run.key({"to": to, "choice": repr(choice), "formulas": options.formulas})
        write_file(destination, key, parts_of(run, choice, lines(run, options), head(run) if head else b""))
        return "the answers are written"

    return write


def _webdataset(run: Run, destination: str, choice: Choice, options: ExportOptions) -> str:
    pictures = None if options.images is False else Pictures(run)
    return f"{counted(write_webdataset(run, destination, choice, pictures), 'shard')} written"


def _dataset(run: Run, destination: str, choice: Choice, options: ExportOptions) -> str:
    pictures = Pictures(run) if options.images else None
    card = CardOptions(language=options.language or (), license=options.license)
    written = f"{counted(write_dataset(run, destination, choice, card, pictures), 'shard')} and a card written"
    if options.push is not None:  # before the end, so that the same command goes on where the hub was away
        written = f"{written}, {push_dataset(destination, options.push)}"
    end_folder(destination)
    return written


def _documents(number: int) -> str:
    return f"{counted(number, 'document')} written"


_WRITERS: dict[str, _Write] = {
    "jsonl": _file("jsonl", lambda run, options: to_jsonl),
    "csv": _file("csv", lambda run, options: csv_lines(options.formulas or "escape"), csv_head),
    "llava": _file("llava", lambda run, options: llava_lines(run)),
    "openai": _file("openai", lambda run, options: openai_lines(run)),
    "webdataset": _webdataset,
    "dataset": _dataset,
    "markdown": lambda run, to, choice, _: _documents(write_documents(run, to, choice, "markdown")),
    "text": lambda run, to, choice, _: _documents(write_documents(run, to, choice, "text")),
    "dolma": lambda run, to, choice, _: _documents(write_dolma(run, to, choice)),
}
