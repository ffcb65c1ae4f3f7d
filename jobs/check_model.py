"""check-model: our engine against transformers on a checkpoint of one's own, token for token.

python -m jobs check-model llava-hf/llava-v1.6-mistral-7b-hf
python -m jobs check-model MODEL --quantize fp8 --bundle report.zip
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import BaseModel, Field

from jobs.answer import say
from jobs.flags import settings_from, under, with_options
from schemas.errors import Refused
from schemas.job import JobSettings
from schemas.wording import one_line, printable

if TYPE_CHECKING:
    from pipeline.check_model import Checked, Comparison, Cost

_OF_A_MODEL = (
    "revision",
    "adapter",
    "dtype",
    "quantize",
    "kv_cache_dtype",
    "attention",
    "chat_template",
    "system",
    "max_new_tokens",
    "gpus",
    "gpus_per_model",
    "slots",
    "capacity",
)
_SHOWN = 60  # characters of a text
_TOKENS = 48  # of an answer by default: where two engines differ they do so early


class Check(BaseModel):
    """Settings of the check itself."""

    bundle: Annotated[str | None, Parameter(group=under("Output"))] = Field(
        None,
        description="Write a zip for a bug report: versions, config, results; no weights, no pictures, no secrets.",
    )


if TYPE_CHECKING:
    Choices = Check
else:
    Choices = with_options(Check, _OF_A_MODEL)

_ALL = Choices()


def check_model(
    model: Annotated[str, Parameter(help="A hub id, a checkpoint folder, or demo.", group=under("Model"))] = "demo",
    *,
    choices: Annotated[Choices, Parameter(name="*")] = _ALL,
) -> int:
    """Ask our engine and transformers the same questions about bundled pictures, and compare every token.

    llava-batch check-model llava-hf/llava-v1.6-mistral-7b-hf
    llava-batch check-model MODEL --quantize fp8 --bundle report.zip

    In float32 the answers must be equal: exit status 1 where they are not. In fewer bits both round, each in its own
    order; a difference is shown with how close the two tokens were. Questions have 48 tokens to answer unless
    --max-new-tokens says otherwise.
    """
    from pipeline.check_bundle import write_bundle
    from pipeline.environment import cards_here
    from pipeline.plan import resolve_model
    from pipeline.preflight import check_machine, check_writable

    given = choices.model_dump(exclude_none=True)
    bundle = given.pop("bundle", None)
    if bundle is not None:
        check_writable(_folder_of(bundle), "the folder of --bundle")
        if not bundle.endswith(".zip"):
            raise Refused(f"--bundle must be the name of a .zip file, got {bundle!r}")
    base = {"input": ("bundled",), "output": "nothing", "model": model, "max_new_tokens": _TOKENS}
    settings, pin = resolve_model(settings_from({**base, **given}))
    cards = cards_here()
    check_machine(settings, cards)
    say(f"model    {settings.model} ({pin.hash[:12]})")
    checked = _check(settings, on_gpu=bool(cards) and settings.gpus != 0)
    status = status_of(checked)
    if bundle is None:
        return status
    try:
        write_bundle(bundle, settings, pin, checked)
    except OSError as error:
        say(f"error: --bundle {bundle} cannot be written: {one_line(error)}")
        return 1
    say(f"bundle   {bundle}: versions, config and results, for a bug report")
    return status


def _folder_of(bundle: str) -> str:
    folder, slash, _ = bundle.rpartition("/")
    return folder or slash or "."


def status_of(checked: Sequence["Checked"]) -> int:
    """Return 1, and say why, where answers in float32, which come first, are not all equal."""
    exact = checked[0]
    differ = len(exact.comparisons) - exact.num_equal
    if differ:
        say(f"error: in float32 every answer must be transformers' own, token for token; {differ} are not")
    return 1 if differ else 0


def _check(settings: JobSettings, *, on_gpu: bool) -> "list[Checked]":
    """Compare in each precision, and show each as it is done."""
    from transformers.utils.logging import disable_progress_bar

    from pipeline.check_model import check_model

    disable_progress_bar()  # of two loads a precision
    checked = []
    for one in check_model(settings, on_gpu=on_gpu):
        checked.append(one)
        sys.stdout.write("\n".join(_lines(one)) + "\n")
        sys.stdout.flush()
    return checked


def _lines(checked: "Checked") -> list[str]:
    width = max(len(one.question) for one in checked.comparisons)
    rows = [f"  {one.question:<{width}}  {_verdict(one)}" for one in checked.comparisons]
    return [
        f"\n{checked.precision} on {checked.device}: {checked.num_equal} of {len(checked.comparisons)} answers equal",
        *rows,
        f"  ours          {_cost(checked.ours)}, all questions at once",
        f"  transformers  {_cost(checked.theirs)}, one question at a time",
    ]


def _verdict(one: "Comparison") -> str:
    if one.failure is not None:
        return f"not asked: {printable(one.failure)}"
    number = one.first_difference
    if number is None:
        return f"equal, {len(one.ours)} tokens: {_short(one.ours_text)}"
    close = "" if one.margin is None else f", {one.margin:.4f} nats apart"
    return f"differs at token {number + 1}{close}: ours {_short(one.ours_text)}, theirs {_short(one.theirs_text)}"


def _cost(cost: "Cost") -> str:
    pace = cost.num_tokens / cost.answer_s if cost.answer_s else 0.0
    return (
        f"loaded in {cost.load_s:.1f} s, {cost.num_tokens} tokens in {cost.answer_s:.1f} s ({pace:.1f} a second), "
        f"{cost.memory_bytes / 1e9:.1f} GB"
    )


def _short(text: str) -> str:
    shown = printable(text)
    return repr(shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}...")
