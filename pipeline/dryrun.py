"""What a person reads before a job starts: what was found, and the first rows as the engine would get them."""

from collections.abc import Iterator

from pipeline.checkpoint import locate
from pipeline.columns import describe_columns
from pipeline.machine import describe_needs
from pipeline.plan import Plan
from pipeline.preprocess.facts import read_facts
from pipeline.preprocess.files import load_processor
from pipeline.preprocess.own import describe_ends
from pipeline.preprocess.template import describe_template
from pipeline.reader import unit_reader
from pipeline.stages import Preprocess
from schemas.job import parse_prompts
from schemas.request import table_to_requests
from schemas.sample import Prompt, Sample, table_to_samples
from schemas.wording import printable

ROWS = 8


def describe_plan(plan: Plan) -> str:
    """The input, its columns, the model, the prompts and the output, a line each."""
    listing, settings = plan.listing, plan.settings
    facts = read_facts(locate(settings.model), settings.revision)
    processor = load_processor(facts.model, facts.revision)
    ends = describe_ends(facts, processor)
    lines = [
        f"input    {listing.num_rows:,} rows of {listing.files.num_rows:,} {listing.format} files",
        *([f"left out {listing.left_out}"] if listing.left_out else []),
        *(f"         {line}" for line in describe_columns(listing.columns)),
        f"model    {settings.model} ({plan.model.hash[:12]}), {facts.text.backbone}, context {facts.context:,}",
        *([] if settings.adapter is None else [f"adapter  {settings.adapter}"]),
        f"memory   on GPUs, {describe_needs(settings)}",
        f"chat     {describe_template(settings.chat_template, facts, processor)}",
        *([] if ends is None else [f"ends     {ends}"]),
        *([] if settings.system is None else [f"system   {settings.system!r}"]),
        *(f"prompt   {prompt.id}: {prompt.text!r}" for prompt in parse_prompts(settings.prompt)),
        f"output   {settings.output}: {listing.num_rows * plan.num_prompts:,} answers, "
        f"{listing.num_units:,} units of up to {listing.unit_rows} rows",
    ]
    return "\n".join(lines)


def describe_rows(plan: Plan) -> str:
    """The first rows read and preprocessed for real: sizes, tiles, tokens or failures, and one rendered prompt."""
    stage = Preprocess(plan.settings)
    rows = unit_reader(plan.listing)(0).slice(0, ROWS)
    samples = table_to_samples(stage(rows))
    lines = [line for sample in samples for line in _describe_sample(sample)]
    answerable = [row for row, sample in enumerate(samples) if sample.prompts[0].failure is None]
    if answerable:
        shown = table_to_requests(rows)[answerable[0]]
        lines += ["as the model reads it:", "  " + repr(stage.render(shown))]
    return "\n".join(lines)


def _describe_sample(sample: Sample) -> Iterator[str]:
    sizes = ", ".join(f"{size.width}x{size.height}" for size in sample.image_sizes) or "no image"
    sizes += f" in {len(sample.strips)} strips" if sample.strips else ""
    for prompt in sample.asked:
        yield f"  {printable(sample.id)}  {prompt.id}  {_describe_prompt(prompt, sizes, sum(sample.tiles_per_image))}"


def _describe_prompt(prompt: Prompt, sizes: str, num_tiles: int) -> str:
    if prompt.failure:
        return f"error at {prompt.failure.stage}: {prompt.failure.type}: {printable(prompt.failure.message)}"
    return f"{sizes}, {num_tiles} tiles, {len(prompt.token_ids)} tokens ({prompt.num_image_tokens} of images)"
