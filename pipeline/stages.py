"""The steps of a row's life as callables from table to table, a work unit at a time.

A stage's table starts with its schema's columns (requests, samples, answers); the columns kept for the answers, named
`keep:<name>`, ride behind them untouched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Protocol

import pyarrow as pa
import torch

from pipeline.ahead import Ahead, Room
from pipeline.checkpoint import adapter_folder, locate
from pipeline.engine.engine import Engine as TorchEngine
from pipeline.environment import cpus_here
from pipeline.fetch import ImageFetcher
from pipeline.joining import join_answers, samples_of_strips
from pipeline.kept import restore
from pipeline.preprocess.conversation import Conversation, ask, images_in_places, parse_messages
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.pdf import PdfPage
from pipeline.preprocess.preprocessor import Chat, EncodedImage, Images, Preprocessor
from pipeline.reader import KEEP
from pipeline.row_border import NOBODY, Watch, attempt, bounded, readable
from pipeline.turns import Turns
from schemas.answer import ANSWER_SCHEMA, Answer, answer_from, answers_to_table
from schemas.engine import Dtype, EngineSettings, EngineStatistics, Sampling
from schemas.errors import Failure, RowError
from schemas.job import JobSettings, NamedPrompt, fill, parse_prompts
from schemas.request import REQUEST_SCHEMA, ImageRef, Request, table_to_requests
from schemas.sample import SAMPLE_SCHEMA, Prompt, Sample, samples_to_table, table_to_samples

PAGE_SECONDS = 30  # for drawing a page of a PDF, in a process of its own; a row has longer


class Engine(Protocol):
    """What the generate stage needs: one answer for every prompt of every sample, in their order, from any thread."""

    def generate(self, samples: Sequence[Sample]) -> Iterator[Answer]: ...

    def draw_as(self, sampling: Sampling) -> None: ...  # from now on; never while somebody generates

    def statistics(self) -> EngineStatistics: ...


class Preprocess:
    """Requests to samples, one a row: fetch, decode, tile, render, tokenise. What is wrong with a row is found here."""

    def __init__(self, settings: JobSettings) -> None:
        limits = ImageLimits(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            max_aspect=settings.max_image_aspect,
            page_seconds=min(settings.row_seconds or PAGE_SECONDS, PAGE_SECONDS),
        )
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
        self._ahead = Ahead[EncodedImage](
            _size_of, num_threads=settings.fetch_threads, seconds=settings.row_seconds or None
        )

    def __call__(self, table: pa.Table, watch: Watch = NOBODY) -> pa.Table:
        requests = _requests(table, watch)
        images = [self._images_of(row, request, watch) for row, request in enumerate(requests)]
        wanted = [() if isinstance(own, Failure) else own for own in images]
        with self._ahead.unit(wanted, partial(self._fetch, watch=watch)) as jobs:
            samples = []
            for row, (request, own) in enumerate(zip(requests, images, strict=True)):
                fetched = own if isinstance(own, Failure) else self._ahead.take(jobs[row])
                samples.append(self._sample(row, request, fetched, watch))
        watch.end()
        return _beside(_sample_table(samples, watch), table.drop_columns(REQUEST_SCHEMA.names))

    def render(self, request: Request) -> str:
        """The row's first prompt as the model will read it, for people to look at; raises RowError."""
        prompt = self._prompts[0] if self._prompts else None
        return self.preprocessor.render(conversation_of(request, prompt))

    def give_up(self, table: pa.Table, failure: Failure) -> pa.Table:
        """The samples of requests that all failed in the same way."""
        samples = [self._failed(request, failure, NOBODY) for request in _requests(table, NOBODY)]
        return _beside(_sample_table(samples, NOBODY), table.drop_columns(REQUEST_SCHEMA.names))

    def _images_of(self, row: int, request: Request, watch: Watch) -> tuple[ImageRef, ...] | Failure:
        """What is to be fetched of a row, if that can make a prompt at all."""
        if request.failure is not None:
            return request.failure

        def find() -> tuple[ImageRef, ...]:
            images = images_of(request)
            self.preprocessor.check_places(len(images))
            return images

        if request.messages is not None:
            watch.begin(row, "prompt")
        return attempt("prompt", find, watch)

    def _fetch(self, image: ImageRef, room: Room, watch: Watch) -> EncodedImage | Failure:
        return attempt("fetch", lambda: self._fetch_image(image, room), watch)

    def _sample(self, row: int, request: Request, fetched: Iterator[EncodedImage] | Failure, watch: Watch) -> Sample:
        """The row's sample. Its time begins with its first image, whose fetching has a time of its own."""
        images: Images | Failure
        if isinstance(fetched, Failure):
            images = fetched
        else:
            images = attempt("decode", lambda: self._load(_begun(fetched, row, watch)), watch)
        watch.begin(row, "prompt")
        if isinstance(images, Failure):
            return self._failed(request, images, watch)
        views = images.views()
        return Sample(
            id=request.id,
            prompts=tuple(
                self._prompt(request, prompt, view, watch) for view in views for prompt in self._prompts or (None,)
            ),
            image_sizes=images.image_sizes,
            tiles_per_image=images.tiles_per_image,
            tiles=images.tiles,
            image_sha256=images.image_sha256,
            strips=images.strips,
        )

    def _load(self, fetched: Iterator[EncodedImage]) -> Images:
        """The row's images; a page that is alone may be cut into strips."""
        if not self._strips:
            return self.preprocessor.load_images(fetched)
        pages = list(islice(fetched, 2))
        if len(pages) == 1:
            return self.preprocessor.load_page(pages[0])
        return self.preprocessor.load_images(chain(pages, fetched))

    def _failed(self, request: Request, failure: Failure, watch: Watch) -> Sample:
        prompts = (self._prompt(request, prompt, failure, watch) for prompt in self._prompts or (None,))
        return Sample(id=request.id, prompts=tuple(prompts))

    def _prompt(self, request: Request, asked: NamedPrompt | None, images: Images | Failure, watch: Watch) -> Prompt:
        """One prompt of the row, the job's or (None) its own; failed where its images or its text are no good."""
        id, text = (asked.id, asked.text) if asked else ("prompt", request.prompt or "")
        conversation = attempt("prompt", lambda: conversation_of(request, asked), watch)
        if isinstance(conversation, Failure):
            return Prompt(id=id, text=text, failure=images if isinstance(images, Failure) else conversation)
        if isinstance(images, Failure):
            return Prompt(id=id, text=conversation.question, failure=images)
        built = attempt("prompt", lambda: self.preprocessor.build_conversation(id, conversation, images), watch)
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
        torch.set_num_threads(cpus_here())
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


def final_answers(table: pa.Table) -> pa.Table:
    """The table as it is written: ANSWER_SCHEMA, then the kept columns under their own names, of their own types."""
    names = [name.removeprefix(KEEP) for name in table.column_names]
    assert names[: len(ANSWER_SCHEMA)] == ANSWER_SCHEMA.names
    return restore(table.rename_columns(names))


def _requests(table: pa.Table, watch: Watch) -> list[Request]:
    """The requests of a table; a row that is none has a failure."""
    requests = attempt("read", lambda: table_to_requests(table), NOBODY)
    if not isinstance(requests, Failure):
        return requests
    return [_request(table.slice(row, 1), watch) for row in range(table.num_rows)]


def _request(row: pa.Table, watch: Watch) -> Request:
    found = attempt("read", lambda: table_to_requests(row)[0], watch)
    return Request(id=_any_id(row), images=(), failure=found) if isinstance(found, Failure) else found


def _any_id(row: pa.Table) -> str:
    """A row's id, whatever its bytes are."""
    return str(row["id"].cast(pa.binary())[0].as_py().decode("utf-8", "backslashreplace"))


def _sample_table(samples: list[Sample], watch: Watch) -> pa.Table:
    """A table of samples; a row that none can be made of fails."""
    table = attempt("prompt", lambda: samples_to_table(samples), NOBODY)
    if not isinstance(table, Failure):
        return table
    return pa.concat_tables([_one_row(sample, watch) for sample in samples])


def _one_row(sample: Sample, watch: Watch) -> pa.Table:
    table = attempt("prompt", lambda: samples_to_table([sample]), watch)
    if not isinstance(table, Failure):
        return table
    failed = [
        Prompt(id=readable(prompt.id), text=readable(prompt.text), failure=bounded(prompt.failure or table))
        for prompt in sample.asked
    ]
    return samples_to_table([Sample(id=readable(sample.id), prompts=tuple(failed))])


def _begun(fetched: Iterator[EncodedImage], row: int, watch: Watch) -> Iterator[EncodedImage]:
    """The images, with the row's time running from the moment at which there is one to decode."""
    watch.end()
    for image in fetched:
        watch.begin(row, "decode")
        yield image


def _size_of(image: EncodedImage) -> int:
    return len(image.data) if isinstance(image, PdfPage) else len(image)


def _with_failure(prompt: Prompt, failure: Failure) -> Prompt:
    return prompt if prompt.failure else Prompt(id=prompt.id, text=prompt.text, failure=failure)


def _answered(samples: list[Sample], answers: list[Answer], table: pa.Table) -> pa.Table:
    rows = [row for row, sample in enumerate(samples) for _ in sample.asked]
    return _beside(answers_to_table(answers), table.drop_columns(SAMPLE_SCHEMA.names).take(pa.array(rows)))


def _beside(table: pa.Table, kept: pa.Table) -> pa.Table:
    for name in kept.column_names:
        table = table.append_column(kept.schema.field(name), kept.column(name))
    return table
