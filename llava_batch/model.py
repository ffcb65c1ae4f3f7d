"""A model in this process, for a notebook or a script: images and prompts in, answers out, no Ray."""

import os
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from PIL import Image

from jobs.caption import PROMPT
from jobs.flags import read_prompt
from llava_batch.images import Picture, pictures_in, reference
from llava_batch.settings import Settings, settings_of
from pipeline.environment import cards_here
from pipeline.plan import resolve_model
from pipeline.preflight import check_machine
from pipeline.stages.engine_settings import load_engine
from pipeline.stages.generate import Generate
from pipeline.stages.preprocess import Preprocess
from schemas.answer import Answer, table_to_answers
from schemas.errors import Refused, RowError
from schemas.job import JobSettings
from schemas.request import Request, requests_to_table


class Model:
    """A checkpoint that is loaded and ready, on this machine's GPU or else its CPU."""

    def __init__(self, settings: JobSettings) -> None:
        self._preprocess = Preprocess(settings)
        self._engine = load_engine(settings)
        self._generate = Generate(settings, lambda _: self._engine)

    @classmethod
    def load(cls, settings: Settings | str = "demo") -> "Model":
        """Load a model by its name or by settings; raise Refused where it cannot be, by the line that a job says."""
        settings = settings_of(settings)
        if settings.prompt:
            raise Refused(f"prompt is what generate(images, prompts) asks, Model.load got {settings.prompt!r}")
        return cls(resolved(settings))

    def generate(
        self,
        images: Picture | Sequence[Picture | Sequence[Picture] | None],
        prompts: str | Sequence[str] = PROMPT,
    ) -> list[Answer]:
        """Return an answer to every prompt, in order; what cannot be answered is an answer with an error.

        `images` are one image, or one for each row: a path, a URL, bytes, a Pillow image or uint8 pixels; a list of
        them is a row of several images, None one of none. `prompts` is asked about every row, or is one for each.
        Any number of threads may generate at once: they share the batch.
        """
        rows = _rows_of(images)
        asked = [prompts] * len(rows) if isinstance(prompts, str) else list(prompts)
        if len(asked) != len(rows):
            raise Refused(f"prompts must be one text, or one for each of {len(rows)} images, got {len(asked)}")
        if not rows:
            return []
        requests = [
            _request(str(number), row, prompt) for number, (row, prompt) in enumerate(zip(rows, asked, strict=True))
        ]
        return table_to_answers(self._generate(self._preprocess(requests_to_table(requests))))

    def close(self) -> None:
        """Let go of the weights."""
        self._engine.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _request(id: str, images: list[Picture], prompt: str) -> Request:
    try:
        return Request(id=id, images=tuple(map(reference, images)), prompt=prompt)
    except RowError as error:
        return Request(id=id, images=(), prompt=prompt, failure=error.failure)


def _rows_of(images: Picture | Sequence[Picture | Sequence[Picture] | None]) -> list[list[Picture]]:
    if isinstance(images, str | bytes | os.PathLike | Image.Image | np.ndarray):
        return [pictures_in(images)]
    return [pictures_in(row) for row in images]


def resolved(settings: Settings) -> JobSettings:
    """Return the settings of a job with nothing left open about its model; raise Refused where it cannot be used here.

    Without prompts of the settings' own, rows are asked the caption job's or their own.
    """
    plain = JobSettings.model_validate(settings.model_dump())
    texts = tuple(map(read_prompt, settings.prompt))
    plain, _ = resolve_model(plain.model_copy(update={"prompt": texts}))
    check_machine(plain, cards_here())
    return plain
