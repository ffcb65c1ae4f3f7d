"""Preprocess: a table of requests to one of samples. What is wrong with a row is found here."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice

import pyarrow as pa

from pipeline.preprocess.conversation import Conversation, ask, parse_messages
from pipeline.preprocess.forms import row_form
from pipeline.preprocess.image import ImageLimits
from pipeline.preprocess.image import Room as TileRoom
from pipeline.preprocess.options import longest_answer
from pipeline.preprocess.parts import ModelParts, read_parts
from pipeline.preprocess.pdf import PdfPage
from pipeline.preprocess.preprocessor import Chat, EncodedImage, Images, Preprocessor
from pipeline.preprocess.row_border import NOBODY, Watch, attempt, bounded, readable
from pipeline.sources.fetch import fetcher_of
from pipeline.sources.kept import beside
from pipeline.sources.named_images import images_of
from pipeline.stages.ahead import Ahead, Room
from pipeline.stages.tile_memory import TileBuffer, TileMemory
from pipeline.weights.hub import locate
from schemas.errors import Failure, RowError
from schemas.job import JobSettings, NamedPrompt, fill, parse_prompts
from schemas.request import REQUEST_SCHEMA, ImageRef, Request, table_to_requests
from schemas.sample import Prompt, Sample, samples_to_table

_MOST_TILE_BYTES = 512 * 2**20  # of a unit that lie together from the beginning
PAGE_SECONDS = 30  # for drawing a page of a PDF, in a process of its own; a row has longer


class Preprocess:
    """Requests to samples, one a row: fetch, decode, tile, render, tokenise. What is wrong with a row is found here."""

    def __init__(self, settings: JobSettings, parts: ModelParts | None = None) -> None:
        limits = ImageLimits(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            max_aspect=settings.max_image_aspect,
            page_seconds=min(settings.row_seconds or PAGE_SECONDS, PAGE_SECONDS),
        )
        self.parts = parts or read_parts(
            locate(settings.model), settings.revision, settings.chat_template, settings.image_tokens
        )
        self.preprocessor = Preprocessor(
            self.parts,
            limits=limits,
            max_new_tokens=settings.max_new_tokens,
            chat=Chat(template=settings.chat_template, system=settings.system, answer_prefix=settings.answer_prefix),
        )
        self._settings = settings
        self._prompts = parse_prompts(settings.prompt)
        self._strips = settings.strips == "auto"
        self._tile_memory = TileMemory()
        self._fetch_image = fetcher_of(settings)
        self._ahead = Ahead[EncodedImage](
            _size_of, num_threads=settings.fetch_threads, seconds=settings.row_seconds or None
        )

    def __call__(self, table: pa.Table, watch: Watch = NOBODY) -> pa.Table:
        requests = _requests(table, watch)
        images = [self._images_of(row, request, watch) for row, request in enumerate(requests)]
        watch.end()  # what comes next is waiting for units before this one
        wanted = [() if isinstance(own, Failure) else own for own in images]
        most_bytes = sum(map(len, wanted)) * self.preprocessor.facts.anyres.most_bytes
        buffer = self._tile_memory.buffer(min(_MOST_TILE_BYTES, most_bytes))
        with self._ahead.unit(wanted, partial(self._fetch, watch=watch)) as jobs:
            samples = []
            for row, (request, own) in enumerate(zip(requests, images, strict=True)):
                fetched = own if isinstance(own, Failure) else self._ahead.take(jobs[row])
                samples.append(self._sample(row, request, fetched, buffer, watch))
        watch.end()
        return beside(_sample_table(samples, watch), table.drop_columns(REQUEST_SCHEMA.names))

    def waited_s(self) -> float:
        """Return the seconds for which images were waited for so far."""
        return self._ahead.waited_s

    def render(self, request: Request) -> str:
        """Return the row's first prompt as the model will read it, for people to look at; raises RowError."""
        prompt = self._prompts[0] if self._prompts else None
        return self.preprocessor.render(conversation_of(request, prompt))

    def fail_rows(self, table: pa.Table, failure: Failure) -> pa.Table:
        """Return the samples of requests that all failed in the same way."""
        samples = [self._failed(request, failure, NOBODY) for request in _requests(table, NOBODY)]
        return beside(_sample_table(samples, NOBODY), table.drop_columns(REQUEST_SCHEMA.names))

    def _images_of(self, row: int, request: Request, watch: Watch) -> tuple[ImageRef, ...] | Failure:
        """Return what is to be fetched of a row, if that can make a prompt at all."""
        if request.failure is not None:
            return request.failure

        def find() -> tuple[ImageRef, ...]:
            images = images_of(request, self._settings.image_root)
            self.preprocessor.check_num_images(len(images))
            return images

        if request.messages is not None:
            watch.begin(row, "prompt")
        return attempt("prompt", find, watch)

    def _fetch(self, image: ImageRef, room: Room, watch: Watch) -> EncodedImage | Failure:
        return attempt("fetch", lambda: self._fetch_image(image, room), watch)

    def _sample(
        self, row: int, request: Request, fetched: Iterator[EncodedImage] | Failure, buffer: TileBuffer, watch: Watch
    ) -> Sample:
        """Return the row's sample. Its time begins with its first image, whose fetching has a time of its own."""
        images: Images | Failure
        if isinstance(fetched, Failure):
            images = fetched
        else:
            images = attempt("decode", lambda: self._load(_begun(fetched, row, watch), buffer.room), watch)
        watch.begin(row, "prompt")
        if isinstance(images, Failure):
            return self._failed(request, images, watch)
        views = images.views()
        return Sample(
            id=request.id,
            prompts=tuple(
                draw
                for view in views
                for prompt in self._prompts or (None,)
                for draw in self._draws(self._prompt(request, prompt, view, watch))
            ),
            image_sizes=images.image_sizes,
            tiles_per_image=images.tiles_per_image,
            tiles=buffer.put(images.tiles),
            image_sha256=images.image_sha256,
            strips=images.strips,
        )

    def _load(self, fetched: Iterator[EncodedImage], room: TileRoom) -> Images:
        """Return the row's images; a page that is alone may be cut into strips."""
        if not self._strips:
            return self.preprocessor.load_images(fetched, room)
        pages = list(islice(fetched, 2))
        if len(pages) == 1:
            return self.preprocessor.load_page(pages[0], room)
        return self.preprocessor.load_images(chain(pages, fetched), room)

    def _failed(self, request: Request, failure: Failure, watch: Watch) -> Sample:
        prompts = (self._prompt(request, prompt, failure, watch) for prompt in self._prompts or (None,))
        return Sample(id=request.id, prompts=tuple(draw for prompt in prompts for draw in self._draws(prompt)))

    def _draws(self, prompt: Prompt) -> list[Prompt]:
        """Return a prompt as often as it is answered, each under the name of its answer, which fixes its draws."""
        return [replace(prompt, id=id) for id in self._settings.draws(prompt.id)]

    def _prompt(self, request: Request, asked: NamedPrompt | None, images: Images | Failure, watch: Watch) -> Prompt:
        """Return one prompt of the row, the job's or (None) its own; failed where its images or its text are no
        good."""
        id, text = (asked.id, asked.text) if asked else ("prompt", request.prompt or "")
        conversation = attempt("prompt", lambda: conversation_of(request, asked), watch)
        if isinstance(conversation, Failure):
            return Prompt(id=id, text=text, failure=images if isinstance(images, Failure) else conversation)
        if isinstance(images, Failure):
            return Prompt(id=id, text=conversation.question, failure=images)
        built = attempt("prompt", lambda: self._build(request, id, conversation, images), watch)
        return Prompt(id=id, text=conversation.question, failure=built) if isinstance(built, Failure) else built

    def _build(self, request: Request, id: str, conversation: Conversation, images: Images) -> Prompt:
        longest = longest_answer(request.options, self._settings)
        form = row_form(request.values, self._settings.json_schema_column)
        built = self.preprocessor.build_conversation(id, conversation, images)
        return replace(built, max_new_tokens=min(built.max_new_tokens, longest), form=form)


def conversation_of(request: Request, prompt: NamedPrompt | None) -> Conversation:
    """Return what the job's prompt asks about the row or, without one, what the row asks itself; raises RowError."""
    if prompt is None and request.messages is not None:
        return parse_messages(request.messages)
    try:
        text = (request.prompt or "") if prompt is None else fill(prompt.text, request.values)
    except KeyError as error:
        raise RowError("prompt", "NullInPrompt", f"the columns a prompt names must not be null, {error} is") from error
    return ask(text, len(request.images))


def _requests(table: pa.Table, watch: Watch) -> list[Request]:
    """Return the requests of a table; a row that is none has a failure."""
    requests = attempt("read", lambda: table_to_requests(table), NOBODY)
    if not isinstance(requests, Failure):
        return requests
    return [_request(table.slice(row, 1), watch) for row in range(table.num_rows)]


def _request(row: pa.Table, watch: Watch) -> Request:
    found = attempt("read", lambda: table_to_requests(row)[0], watch)
    return Request(id=_any_id(row), images=(), failure=found) if isinstance(found, Failure) else found


def _any_id(row: pa.Table) -> str:
    """Return a row's id, whatever its bytes are."""
    return str(row["id"].cast(pa.binary())[0].as_py().decode("utf-8", "backslashreplace"))


def _sample_table(samples: list[Sample], watch: Watch) -> pa.Table:
    """Return a table of samples; a row that none can be made of fails."""
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
    """Yield the images, with the row's time running from the moment at which there is one to decode, and not while
    another is waited for."""
    watch.end()
    for image in fetched:
        watch.begin(row, "decode")
        yield image
        watch.end()
    watch.begin(row, "decode")  # a page is rendered once it is known to be alone


def _size_of(image: EncodedImage) -> int:
    return len(image.data) if isinstance(image, PdfPage) else len(image)
