"""Complete runs for tests, answered in this process with the texts that a test wants."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.plan import plan_job
from pipeline.run_folder.merge import finish_run
from pipeline.run_folder.run import begin_run
from pipeline.run_folder.units import write_unit
from pipeline.sources.reader import unit_reader
from pipeline.stages.generate import Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from schemas.answer import Answer, Generation, answer_from
from schemas.job import JobSettings
from schemas.sample import Sample
from tests.fakes import EchoEngine
from tests.images import encoded, noise
from tests.tiny import checkpoint


class TellingEngine(EchoEngine):
    """Answers a row with the text, and the end, that a test has for its id and prompt."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        for sample in samples:
            for prompt in sample.prompts:
                said = self.texts.get(f"{sample.id}#{prompt.id}", self.texts.get(sample.id, f"about {sample.id}"))
                end = "length" if said.endswith("...") else "stop"
                told = Generation(text=said, finish_reason=end, num_generated_tokens=len(said), mean_logprob=-0.25)
                yield answer_from(sample, prompt, None if prompt.failure else told)


def make_images(folder: Path, names: Sequence[str]) -> Path:
    """A folder of small pictures; one whose name has `broken` in it is none."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if name.lower().endswith("png") else "JPEG"
        path.write_bytes(b"no image" if "broken" in name else encoded(noise(40 + number, 30, seed=number), kind))
    return folder


def make_run(
    folder: Path, source: Path, texts: Mapping[str, str] | None = None, *, finish: bool = True, **changes: object
) -> str:
    """The run folder of a caption job over `source`, in units of 4 rows and files of about 8 answers."""
    told = {"input": (str(source),), "output": str(folder / "out"), "model": str(checkpoint()), "unit_rows": 4}
    settings = JobSettings.model_validate({**told, "max_error_rate": 1.0, **changes})
    plan = plan_job("caption", settings, "Q?")
    run = begin_run(settings.output, plan.describe(), plan.listing.files)
    preprocess, generate = Preprocess(plan.settings), Generate(plan.settings, lambda _: TellingEngine(texts or {}))
    for unit in range(plan.listing.num_units):
        answers = final_answers(generate(preprocess(unit_reader(plan.listing)(unit))), plan.settings)
        write_unit(settings.output, run["run"], unit, answers)
    if finish:
        units = replace(plan.units(run["run"]), rows_a_file=8)
        finish_run(units, run["fingerprint"], {"seconds": 2.0})
    return settings.output


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
