"""Dry run: what a person reads before a job starts, and the first rows as the engine would get them."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.environment import cluster_address
from pipeline.plan import Plan
from pipeline.preflight import describe_needs
from pipeline.preprocess.facts import read_facts
from pipeline.preprocess.files import load_processor
from pipeline.preprocess.own import describe_ends
from pipeline.preprocess.template import describe_template
from pipeline.sources.columns import describe_columns
from pipeline.sources.reader import unit_reader
from pipeline.stages.preprocess import Preprocess
from pipeline.weights.hub import locate
from schemas.job import JobSettings, parse_prompts
from schemas.request import table_to_requests
from schemas.sample import Prompt, Sample, table_to_samples
from schemas.wording import counted, printable

ROWS = 8
_SHOWN = 60  # letters of a form


def describe_plan(plan: Plan, cards: tuple[int, ...] = ()) -> str:
    """Return the input, its columns, the model, the prompts and the output, a line each; `cards` are this machine's
    GPUs."""
    listing, settings = plan.listing, plan.settings
    facts = read_facts(locate(settings.model), settings.revision)
    processor = load_processor(facts.model, facts.revision)
    ends = describe_ends(facts, processor)
    kind = "image" if listing.format == "images" else listing.format
    lines = [
        f"input    {counted(listing.num_rows, 'row')} of {counted(listing.files.num_rows, f'{kind} file')}"
        + (f", shard {settings.shard} of {listing.num_input_rows:,} rows" if settings.shard else ""),
        *([f"left out {listing.left_out}"] if listing.left_out else []),
        *(f"         {line}" for line in describe_columns(listing.columns)),
        f"model    {settings.model} ({plan.model.hash[:12]}), {facts.text.backbone}, context {facts.context:,}",
        *([] if settings.adapter is None else [f"adapter  {settings.adapter}"]),
        *([f"memory   on GPUs, {describe_needs(settings)}"] if _on_gpus(settings, cards) else []),
        f"chat     {describe_template(settings.chat_template, facts, processor)}",
        *([] if ends is None else [f"ends     {ends}"]),
        *([] if settings.system is None else [f"system   {settings.system!r}"]),
        *(f"prompt   {prompt.id}: {prompt.text!r}" for prompt in parse_prompts(settings.prompt)),
        *_describe_asking(settings),
        f"output   {settings.output}: {counted(listing.num_rows * plan.num_prompts, 'answer')}, "
        f"{counted(listing.num_units, 'unit')} of up to {listing.unit_rows} rows",
    ]
    return "\n".join(lines)


def _describe_asking(settings: JobSettings) -> Iterator[str]:
    """Yield what is asked of the answers beside their prompts, a line each."""
    form = settings.answer_form
    if form is not None:
        yield f"form     {form.kind.replace('_', ' ')}: {form.text[:_SHOWN]}{'...' if len(form.text) > _SHOWN else ''}"
    if settings.num_answers > 1:
        yield f"answers  {settings.num_answers} draws to every prompt, a row each"
    if settings.answer_prefix:
        yield f"prefix   {settings.answer_prefix!r}, which every answer begins with"
    if settings.image_tokens < 1:
        yield f"images   {settings.image_tokens:.0%} of their tokens are kept: faster and less exact"


def _on_gpus(settings: JobSettings, cards: tuple[int, ...]) -> bool:
    """Return whether the job may run on GPUs: this machine's, a cluster's, or those that were asked for."""
    return settings.gpus != 0 and bool(settings.gpus or cards or cluster_address())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The first rows as the engine would get them: lines for people, and how many of the rows have no prompt left."""

    lines: str
    rows: int
    failed: int


def sample_rows(plan: Plan) -> Sampled:
    """Read and preprocess the first rows for real: sizes, tiles, tokens or failures, and one rendered prompt."""
    stage = Preprocess(plan.settings)
    rows = unit_reader(plan.listing)(0).slice(0, ROWS)
    samples = table_to_samples(stage(rows))
    lines = [line for sample in samples for line in _describe_sample(sample)]
    rendered = [row for row, sample in enumerate(samples) if sample.prompts[0].failure is None]
    if rendered:
        shown = table_to_requests(rows)[rendered[0]]
        lines += ["as the model reads it:", "  " + repr(stage.render(shown))]
    failed = sum(all(prompt.failure for prompt in sample.asked) for sample in samples)
    return Sampled(lines="\n".join(lines), rows=len(samples), failed=failed)


def _describe_sample(sample: Sample) -> Iterator[str]:
    sizes = ", ".join(f"{size.width}x{size.height}" for size in sample.image_sizes) or "no image"
    sizes += f" in {len(sample.strips)} strips" if sample.strips else ""
    for prompt in sample.asked:
        yield f"  {printable(sample.id)}  {prompt.id}  {_describe_prompt(prompt, sizes, sum(sample.tiles_per_image))}"


def _describe_prompt(prompt: Prompt, sizes: str, num_tiles: int) -> str:
    if prompt.failure:
        return f"error at {prompt.failure.stage}: {prompt.failure.type}: {printable(prompt.failure.message)}"
    return f"{sizes}, {num_tiles} tiles, {len(prompt.token_ids)} tokens ({prompt.num_image_tokens} of images)"
