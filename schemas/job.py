"""The settings of a job: one frozen record, filled from YAML and flags, checked before anything starts."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from schemas.engine import KvCacheDtype, Quantize
from schemas.errors import Refused
from schemas.form import Form, read_json_schema
from schemas.setting_kinds import Heading, Kind, kinds_of, names_where
from schemas.wording import credentials_in, holds_null, lacks_bucket, redacted

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
Strips = Literal["auto", "off"]
EngineName = Literal["own", "transformers"]

_WEB: Heading = "Images of the web"

TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")  # of a --chat-template that is a file
ROWS_BEFORE_BUDGET = 100  # that are counted before an error budget can be spent


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPrompt:
    """A question asked of every row, and the `prompt_id` of its answers."""

    id: str
    text: str


class JobSettings(BaseModel):
    """Settings of a caption or OCR job. Field names are the flags (`max_new_tokens` is `--max-new-tokens`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input: Annotated[tuple[str, ...], Kind("Input", "rows", of_sweep=True)] = Field(
        min_length=1, description="Parquet files, image files, folders or globs, local or s3://, gs://; repeatable."
    )
    output: Annotated[str, Kind("Output", "run", of_sweep=True)] = Field(
        description="The run folder, local or s3://, gs://."
    )
    allow_root: Annotated[tuple[str, ...], Kind("Input", "requests")] = Field(
        (),
        description="Folders or prefixes, local or s3://, gs://, that the rows of tables may name images in, and no "
        "others; repeatable. Without any, rows may name all but local files where their table is in a store.",
    )
    model: Annotated[str, Kind("Model", "engine")] = Field(
        "demo", description="A hub id, a local checkpoint folder, or the bundled demo model."
    )
    revision: Annotated[str | None, Kind("Model", "engine")] = Field(
        None, description="Branch, tag or commit of a hub model."
    )
    adapter: Annotated[str | None, Kind("Model", "engine")] = Field(
        None,
        description="A LoRA adapter to merge into the model as it is loaded: a folder, or a hub id with or without "
        "@revision. With --model ADAPTER alone the base is the one that the adapter names.",
    )
    prompt: Annotated[tuple[str, ...], Kind("Question", "requests", of_sweep=True)] = Field(
        (),
        description="A question for every row, as text or name=text; {column} stands for the row's value, {{ for a "
        "brace; @file.txt takes it from a file; repeatable. Replaces the job's own.",
    )
    system: Annotated[str | None, Kind("Question", "requests")] = Field(
        None, description="System message of every row without one; '' leaves out the one the chat format has."
    )
    chat_template: Annotated[str, Kind("Question", "requests")] = Field(
        "auto",
        description="How prompts are rendered: checkpoint (its own template), mistral, vicuna, 34b, llama3-8b, 72b, "
        "110b, or a .jinja file. auto: the format of the published checkpoint that the model is, else checkpoint.",
    )

    image_column: Annotated[str | None, Kind("Input", "rows", of_sweep=True)] = Field(
        None, description="Column with image bytes, URIs or {bytes, path} structs, or a list of these."
    )
    image_root: Annotated[str | None, Kind("Input", "rows", of_sweep=True)] = Field(
        None,
        description="Folder or prefix, local or s3://, gs://, that paths of images in tables are relative to; the "
        "table's own folder where it is not given.",
    )
    id_column: Annotated[str | None, Kind("Input", "rows", fixed=True, of_sweep=True)] = Field(
        None, description="Column that names a row."
    )
    prompt_column: Annotated[str | None, Kind("Input", "rows", of_sweep=True)] = Field(
        None, description="Column with a prompt of its own for every row."
    )
    messages_column: Annotated[str | None, Kind("Input", "rows", of_sweep=True)] = Field(
        None, description="Column with a conversation for every row: {role, content} structs, or JSON text of them."
    )
    reference_column: Annotated[str | None, Kind("Input", "rows", fixed=True)] = Field(
        None, description="Column with the right text of every row: the answers are scored against it at the end."
    )
    keep: Annotated[tuple[str, ...], Kind("Input", "rows", fixed=True, of_sweep=True)] = Field(
        (), description="Input columns to copy to the answers, as name or new=old; repeatable."
    )
    limit: Annotated[int | None, Kind("Input", "rows", of_sweep=True)] = Field(
        None, ge=1, description="Take the first N rows only."
    )
    shard: Annotated[str | None, Kind("Input", "rows", fixed=True, of_sweep=True)] = Field(
        None,
        description="I/N: answer the I-th of N parts of the input only, in a folder of its own; `merge` joins them.",
    )

    strips: Annotated[Strips, Kind("Input", "requests", on_retry=True)] = Field(
        "off", description="auto: pages larger than one view of the model are cut, read in strips and joined."
    )
    pdf_dpi: Annotated[int, Kind("Input", "requests", on_retry=True)] = Field(
        150, ge=18, le=1200, description="Pixels an inch at which pages of PDFs are rendered."
    )
    max_new_tokens: Annotated[int, Kind("Answer", "requests", on_retry=True)] = Field(
        256, ge=1, description="Longest answer, in tokens; less where the context is full."
    )
    min_new_tokens: Annotated[int, Kind("Answer", "sampling", on_retry=True)] = Field(
        0, ge=0, description="Shortest answer, in tokens."
    )
    temperature: Annotated[float, Kind("Answer", "sampling", on_retry=True)] = Field(
        0.0, ge=0, description="0 draws the likeliest token every time."
    )
    top_p: Annotated[float, Kind("Answer", "sampling", on_retry=True)] = Field(
        1.0, gt=0, le=1, description="Draw among the likeliest tokens of this total probability."
    )
    top_k: Annotated[int, Kind("Answer", "sampling", on_retry=True)] = Field(
        0, ge=0, description="Draw among the k likeliest tokens; 0 takes all."
    )
    repetition_penalty: Annotated[float, Kind("Answer", "sampling", on_retry=True)] = Field(
        1.0, gt=0, description="Divides the scores of tokens already seen."
    )
    cut_repetition: Annotated[bool, Kind("Answer", "sampling", on_retry=True)] = Field(
        False, description="End an answer that repeats itself without end, and try it once more with retry_penalty."
    )
    retry_penalty: Annotated[float, Kind("Answer", "sampling", on_retry=True)] = Field(
        1.15, ge=1, description="Repetition penalty of that second try, kept if it ends by itself; 1 tries no more."
    )
    stop: Annotated[tuple[str, ...], Kind("Answer", "sampling", on_retry=True)] = Field(
        (), description="Texts that end an answer; repeatable."
    )
    seed: Annotated[int, Kind("Answer", "sampling", on_retry=True)] = Field(
        0, ge=0, description="With a row's id it fixes what sampling draws for that row."
    )
    num_answers: Annotated[int, Kind("Answer", "requests", fixed=True)] = Field(
        1, ge=1, le=256, description="Answers to every prompt, drawn independently of each other; a row each."
    )
    answer_prefix: Annotated[str, Kind("Answer", "requests", on_retry=True)] = Field(
        "", description="Text that every answer begins with: the model goes on from it."
    )
    logprobs: Annotated[int | None, Kind("Answer", "sampling", fixed=True)] = Field(
        None, ge=0, le=20, description="Give the log-probability of every token, and of the likeliest N in its place."
    )
    bad_words: Annotated[tuple[str, ...], Kind("Answer", "sampling", on_retry=True)] = Field(
        (), description="Texts that no answer contains, spelled just so; repeatable."
    )
    reuse_answers: Annotated[bool, Kind("Machines", "machines", on_retry=True)] = Field(
        False, description="Answer identical images and prompts once, at temperature 0; the others get a copy."
    )
    json_schema: Annotated[str | None, Kind("Answer", "sampling")] = Field(
        None, description="A JSON schema that every answer follows: a file, or the schema itself."
    )
    regex: Annotated[str | None, Kind("Answer", "sampling")] = Field(
        None, description="A regular expression that every answer matches as a whole."
    )
    choices: Annotated[tuple[str, ...], Kind("Answer", "sampling")] = Field(
        (), description="Texts of which every answer is one, as a,b,c; repeatable, for texts with a comma."
    )
    json_schema_column: Annotated[str | None, Kind("Answer", "requests", of_sweep=True)] = Field(
        None, description="Column with a JSON schema of its own for every row; a row without one has the job's form."
    )
    parse: Annotated[bool, Kind("Answer", "rows", fixed=True)] = Field(
        False, description="Read the answers to --json-schema into a column `parsed`, a struct; null where cut."
    )

    engine: Annotated[EngineName, Kind("Model", "engine")] = Field(
        "own",
        description="own: ours, for llama, mistral and qwen2 text networks. transformers: its own generate in padded "
        "batches, slower, for every text network that it knows.",
    )
    dtype: Annotated[Dtype, Kind("Model", "engine")] = Field(
        "auto", description="auto: bfloat16 on a GPU, float32 without."
    )
    quantize: Annotated[Quantize | None, Kind("Model", "engine")] = Field(
        None,
        description="Weights of the text network in fewer bits: fp8 (needs no package), 8bit or 4bit (bitsandbytes).",
    )
    kv_cache_dtype: Annotated[KvCacheDtype | None, Kind("Model", "engine")] = Field(
        None,
        description="int8: keys and values of running rows in 8 bits, with a scale a token and head; rows are decoded "
        "faster, twice as many fit, and answers change a little. The model's dtype when not given.",
    )
    image_tokens: Annotated[float, Kind("Model", "engine")] = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of an image's tokens that are kept, those that the vision tower attends to most: faster and "
        "less exact. Not for text, charts or tables.",
    )
    attention: Annotated[Attention, Kind("Model", "engine")] = Field(
        "sdpa",
        description="Attention kernels of the vision tower; the text network has its own. flash_attention_2 needs "
        "the package flash-attn.",
    )
    batch_size: Annotated[int, Kind("Machines", "machines", on_retry=True)] = Field(
        32, ge=1, description="Rows generated together on a CPU; on a GPU see slots."
    )
    slots: Annotated[int | None, Kind("Machines", "machines", on_retry=True)] = Field(
        None, ge=1, description="Rows generated together; what a GPU's free memory holds."
    )
    capacity: Annotated[int | None, Kind("Machines", "engine", on_retry=True)] = Field(
        None, ge=1, description="Longest prompt and answer together, in tokens; the model's context, 4096 at most."
    )
    gpus: Annotated[int | None, Kind("Machines", "machines", on_retry=True)] = Field(
        None, ge=0, description="GPUs in all; all of the cluster's when not given."
    )
    gpus_per_model: Annotated[int, Kind("Machines", "machines", on_retry=True)] = Field(
        1, ge=1, description="GPUs of one machine that share the layers of one model, where it is too large for one."
    )
    step_seconds: Annotated[float | None, Kind("Machines", "machines", on_retry=True)] = Field(
        None,
        ge=0,
        description="An engine that takes longer for one step, as on a GPU that hangs, is ended and its rows are done "
        "by another; 0 for no limit. 600 on a GPU when not given, on a CPU none.",
    )
    preprocess_workers: Annotated[int | None, Kind("Machines", "machines", on_retry=True)] = Field(
        None, ge=1, description="CPU actors; from the cluster's when not given."
    )
    fetch_threads: Annotated[int, Kind("Machines", "run", on_retry=True)] = Field(
        64, ge=1, le=1024, description="Images fetched at once by each preprocessing actor: its connections."
    )
    dashboard: Annotated[bool, Kind("Machines", "machines", on_retry=True)] = Field(
        False, description="Start Ray's dashboard with a Ray of the job's own, and say where it is."
    )
    worker_logs: Annotated[bool, Kind("Machines", "machines", on_retry=True)] = Field(
        False, description="Show what the workers print."
    )
    wait_for_cluster: Annotated[float, Kind("Machines", "machines", on_retry=True)] = Field(
        0,
        ge=0,
        description="Seconds to wait for the cluster that RAY_ADDRESS names, where it is not there yet or goes away.",
    )
    unit_rows: Annotated[int | None, Kind("Machines", "run", fixed=True)] = Field(
        None, ge=1, le=4096, description="Rows of a work unit; from the input's rows."
    )

    max_image_bytes: Annotated[int, Kind("Input", "requests", on_retry=True)] = Field(
        64 * 2**20, ge=1, description="Larger encoded images become error rows."
    )
    max_image_pixels: Annotated[int, Kind("Input", "requests", on_retry=True)] = Field(
        100_000_000, ge=1, description="Larger decoded images become error rows."
    )
    max_image_aspect: Annotated[float, Kind("Input", "requests", on_retry=True)] = Field(
        1000, ge=1, description="Images with one side more than so many times the other become error rows."
    )
    row_seconds: Annotated[float, Kind("Input", "run", on_retry=True)] = Field(
        60, ge=0, description="A row whose preparation takes longer becomes an error row; 0 for no limit."
    )
    max_error_rate: Annotated[float, Kind("Output", "run", on_retry=True)] = Field(
        0.01, ge=0, le=1, description="Stop when more rows fail; counted after 100 rows."
    )
    max_fetch_error_rate: Annotated[float | None, Kind("Output", "run")] = Field(
        None,
        ge=0,
        le=1,
        description="Stop when more rows fail at fetch, which max_error_rate then does not count: many URLs of the web "
        "are dead.",
    )

    allow_hosts: Annotated[tuple[str, ...], Kind(_WEB, "requests", on_retry=True)] = Field(
        (),
        description="Hosts that rows may fetch http(s) images from, and no others: a name, *.domain, an address or a "
        "network; repeatable.",
    )
    deny_hosts: Annotated[tuple[str, ...], Kind(_WEB, "requests", on_retry=True)] = Field(
        (), description="Hosts that they may not, spelled likewise; repeatable."
    )
    allow_private: Annotated[bool, Kind(_WEB, "requests", on_retry=True)] = Field(
        False,
        description="Let http(s) URLs of rows reach private and loopback addresses; never a cloud's metadata.",
    )
    http_proxy: Annotated[bool, Kind(_WEB, "run", on_retry=True)] = Field(
        False, description="Fetch http(s) images by the proxies of the environment, which then decide on addresses."
    )
    user_agent: Annotated[str | None, Kind(_WEB, "requests", on_retry=True)] = Field(
        None, description="Name that http(s) images are asked for under."
    )
    ignore_robots_tag: Annotated[bool, Kind(_WEB, "requests", on_retry=True)] = Field(
        False, description="Also use images whose servers say X-Robots-Tag: noai or noimageai."
    )
    fetch_per_host: Annotated[int, Kind(_WEB, "run", on_retry=True)] = Field(
        16, ge=1, description="Connections of each preprocessing actor to one host."
    )
    fetch_redirects: Annotated[int, Kind(_WEB, "requests", on_retry=True)] = Field(
        5, ge=0, le=50, description="Redirects of an http(s) URL, each checked anew."
    )
    fetch_connect_seconds: Annotated[float, Kind(_WEB, "run", on_retry=True)] = Field(
        10, gt=0, description="Longest wait for one connection to a host."
    )
    fetch_read_seconds: Annotated[float, Kind(_WEB, "run", on_retry=True)] = Field(
        20, gt=0, description="Longest wait for the next byte of an http(s) image."
    )

    @field_validator("input", "allow_root")
    @classmethod
    def _spell_all(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(in_utf_8, urls))

    @field_validator("output", "image_root", mode="before")
    @classmethod
    def _spell(cls, url: object) -> object:
        return in_utf_8(url) if isinstance(url, str) else url

    @field_validator("shard")
    @classmethod
    def _check_shard(cls, shard: str | None) -> str | None:
        found = _SHARD.fullmatch("1/1" if shard is None else shard)
        if found is None or int(found[1]) > int(found[2]):
            raise Refused(f"--shard must be I/N, the I-th of N parts from 1/N to N/N, as 2/8, got {shard!r}")
        return shard

    @field_validator("user_agent")
    @classmethod
    def _check_user_agent(cls, name: str | None) -> str | None:
        if name is not None and not (name.strip() and name.isascii() and name.isprintable()):
            raise ValueError("it must be visible ASCII characters")
        return name

    @field_validator("json_schema", mode="before")
    @classmethod
    def _read_schema(cls, given: object) -> object:
        """Return the schema itself for its file, so that run.json holds it and no worker looks for the file."""
        return read_json_schema(given)

    @field_validator("choices", mode="before")
    @classmethod
    def _split_choices(cls, given: object) -> object:
        texts = (given,) if isinstance(given, str) else given
        if isinstance(texts, list | tuple) and len(texts) == 1 and isinstance(texts[0], str):
            return tuple(texts[0].split(","))
        return texts

    @field_validator("*")
    @classmethod
    def _check_texts(cls, given: object, field: ValidationInfo) -> object:
        """Refuse bytes of a shell that are no text, and an empty one: an unset variable would be as if not asked."""
        flag = f"--{str(field.field_name).replace('_', '-')}"
        texts = (given,) if isinstance(given, str) else given if isinstance(given, tuple) else ()
        for text in texts:
            if not text and field.field_name not in _MAY_BE_EMPTY:
                raise Refused(f"{flag} must not be empty, got {text!r}: is a variable of the shell unset?")
            if text.encode("utf-8", "ignore").decode() != text:
                raise Refused(f"{flag} must be text that can be written as UTF-8, got {text!r}")
        return given

    @model_validator(mode="after")
    def _check_forms(self) -> Self:
        forms = [f"--{name.replace('_', '-')}" for name in _FORMS if getattr(self, name) not in (None, ())]
        if len(forms) > 1:
            raise Refused(f"{' and '.join(forms)} exclude each other: an answer has one form")
        if forms or self.json_schema_column is not None:
            ends = "stop" if self.stop else "min_new_tokens" if self.min_new_tokens else None
            if ends is not None:
                raise Refused(f"--{ends.replace('_', '-')} must be left out where answers have a form, which ends them")
        return self

    @model_validator(mode="after")
    def _check_ways_to_ask(self) -> Self:
        has_form = self.form is not None or self.json_schema_column is not None
        if has_form and (self.answer_prefix or self.bad_words):
            name = "answer-prefix" if self.answer_prefix else "bad-words"
            raise Refused(f"--{name} must be left out where answers have a form, which says all that is in them")
        if self.num_answers > 1 and not self.temperature:
            raise Refused(f"--num-answers {self.num_answers} needs a --temperature above 0: all of them would be equal")
        if self.reuse_answers and self.temperature:
            raise Refused("--reuse-answers needs --temperature 0: rows that are drawn have answers of their own")
        if self.image_tokens < 1 and (self.strips == "auto" or self.engine == "transformers"):
            other = "--strips auto" if self.strips == "auto" else "--engine transformers"
            raise Refused(f"--image-tokens {self.image_tokens} must be left out with {other}, which sees whole images")
        whole = {"a form": has_form, "--answer-prefix": self.answer_prefix, "--logprobs": self.logprobs is not None}
        asked = [name for name, is_asked in whole.items() if is_asked]
        if asked and self.strips == "auto":
            raise Refused(f"--strips must be off with {asked[0]}: the strips of a page are one text")
        return self

    @property
    def form(self) -> Form | None:
        """Return the form of every answer whose row has none of its own."""
        if self.json_schema is not None:
            return Form(kind="json_schema", text=self.json_schema)
        if self.regex is not None:
            return Form(kind="regex", text=self.regex)
        return Form(kind="choices", text=json.dumps(self.choices)) if self.choices else None

    @property
    def answer_form(self) -> Form | None:
        """Return what every answer's text must be, whether its form or the words that it is without."""
        return self.form or (Form(kind="bad_words", text=json.dumps(self.bad_words)) if self.bad_words else None)

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """Return the `prompt_id` of every answer of a row, in order; of several answers to one prompt the second is
        called `name.2`."""
        names = [prompt.id for prompt in parse_prompts(self.prompt)] or ["prompt"]
        return tuple(id for name in names for id in self.draws(name))

    def draws(self, prompt_id: str) -> tuple[str, ...]:
        """Return what the answers to a prompt are called."""
        return (prompt_id, *(f"{prompt_id}.{number}" for number in range(2, self.num_answers + 1)))

    @model_validator(mode="after")
    def _check_urls(self) -> Self:
        urls = [("input", url) for url in self.input] + [("allow_root", url) for url in self.allow_root]
        urls += [("adapter", self.adapter)] if self.adapter is not None else []
        urls += [("image_root", self.image_root)] if self.image_root is not None else []
        for name, url in [*urls, ("output", self.output), ("model", self.model)]:
            flag = f"--{name.replace('_', '-')}"
            if not url.strip():
                raise Refused(f"{flag} must not be empty, got {url!r}: is a variable of the shell unset?")
            if holds_null(url):
                raise Refused(f"{flag} must not hold a null character, got {url!r}")
            if lacks_bucket(url):
                raise Refused(f"{flag} must name a bucket, got {url!r}: is a variable of the shell unset?")
            if (secret := credentials_in(url)) is not None:
                raise Refused(
                    f"{flag} {redacted(url)} must not hold {secret}, as the run's files and messages name it: "
                    "put keys in the environment, or copy a file that is behind http(s) to this machine"
                )
            if name in ("model", "adapter") and len(os.fsencode(url)) > _LONGEST_PATH:
                raise Refused(
                    f"{flag} must be a folder or a hub id, of at most {_LONGEST_PATH:,} bytes, got one of "
                    f"{len(os.fsencode(url)):,}: {url[:60]}..."
                )
            if name in ("model", "adapter") and (longest := max(map(len, map(os.fsencode, url.split("/"))))) > _LONGEST:
                raise Refused(
                    f"{flag} must be a folder or a hub id, of names of at most {_LONGEST} bytes, got one of {longest}: "
                    f"{url[:60]}..."
                )
        return self

    @property
    def num_prompts(self) -> int:
        """Return the number of answers that every row has: of all the job's questions, and of all draws of each."""
        return max(1, len(self.prompt)) * self.num_answers

    @property
    def shard_number(self) -> int:
        """Return which part of the input is answered, from 1."""
        return int((self.shard or "1/1").partition("/")[0])

    @property
    def num_shards(self) -> int:
        """Return in how many parts the input is answered."""
        return int((self.shard or "1/1").partition("/")[2])

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise Refused(
                f"min_new_tokens must be at most max_new_tokens ({self.max_new_tokens}), got {self.min_new_tokens}"
            )
        if self.gpus and self.gpus % self.gpus_per_model:
            raise Refused(f"gpus must be a multiple of gpus_per_model ({self.gpus_per_model}), got {self.gpus}")
        asked = [name for name in ("prompt", "prompt_column", "messages_column") if getattr(self, name)]
        if len(asked) > 1:
            raise Refused(f"{' and '.join(asked)} exclude each other: ask the same of every row, or each its own")
        for prompt in parse_prompts(self.prompt):
            columns_in(prompt.text)
        ids = Counter(prompt.id for prompt in parse_prompts(self.prompt))
        twice = [id for id, count in ids.items() if count > 1]
        if twice:
            raise Refused(f"prompt names must differ, got {', '.join(twice)} more than once")
        return self


_LONGEST_PATH = 4_000  # bytes; Linux has 4,096, with what is below a checkpoint's folder
_LONGEST = 255  # bytes of a name in a file system: looking for a longer one is an OSError, as where a disk is away
# No column is called '': that the input has none of that name is said as of any other. An engine refuses a stop itself.
_COLUMNS = frozenset({"image_column", "id_column", "prompt_column", "messages_column"})
_MAY_BE_EMPTY = _COLUMNS | {"system", "answer_prefix", "stop"}
_SHARD = re.compile(r"([1-9][0-9]{0,4})/([1-9][0-9]{0,4})")
_FORMS = ("json_schema", "regex", "choices")
KINDS = kinds_of(JobSettings)
# Settings that change where and how fast a job runs, never what it answers: free to differ on a resume.
PLACEMENT = names_where(KINDS, lambda kind: not kind.shapes_answers)


def in_utf_8(path: str) -> str:
    """Return a path of the command line whose bytes are not UTF-8 as the URI of the same file; any other as it is."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(os.path.abspath(path)))
    return path


def parse_prompts(texts: tuple[str, ...]) -> tuple[NamedPrompt, ...]:
    """Return the prompts: `name=text` is named; other texts are called `prompt`, or `prompt1`, `prompt2`, ... where
    there are several."""
    return tuple(_parse_prompt(text, i, len(texts)) for i, text in enumerate(texts, start=1))


def name_prompt(name: str, text: str) -> str:
    """Return `name=text`; raise ValueError where `parse_prompts` would not take it apart again."""
    named = _NAMED.fullmatch(f"{name}={text}")
    if named is None or named[1] != name or not text.strip():
        rule = "a letter, then letters, digits, _ and -, and a text"
        raise Refused(f"a prompt must have a name of {rule}, got {name!r}: {text!r}")
    return named[0]


def columns_in(text: str) -> tuple[str, ...]:
    """Return the columns that a prompt names as {column}; raise ValueError for a brace that neither names one nor is
    doubled.

    Nothing but the name stands in the braces: no format, no attribute, so that a name may hold any other character.
    """
    names = [found for found in _BRACES.findall(text) if found not in ("{{", "}}")]
    for name in names:
        if len(name) < 3 or not name[1:-1].strip():
            raise Refused(f"a brace in a prompt must name a column or be doubled, got {name!r} in {text!r}")
    return tuple(dict.fromkeys(name[1:-1] for name in names))


def fill(text: str, values: Mapping[str, str | None]) -> str:
    """Return the prompt with {column} replaced by its value and doubled braces by one; raise KeyError for a null."""

    def put(found: re.Match[str]) -> str:
        if found[0] in ("{{", "}}"):
            return found[0][0]
        value = values[found[0][1:-1]]
        if value is None:
            raise KeyError(found[0][1:-1])
        return value  # as it is: a brace in it is a brace

    return _BRACES.sub(put, text)


_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)=(.+)", re.DOTALL)
_BRACES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")


def _parse_prompt(text: str, number: int, of: int) -> NamedPrompt:
    named = _NAMED.fullmatch(text)
    id, question = (named[1], named[2]) if named else ("prompt" if of == 1 else f"prompt{number}", text)
    if not question.strip():
        raise Refused(f"prompt must not be empty, got {text!r}")
    return NamedPrompt(id=id, text=question)
