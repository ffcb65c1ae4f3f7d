"""export: the answers of a complete run in the form that another tool reads.

python -m jobs export out/ answers.jsonl --to jsonl
python -m jobs export out/ photos/ --to sidecars --prefix "mystyle, " --strip-opening
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter
from pydantic import BaseModel, ConfigDict, Field

from jobs.flags import Folder, under
from schemas.answer import FinishReason
from schemas.wording import one_line, printable, redacted

Format = Literal["jsonl", "csv", "llava", "openai", "sidecars", "webdataset", "dataset", "markdown", "text", "dolma"]
_ROWS = Parameter(group=under("Rows"), show_default=False)
_FORM = Parameter(group=Group.create_ordered("Of some forms"), show_default=False)


class Options(BaseModel):
    """The rows that are exported, and the way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Annotated[Literal["ok", "error", "all"] | None, _ROWS] = Field(
        None, description="Rows with an answer, failed ones, or all; ok for llava, sidecars and webdataset, else all."
    )
    finish_reason: Annotated[tuple[FinishReason, ...], _ROWS] = Field(
        (), description="Only rows whose answer ended so; repeatable."
    )
    prompt_id: Annotated[tuple[str, ...], _ROWS] = Field(
        (), description="Only answers to the prompts of these names; repeatable."
    )
    prefix: Annotated[str | None, _FORM] = Field(None, description="sidecars: text before each caption.")
    suffix: Annotated[str | None, _FORM] = Field(None, description="sidecars: text behind each caption.")
    strip_opening: Annotated[bool | None, _FORM] = Field(
        None,
        description="sidecars: take `The image shows` and its like from the start (pipeline/exports/openings.txt).",
    )
    openings: Annotated[Path | None, _FORM] = Field(
        None, description="sidecars: the same with a list of your own, a line each."
    )
    exists: Annotated[Literal["skip", "overwrite", "append", "prepend"] | None, _FORM] = Field(
        None, description="sidecars: what becomes of a .txt that is there; skip when not given."
    )
    prompts_as: Annotated[Literal["lines", "files"] | None, _FORM] = Field(
        None, description="sidecars of several prompts: lines of name.txt (when not given), or name.prompt.txt each."
    )
    newlines: Annotated[Literal["space", "keep"] | None, _FORM] = Field(
        None, description="sidecars: line breaks of a caption become spaces (when not given), or are kept."
    )
    formulas: Annotated[Literal["escape", "keep"] | None, _FORM] = Field(
        None, description="csv: texts that a spreadsheet would run get a ' before them (when not given), or are kept."
    )
    images: Annotated[bool | None, _FORM] = Field(
        None, description="webdataset (with them when not given) and dataset (without): whether the images go along."
    )
    language: Annotated[tuple[str, ...] | None, _FORM] = Field(
        None, description="dataset: languages of the answers for the card, as en; repeatable."
    )
    license: Annotated[str | None, _FORM] = Field(None, description="dataset: the license for the card.")
    push: Annotated[str | None, _FORM] = Field(
        None, description="dataset: put the folder on the Hugging Face Hub, as owner/name."
    )


_NOTHING = Options()


def export(
    out: Annotated[Folder, Parameter(help="The run folder, local or s3://, gs://.", group=under("Input"))],
    dest: Annotated[
        Folder, Parameter(help="What to write: a file or a folder, local or s3://.", group=under("Output"))
    ],
    *,
    to: Annotated[Format, Parameter(help="The form.", group=under("Output"))],
    options: Annotated[Options, Parameter(name="*")] = _NOTHING,
) -> int:
    """Write the answers of a complete run in the form that another tool reads.

    llava-batch export out/ answers.jsonl --to jsonl
    llava-batch export out/ photos/ --to sidecars --prefix "mystyle, " --strip-opening
    llava-batch export out/ dataset/ --to dataset --images --push owner/name

    A file shows when it is whole; the same command goes on where it was stopped.
    """
    from pipeline.exports.export import ExportOptions, export  # pyarrow takes a second that help need not wait for

    try:
        said = export(out, dest, to, ExportOptions(**options.model_dump()))
    except OSError as error:  # a full disk, a store that is away
        sys.stderr.write(f"error: {printable(redacted(one_line(error)))}\nrun the same command again to go on\n")
        return 1
    sys.stdout.write(f"{printable(redacted(dest))}: {said}\n")
    return 0
