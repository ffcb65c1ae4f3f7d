"""Answer: one output row. Every prompt of every request has exactly one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from schemas.errors import STAGES, Stage
from schemas.sample import Prompt, Sample

Status = Literal["ok", "error"]
FinishReason = Literal["stop", "length", "repetition"]  # from the best end of an answer to the worst


@dataclass(frozen=True, slots=True, kw_only=True)
class StripAnswer:
    """Text read in some rows of a page, `bottom` not among them; null where that failed."""

    top: int
    bottom: int
    text: str | None
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token with its log-probability under the model's own distribution, in nats; `token` is its text alone."""

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an answer: the token that was drawn, and the likeliest ones that could have been."""

    drawn: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The text for one prompt about one row, or the stage, type and message of what went wrong."""

    id: str
    prompt_id: str
    prompt: str
    status: Status
    text: str | None = None
    finish_reason: FinishReason | None = None
    mean_logprob: float | None = None
    num_prompt_tokens: int | None = None
    num_image_tokens: int | None = None
    num_generated_tokens: int | None = None
    num_tries: int | None = None
    image_width: int | None = None
    image_height: int | None = None
    num_tiles: int | None = None
    image_sha256: str | None = None
    error_stage: Stage | None = None
    error_type: str | None = None
    error_message: str | None = None
    attempt: int = 1
    strips: tuple[StripAnswer, ...] | None = None
    num_cut_tokens: int | None = None
    first_text: str | None = None
    steps: tuple[Step, ...] | None = None  # where a job asks for log-probabilities; no column of every answer

    def __post_init__(self) -> None:
        if (self.status == "error") != (self.text is None) or (self.status == "error") != (
            self.error_stage is not None
        ):
            raise ValueError(f"text must be null and error_stage set exactly when status is error, got {self!r}")
        if self.finish_reason is not None and self.finish_reason not in get_args(FinishReason):
            raise ValueError(f"finish_reason must be one of {get_args(FinishReason)}, got {self.finish_reason!r}")
        if self.error_stage is not None and self.error_stage not in STAGES:
            raise ValueError(f"error_stage must be one of {STAGES}, got {self.error_stage!r}")


_STRIP = pa.struct(
    [
        pa.field("top", pa.int32(), nullable=False),
        pa.field("bottom", pa.int32(), nullable=False),
        pa.field("text", pa.string()),  # null where this strip failed, and with it the row
        pa.field("finish_reason", pa.string()),
    ]
)

ANSWER_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # ok | error
        pa.field("text", pa.string()),  # null exactly when status is error
        pa.field("finish_reason", pa.string()),  # stop | length | repetition; null on error, as every count below
        pa.field("mean_logprob", pa.float32()),  # of the drawn tokens under the model's own distribution, nats
        pa.field("num_prompt_tokens", pa.int32()),
        pa.field("num_image_tokens", pa.int32()),
        pa.field("num_generated_tokens", pa.int32()),  # the stop token counts, and what was cut as repetition
        pa.field("num_tries", pa.int32()),  # 2 where it was cut as repetition and tried once more; of strips the most
        pa.field("image_width", pa.int32()),  # pixels, of the first image
        pa.field("image_height", pa.int32()),
        pa.field("num_tiles", pa.int32()),
        pa.field("image_sha256", pa.string()),
        pa.field("error_stage", pa.string()),  # read | fetch | decode | prompt | generate
        pa.field("error_type", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("strips", pa.list_(_STRIP)),  # in reading order; null where the image was read as a whole
        pa.field("num_cut_tokens", pa.int32()),  # drawn, and cut from the end of the text as repetition
        pa.field("first_text", pa.string()),  # what the first try had read, where the second one is the answer
    ]
)

_TOKEN = [pa.field("token_id", pa.int32()), pa.field("token", pa.string()), pa.field("logprob", pa.float32())]
LOGPROBS = pa.list_(pa.struct([*_TOKEN, pa.field("top", pa.list_(pa.struct(_TOKEN)))]))  # where asked for

ADDED = ("num_cut_tokens", "first_text")  # behind the columns that answers have had from the beginning


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Text that the engine drew for one prompt; `mean_logprob` is in nats a token.

    Of two tries this is the second where it ends with `stop`, else the first.
    """

    text: str
    finish_reason: FinishReason
    num_generated_tokens: int
    mean_logprob: float
    num_tries: int = 1
    num_cut_tokens: int = 0
    first_text: str | None = None
    steps: tuple[Step, ...] | None = None


def answer_from(sample: Sample, prompt: Prompt, generation: Generation | None) -> Answer:
    """Return the answer row of one prompt: the generation, or the prompt's failure where there is none."""
    size = sample.image_sizes[0] if sample.image_sizes else None
    failure = prompt.failure
    return Answer(
        id=sample.id,
        prompt_id=prompt.id,
        prompt=prompt.text,
        status="ok" if generation else "error",
        text=generation.text if generation else None,
        finish_reason=generation.finish_reason if generation else None,
        mean_logprob=generation.mean_logprob if generation else None,
        num_prompt_tokens=len(prompt.token_ids) or None,
        num_image_tokens=prompt.num_image_tokens if len(prompt.token_ids) else None,
        num_generated_tokens=generation.num_generated_tokens if generation else None,
        num_tries=generation.num_tries if generation else None,
        image_width=size.width if size else None,
        image_height=size.height if size else None,
        num_tiles=sample.tiles_per_image[0] if size else None,
        image_sha256=sample.image_sha256,
        error_stage=failure.stage if failure else None,
        error_type=failure.type if failure else None,
        error_message=failure.message if failure else None,
        num_cut_tokens=generation.num_cut_tokens if generation else None,
        first_text=generation.first_text if generation else None,
        steps=generation.steps if generation else None,
    )


def answers_to_table(answers: Sequence[Answer]) -> pa.Table:
    """Return a table of ANSWER_SCHEMA, one row an answer."""
    columns = {name: [getattr(answer, name) for answer in answers] for name in ANSWER_SCHEMA.names}
    columns["strips"] = [answer.strips and [asdict(strip) for strip in answer.strips] for answer in answers]
    return pa.table(columns, schema=ANSWER_SCHEMA)


def logprobs_of(answers: Sequence[Answer]) -> pa.Array:
    """Return the steps of every answer, null where it has none told."""
    rows = [
        answer.steps and [{**asdict(step.drawn), "top": [asdict(one) for one in step.top]} for step in answer.steps]
        for answer in answers
    ]
    return pa.array(rows, LOGPROBS)


def table_to_answers(table: pa.Table) -> list[Answer]:
    """Return the answers of a table that starts with ANSWER_SCHEMA's columns, written before some were ADDED or after;
    kept columns are ignored."""
    names = answer_schema_of(table).names
    return [_row_to_answer(row) for row in table.select(names).to_pylist()]


def answer_schema_of(table: pa.Table) -> pa.Schema:
    """Return ANSWER_SCHEMA, or it without what was ADDED where the table's answers were written before."""
    if set(ADDED) <= set(table.column_names):
        return ANSWER_SCHEMA
    return pa.schema([field for field in ANSWER_SCHEMA if field.name not in ADDED])


def with_added(table: pa.Table) -> pa.Table:
    """Return answers of the first release with the columns that were ADDED since, null; others as they are."""
    before = answer_schema_of(table)
    if before is ANSWER_SCHEMA or table.column_names[: len(before)] != before.names:
        return table
    for number, field in enumerate(ANSWER_SCHEMA):
        if field.name in ADDED:
            table = table.add_column(number, field, pa.nulls(table.num_rows, field.type))
    return table


def _row_to_answer(row: dict[str, Any]) -> Answer:
    if row["strips"] is not None:
        row["strips"] = tuple(StripAnswer(**strip) for strip in row["strips"])
    return Answer(**row)
