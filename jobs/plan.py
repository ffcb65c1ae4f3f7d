"""plan: rows, tokens, hours and money of a job before it starts, and what will go wrong.

python -m jobs plan --config job.yaml --gpus 8 --gpu-type h100 --price-per-gpu-hour 3
python -m jobs plan --input photos/ --output out/ --calibrate 64
"""

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from pydantic import BaseModel, Field

from jobs.answer import run_to_status, say
from jobs.caption import PROMPT
from jobs.flags import checked, under, with_headings
from jobs.ocr import OcrSettings, ocr_prompt
from schemas.job import JobSettings
from schemas.wording import printable, redacted

if TYPE_CHECKING:
    from pipeline.forecast import Forecast, Wanted
    from pipeline.look import Interval
    from pipeline.plan import Plan

    Settings = JobSettings
else:
    Settings = with_headings(JobSettings)

_GROUP = under("This call")
_THIS = Parameter(group=_GROUP)


class Planned(BaseModel):
    """Holds what is planned, beside the settings of the job."""

    job: Annotated[Literal["caption", "ocr"], _THIS] = Field("caption", description="The job that is planned.")
    gpu_type: Annotated[Literal["h100", "h200", "a100", "l40s", "4090"] | None, _THIS] = Field(
        None, description="The cards that --gpus counts; this machine, by --calibrate, when not given."
    )
    price_per_gpu_hour: Annotated[float | None, _THIS] = Field(
        None, gt=0, lt=1e9, description="Money, in any currency."
    )
    calibrate: Annotated[int | None, _THIS] = Field(
        None, ge=1, description="Answer N rows from everywhere in the input on this machine, to measure it and them."
    )
    answer_tokens: Annotated[int | None, _THIS] = Field(
        None, ge=1, description="Assume answers of so many tokens on average."
    )


_NOTHING = Planned()


def plan(
    *,
    settings: Annotated[Settings, Parameter(name="*")],
    planned: Annotated[Planned, Parameter(name="*")] = _NOTHING,
    json_: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON instead.", group=_GROUP)] = False,
) -> int:
    """Say how long a job takes, what it costs, and what will go wrong: no GPU, and under a minute.

    llava-batch plan --config job.yaml --gpus 8 --gpu-type h100 --price-per-gpu-hour 3
    llava-batch plan --input photos/ --output out/ --calibrate 64

    Exit status 0: nothing stands in the way; 1: something does, as listed; 2: bad settings.
    """
    began = time.monotonic()
    from pipeline.forecast import Wanted
    from pipeline.plan import plan_job
    from pipeline.preflight import check_place

    is_ocr = planned.job == "ocr"
    chosen: JobSettings = checked(settings, OcrSettings) if is_ocr else checked(settings, JobSettings)
    check_place(chosen.output)

    def run() -> int:
        found_plan = plan_job(planned.job, chosen, ocr_prompt(chosen) if is_ocr else PROMPT)
        wanted = Wanted(**planned.model_dump(exclude={"job"}), command_s=time.monotonic() - began)
        return _forecast(found_plan, planned.job, wanted, as_json=json_)

    return run_to_status(run)


def _forecast(plan: "Plan", job: Literal["caption", "ocr"], wanted: "Wanted", *, as_json: bool) -> int:
    from pipeline.forecast import forecast

    found = forecast(plan, job, wanted, say)
    text = json.dumps(asdict(found), indent=2) if as_json else "\n".join(map(printable, describe(found)))
    sys.stdout.write(redacted(text) + "\n")
    return 1 if found.problems else 0


def describe(found: "Forecast") -> list[str]:
    """Return the forecast in lines."""
    look = found.look
    machine = f"{found.gpus} x {found.gpu_type}" if found.gpus else f"{found.gpu_type}, no GPU"
    models = "1 model" if found.models == 1 else f"{found.models} models"
    lines = [
        f"input      {found.rows:,} rows, {found.answers:,} answers; {_range(found.failed)} rows would fail",
        f"images     {_sizes(look.widths)} x {_sizes(look.heights)} pixels, {_bytes(look.image_bytes)} each"
        + (f", {', '.join(f'{count} {name}' for name, count in look.formats.items())}" if look.formats else ""),
        f"duplicates {look.duplicates} of {look.rows} rows that were looked at have another's image",
        f"tokens     {_range(found.prompt_tokens)} of prompts ({_range(found.image_tokens)} of images), "
        f"{_range(found.answer_tokens)} of answers",
        f"machine    {machine}, {models} at {_range(found.images_per_s, 1)} images/s together",
        f"feeding    {_range(found.preprocess_cores, 1)} cores for preprocessing"
        + (f", {_range(found.megabytes_s, 1)} MB/s of images" if found.megabytes_s else ""),
        f"time       {_time(found.hours.mid)} ({_time(found.hours.low)} to {_time(found.hours.high)})",
    ]
    if found.cost is not None:
        lines.append(f"cost       {_range(found.cost, 2)}")
    if found.memory is not None:
        lines.insert(5, f"memory     {found.memory}")
    lines += [f"assumed    {one}" for one in found.assumptions]
    return lines + [f"PROBLEM    {one}" for one in found.problems]


def _range(value: "Interval", digits: int = 0) -> str:
    return f"{value.mid:,.{digits}f} ({value.low:,.{digits}f} to {value.high:,.{digits}f})"


def _sizes(sizes: tuple[int, int, int]) -> str:
    least, median, most = sizes
    return f"{least}-{median}-{most}"


def _bytes(size: "Interval") -> str:
    return f"{size.mid / 1e3:,.0f} kB" if size.mid else "unknown bytes"


def _time(hours: float) -> str:
    seconds = round(hours * 3600)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
