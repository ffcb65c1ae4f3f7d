"""The steps of a row's life as callables from table to table, a work unit at a time. The one `except RowError` is here.

A stage's table starts with its schema's columns (requests, samples, answers); the columns kept for the answers, named
`keep:<name>`, ride behind them untouched.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol, TypeVar

import pyarrow as pa
import torch

from pipeline.checkpoint import adapter_folder, locate
from pipeline.engine.engine import Engine as TorchEngine
from pipeline.fetch import ImageFetcher
from pipeline.joining import join_answers, samples_of_strips
from pipeline.kept import restore
from pipeline.preprocess.conversation import Conversation, ask, images_in_places, parse_messages
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.pdf import PdfPage
from pipeline.preprocess.preprocessor import Chat, Images, Preprocessor
from pipeline.reader import KEEP
from pipeline.turns import Turns
from schemas.answer import ANSWER_SCHEMA, Answer, answer_from, answers_to_table
from schemas.engine import Dtype, EngineSettings, EngineStatistics, Sampling
from schemas.errors import Failure, RowError
from schemas.job import JobSettings, NamedPrompt, fill, parse_prompts
from schemas.request import REQUEST_SCHEMA, ImageRef, Request, table_to_requests
from schemas.sample import SAMPLE_SCHEMA, Prompt, Sample, samples_to_table, table_to_samples

T = TypeVar("T")


class Engine(Protocol):
    """What the generate stage needs: one answer for every prompt of every sample, in their order, from any thread."""

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]: ...

    def draw_as(self, sampling: Sampling) -> None: ...  # from now on; never while somebody generates

    def statistics(self) -> EngineStatistics: ...


class Preprocess:
    """Requests to samples, one a row: fetch, decode, tile, render, tokenise. What is wrong with a row is found here."""

    def __init__(self, settings: JobSettings) -> None:
        limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
        self.preprocessor = Preprocessor.load(
            locate(settings.model),
            revision=settings.revision,
            limits=limits,
            max_new_tokens=settings.max_new_tokens,
            chat=Chat(template=settings.chat_template, system=settings.system),
        )
        self._prompts = parse_prompts(settings.prompt)
        self._strips = settings.strips == "auto"
        self._fetch_image = ImageFetcher(
            max_bytes=settings.max_image_bytes, pdf_dpi=settings.pdf_dpi, roots=settings.allow_root
        )
        self._pool = ThreadPoolExecutor(settings.fetch_threads)
        self._decoding = threading.Lock()  # one unit at a time; another one is read and fetched meanwhile

    def __call__(self, table: pa.Table) -> pa.Table:
        requests = table_to_requests(table)
        fetched = self._pool.map(self._fetch, requests)  # runs ahead while this thread decodes
        with self._decoding:
            samples = [self._sample(request, data) for request, data in zip(requests, fetched, strict=True)]
        return _beside(samples_to_table(samples), table.drop_columns(REQUEST_SCHEMA.names))

    def render(self, request: Request) -> str:
        """The row's first prompt as the model will read it, for people to look at; raises RowError."""
        prompt = self._prompts[0] if self._prompts else None
        return self.preprocessor.render(conversation_of(request, prompt))

    def give_up(self, table: pa.Table, failure: Failure) -> pa.Table:
        """The samples of requests that all failed in the same way."""
        samples = [self._failed(request, failure) for request in table_to_requests(table)]
        return _beside(samples_to_table(samples), table.drop_columns(REQUEST_SCHEMA.names))

    def _fetch(self, request: Request) -> list[bytes | PdfPage] | Failure:
        if request.failure is not None:
            return request.failure
        return attempt(lambda: [self._fetch_image(image) for image in images_of(request)])

    def _sample(self, request: Request, fetched: list[bytes | PdfPage] | Failure) -> Sample:
        images = fetched if isinstance(fetched, Failure) else attempt(lambda: self._load(fetched))
        if isinstance(images, Failure):
            return self._failed(request, images)
        return Sample(
            id=request.id,
            prompts=tuple(
                self._prompt(request, prompt, view) for view in images.views() for prompt in self._prompts or (None,)
            ),
            image_sizes=images.image_sizes,
            tiles_per_image=images.tiles_per_image,
            tiles=images.tiles,
            image_sha256=images.image_sha256,
            strips=images.strips,
        )

    def _load(self, fetched: list[bytes | PdfPage]) -> Images:
        """The row's images; a page that is alone may be cut into strips."""
        if self._strips and len(fetched) == 1:
            return self.preprocessor.load_page(fetched[0])
        return self.preprocessor.load_images(fetched)

    def _failed(self, request: Request, failure: Failure) -> Sample:
        prompts = (self._prompt(request, prompt, failure) for prompt in self._prompts or (None,))
        return Sample(id=request.id, prompts=tuple(prompts))

    def _prompt(self, request: Request, asked: NamedPrompt | None, images: Images | Failure) -> Prompt:
        """One prompt of the row, the job's or (None) its own; failed where its images or its text are no good."""
        id, text = (asked.id, asked.text) if asked else ("prompt", request.prompt or "")
        conversation = attempt(lambda: conversation_of(request, asked))
        if isinstance(conversation, Failure):
            return Prompt(id=id, text=text, failure=images if isinstance(images, Failure) else conversation)
        if isinstance(images, Failure):
            return Prompt(id=id, text=conversation.question, failure=images)
        built = attempt(lambda: self.preprocessor.build_conversation(id, conversation, images))
        return Prompt(id=id, text=conversation.question, failure=built) if isinstance(built, Failure) else built


class Generate:
    """Samples to answers, one for every prompt, in order."""

    def __init__(self, settings: JobSettings, load_engine: Callable[[JobSettings], Engine]) -> None:
        self._engine = load_engine(settings)
        self._turns = Turns(sampling_of(settings), self._engine.draw_as)

    def drawing(self, settings: JobSettings) -> AbstractContextManager[None]:
        """A turn in which tokens are drawn as these settings say, by the one engine whatever it was loaded for."""
        return self._turns.take(sampling_of(settings))

    def __call__(self, table: pa.Table) -> pa.Table:
        samples = table_to_samples(table)
        pieces = [piece for sample in samples for piece in samples_of_strips(sample)]
        answers = list(self._engine.generate(pieces))
        asked = [(piece.id, prompt.id) for piece in pieces for prompt in piece.prompts]
        if asked != [(answer.id, answer.prompt_id) for answer in answers]:
            raise RuntimeError(f"the engine gave {len(answers)} answers for {len(asked)} prompts, or in another order")
        return _answered(samples, list(join_answers(samples, answers)), table)

    def statistics(self) -> EngineStatistics:
        """What the engine has done since it was loaded."""
        return self._engine.statistics()

    def give_up(self, table: pa.Table, failure: Failure) -> pa.Table:
        """The answers of samples that all failed in the same way; a prompt that had failed before keeps its reason."""
        samples = table_to_samples(table)
        pairs = ((sample, prompt) for sample in samples for prompt in sample.asked)
        answers = [answer_from(sample, _with_failure(prompt, failure), None) for sample, prompt in pairs]
        return _answered(samples, answers, table)


def load_engine(settings: JobSettings) -> TorchEngine:
    """The real engine, on this process's GPU or on all of its machine's cores."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(os.cpu_count() or 1)
    return TorchEngine.load(locate(settings.model), settings=engine_settings(settings, on_gpu=on_gpu))


def engine_settings(settings: JobSettings, *, on_gpu: bool) -> EngineSettings:
    """The part of a job's settings that the engine is told, with nothing left open; raises ValueError."""
    best: Dtype = "bfloat16" if on_gpu else "float32"
    return EngineSettings(
        dtype=best if settings.dtype == "auto" else settings.dtype,
        device="cuda" if on_gpu else "cpu",
        num_devices=settings.gpus_per_model if on_gpu else 1,
        attention=settings.attention,
        quantize=settings.quantize,
        batch_size=settings.batch_size,
        slots=settings.slots,
        capacity=settings.capacity,
        revision=settings.revision,
        adapter=None if settings.adapter is None else str(adapter_folder(settings.adapter)),
        sampling=sampling_of(settings),
    )


def sampling_of(settings: JobSettings) -> Sampling:
    """How a job's settings have tokens drawn; raises ValueError."""
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        repetition_penalty=settings.repetition_penalty,
        cut_repetition=settings.cut_repetition,
        retry_penalty=settings.retry_penalty,
        min_new_tokens=settings.min_new_tokens,
        stop=settings.stop,
        seed=settings.seed,
    )


def conversation_of(request: Request, prompt: NamedPrompt | None) -> Conversation:
    """What the job's prompt asks about the row or, without one, what the row asks itself; raises RowError."""
    if prompt is None and request.messages is not None:
        return parse_messages(request.messages)
    try:
        text = (request.prompt or "") if prompt is None else fill(prompt.text, request.values)
    except KeyError as error:
        raise RowError("prompt", "NullInPrompt", f"the columns a prompt names must not be null, {error} is") from error
    return ask(text, len(request.images))


def images_of(request: Request) -> tuple[ImageRef, ...]:
    """The row's images, those that its messages name in their places; raises RowError. Messages may do without any: a
    null beside them is no image and not a missing one."""
    if request.messages is None:
        return request.images
    own = () if request.images == (ImageRef(),) else request.images
    images = images_in_places(parse_messages(request.messages), own)
    return tuple(replace(image, table=request.table) for image in images)


def attempt(step: Callable[[], T]) -> T | Failure:
    """What `step` returns, or the failure of the row it was for."""
    try:
        return step()
    except RowError as error:
        return error.failure


def final_answers(table: pa.Table) -> pa.Table:
    """The table as it is written: ANSWER_SCHEMA, then the kept columns under their own names, of their own types."""
    names = [name.removeprefix(KEEP) for name in table.column_names]
    assert names[: len(ANSWER_SCHEMA)] == ANSWER_SCHEMA.names
    return restore(table.rename_columns(names))


def _with_failure(prompt: Prompt, failure: Failure) -> Prompt:
    return prompt if prompt.failure else Prompt(id=prompt.id, text=prompt.text, failure=failure)


def _answered(samples: list[Sample], answers: list[Answer], table: pa.Table) -> pa.Table:
    rows = [row for row, sample in enumerate(samples) for _ in sample.asked]
    return _beside(answers_to_table(answers), table.drop_columns(SAMPLE_SCHEMA.names).take(pa.array(rows)))


def _beside(table: pa.Table, kept: pa.Table) -> pa.Table:
    for name in kept.column_names:
        table = table.append_column(kept.schema.field(name), kept.column(name))
    return table
