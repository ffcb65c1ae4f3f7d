"""The settings of a job: one frozen record, filled from YAML and flags, checked before anything starts."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]

# Settings that change where and how fast a job runs, never what it answers: free to differ on a resume.
PLACEMENT = frozenset(
    {"output", "batch_size", "gpus", "preprocess_workers", "unit_rows", "max_error_rate", "fetch_threads"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPrompt:
    """A question asked of every row, and the `prompt_id` of its answers."""

    id: str
    text: str


class JobSettings(BaseModel):
    """What a caption or OCR job is told. Field names are the flags (`max_new_tokens` is `--max-new-tokens`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: tuple[str, ...] = Field(
        min_length=1, description="Parquet files, image files, folders or globs, local or s3://, gs://; repeatable."
    )
    output: str = Field(min_length=1, description="The run folder, local or s3://, gs://.")
    model: str = Field("demo", description="A hub id, a local checkpoint folder, or the bundled demo model.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    prompt: tuple[str, ...] = Field(
        (), description="A question for every row, as text or name=text; repeatable. Replaces the job's own."
    )

    image_column: str | None = Field(None, description="Column with image bytes, URIs or {bytes, path} structs.")
    id_column: str | None = Field(None, description="Column that names a row.")
    prompt_column: str | None = Field(None, description="Column with a prompt of its own for every row.")
    keep: tuple[str, ...] = Field(
        (), description="Input columns to copy to the answers, as name or new=old; repeatable."
    )
    limit: int | None = Field(None, ge=1, description="Take the first N rows only.")

    max_new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    min_new_tokens: int = Field(0, ge=0, description="Shortest answer, in tokens.")
    temperature: float = Field(0.0, ge=0, description="0 draws the likeliest token every time.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw among the likeliest tokens of this total probability.")
    top_k: int = Field(0, ge=0, description="Draw among the k likeliest tokens; 0 takes all.")
    repetition_penalty: float = Field(1.0, gt=0, description="Divides the scores of tokens already seen.")
    stop: tuple[str, ...] = Field((), description="Texts that end an answer; repeatable.")
    seed: int = Field(0, ge=0, description="With a row's id it fixes what sampling draws for that row.")

    dtype: Dtype = Field("auto", description="auto: bfloat16 on a GPU, float32 without.")
    attention: Attention = Field("sdpa", description="Which attention kernels transformers uses.")
    batch_size: int = Field(32, ge=1, description="Rows generated together.")
    gpus: int | None = Field(None, ge=0, description="GPUs, one model each; all of the cluster's when not given.")
    preprocess_workers: int | None = Field(None, ge=1, description="CPU actors; from the cluster's when not given.")
    fetch_threads: int = Field(16, ge=1, description="Images fetched at once by each preprocessing actor.")
    unit_rows: int | None = Field(None, ge=1, le=4096, description="Rows of a work unit; from the input's rows.")

    max_image_bytes: int = Field(64 * 2**20, ge=1, description="Larger encoded images become error rows.")
    max_image_pixels: int = Field(100_000_000, ge=1, description="Larger decoded images become error rows.")
    max_error_rate: float = Field(0.01, ge=0, le=1, description="Stop when more rows fail; counted after 100 rows.")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be at most max_new_tokens ({self.max_new_tokens}), got {self.min_new_tokens}"
            )
        if self.prompt and self.prompt_column:
            raise ValueError("prompt and prompt_column exclude each other: ask the same of every row, or each its own")
        ids = Counter(prompt.id for prompt in parse_prompts(self.prompt))
        twice = [id for id, count in ids.items() if count > 1]
        if twice:
            raise ValueError(f"prompt names must differ, got {', '.join(twice)} more than once")
        return self


def parse_prompts(texts: tuple[str, ...]) -> tuple[NamedPrompt, ...]:
    """`name=text` is named; other texts are called `prompt`, or `prompt1`, `prompt2`, ... where there are several."""
    return tuple(_parse_prompt(text, i, len(texts)) for i, text in enumerate(texts, start=1))


def _parse_prompt(text: str, number: int, of: int) -> NamedPrompt:
    named = re.fullmatch(r"([A-Za-z][A-Za-z0-9_-]*)=(.+)", text, re.DOTALL)
    id, question = (named[1], named[2]) if named else ("prompt" if of == 1 else f"prompt{number}", text)
    if not question.strip():
        raise ValueError(f"prompt must not be empty, got {text!r}")
    return NamedPrompt(id=id, text=question)
