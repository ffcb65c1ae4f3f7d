"""A stage for a Ray Data pipeline of one's own: columns in, columns out, errors as columns.

dataset.map_batches(llava_batch.Caption("demo"), batch_format="pyarrow", batch_size=64)
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from jobs.caption import PROMPT
from llava_batch.images import encoded
from llava_batch.model import resolved
from llava_batch.settings import Settings, settings_of
from pipeline.sources.columns import ColumnChoices, Columns, FileSchema, find_columns
from pipeline.sources.reader import KEEP, requests_in
from pipeline.stages.engine_settings import load_engine
from pipeline.stages.generate import Engine, Generate, final_answers
from pipeline.stages.preprocess import Preprocess
from schemas.errors import Failure, Refused, RowError
from schemas.job import JobSettings, columns_in
from schemas.wording import one_line, shortened

Batch: TypeAlias = Any  # a pyarrow.Table, a dict of numpy arrays or a pandas.DataFrame; what is returned is alike
_OF_A_RUN = ("keep", "reference_column", "limit")  # settings that say which rows a run's answers have, and with what
_OF_ROWS = ("id", "prompt")  # of an answer; left out where the batch has columns of these names
_MOST_SAID = 300  # characters of what a library says
_ROW = "row"  # the column that says which row an answer is of, while it is made


def Caption(settings: Settings | str = "demo", *, prefix: str = "") -> type["Stage"]:
    """Return a class that answers batches, to be given to `map_batches`; raise Refused where the model cannot be used.

    Every row comes out once for each of its prompts: its own columns, then those of its answer, under the names that a
    run's answers have behind `prefix`. A row that cannot be answered has `status` "error", and `error_stage`,
    `error_type` and `error_message`. Nothing is written, and nothing remembers what is done.
    """
    settings = settings_of(settings)
    for name in _OF_A_RUN:
        if name in settings.model_fields_set:
            raise Refused(f"{name} is a run's alone: every row and column of a batch comes out of a stage")
    loaded = resolved(settings)

    class Captioner(Stage):
        """Answers by these settings."""

        def __init__(self) -> None:
            super().__init__(loaded, prefix)

    return Captioner


class Stage:
    """Answers batches of rows, in their order. Threads that call it at once share the engine's slots."""

    def __init__(
        self, settings: JobSettings, prefix: str = "", load: Callable[[JobSettings], Engine] = load_engine
    ) -> None:
        self._settings, self._prefix = settings, prefix
        self._loading = threading.Lock()
        self._preprocess: dict[tuple[str, ...], Preprocess] = {}
        self._generate = Generate(settings, load)

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with the columns of its answers behind its own."""
        if isinstance(batch, pa.Table):
            answers = self._answer(_read(dict(zip(batch.column_names, batch.columns, strict=True))))
            return _beside(batch.take(answers[_ROW]), answers.drop_columns([_ROW]))
        is_frame = hasattr(batch, "iloc")
        columns = {name: batch[name].to_numpy() for name in batch.columns} if is_frame else dict(batch)
        answers = self._answer(_read(columns))
        rows = answers[_ROW].to_numpy()
        own = {name: values[rows] for name, values in columns.items()}
        whole = own | {name: _objects(answers[name]) for name in answers.column_names if name != _ROW}
        return type(batch)(whole) if is_frame else whole

    def _answer(self, read: "_Read") -> pa.Table:
        """Return the columns of the answers, and `row`."""
        settings, table = self._settings, read.table
        try:
            columns = find_columns([FileSchema(url="the batch", schema=table.schema)], self._choices())
        except Refused as error:
            raise Refused("; ".join([str(error), *read.said()])) from error
        if settings.temperature > 0 and columns.id is None:
            raise Refused("temperature above 0 needs an id column: what is drawn for a row follows from its id")
        rows = pa.array(np.arange(table.num_rows))
        requests = read.with_failures(requests_in(table, columns), columns.image).append_column(KEEP + _ROW, rows)
        answers = final_answers(self._generate(self._prepare(columns)(requests)), settings)
        answers = answers.drop_columns([name for name in _OF_ROWS if name in table.column_names])
        names = [name if name == _ROW else self._prefix + name for name in answers.column_names]
        twice = sorted(set(names) & set(table.column_names))
        if twice:
            raise Refused(f"the batch has a column {twice[0]!r} already: give the answers a prefix, or rename it")
        return answers.rename_columns(names)

    def _choices(self) -> ColumnChoices:
        settings = self._settings
        return ColumnChoices(
            image=settings.image_column,
            id=settings.id_column,
            prompt=settings.prompt_column,
            messages=settings.messages_column,
            image_root=settings.image_root,
            own_prompts=bool(settings.prompt),
            json_schema=settings.json_schema_column,
            values=tuple(dict.fromkeys(name for text in settings.prompt for name in columns_in(text))),
        )

    def _prepare(self, columns: Columns) -> Preprocess:
        """Return what prepares rows with these columns: those that ask nothing are asked for a caption."""
        asked = columns.prompt is not None or columns.messages is not None
        prompts = self._settings.prompt or (() if asked else (PROMPT,))
        with self._loading:
            if prompts not in self._preprocess:
                self._preprocess[prompts] = Preprocess(self._settings.model_copy(update={"prompt": prompts}))
            return self._preprocess[prompts]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """The columns of a batch as the files of a run would have them: pixels as encoded images."""

    table: pa.Table
    failures: Mapping[str, Mapping[int, Failure]]  # by column and row, of values that no image can be made of
    passed: Mapping[str, str]  # why columns are not in the table: they pass through, and are nothing to be asked

    def said(self) -> list[str]:
        """Return what stands against columns that nothing was asked of."""
        failed = {name: next(iter(rows.values())).message for name, rows in self.failures.items() if rows}
        return [f"column {name!r} is no image column: {what}" for name, what in (failed | dict(self.passed)).items()]

    def with_failures(self, requests: pa.Table, image: str | None) -> pa.Table:
        """Return the requests, those failed whose value in the image column is none."""
        if not (failures := self.failures.get(image or "")):
            return requests
        place, told = requests.schema.get_field_index("failure"), requests["failure"].to_pylist()
        told = [one or (asdict(failures[row]) if row in failures else None) for row, one in enumerate(told)]
        field = requests.schema.field(place)
        return requests.set_column(place, field, pa.array(told, field.type))


def _read(columns: Mapping[str, Any]) -> _Read:
    arrays, failures, passed = dict[str, Any](), dict[str, dict[int, Failure]](), dict[str, str]()
    for name, values in columns.items():
        if isinstance(values, pa.ChunkedArray) and not isinstance(values.type, pa.BaseExtensionType):
            arrays[name] = values
            continue
        plain, failed = list[object](), dict[int, Failure]()
        for row, one in enumerate(values):
            value = _plain(one.as_py() if isinstance(one, pa.Scalar) else one)
            if isinstance(value, Failure):
                failed[row], value = value, None
            plain.append(value)
        failures[name] = failed
        try:
            arrays[name] = pa.array(plain)
        except (pa.ArrowException, TypeError) as error:  # Python objects, or values of several kinds
            passed[name] = shortened(one_line(error), _MOST_SAID)
    return _Read(table=pa.table(arrays), failures=failures, passed=passed)


def _plain(value: object) -> object:
    """Return a value as Arrow takes it, with encoded images instead of pixels; the failure of one that has none."""
    if isinstance(value, Image.Image) or (isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim > 1):
        try:
            return encoded(value)
        except RowError as error:
            return error.failure
        except Refused as error:
            return Failure(stage="decode", type="NotAnImage", message=str(error))
    if isinstance(value, np.ndarray | list | tuple):
        parts = [_plain(one) for one in value]
        return next((part for part in parts if isinstance(part, Failure)), parts)
    return value.item() if isinstance(value, np.generic) else value


def _objects(column: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    """Return the values as Python's: null is None, of whatever type the others are."""
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values


def _beside(table: pa.Table, answers: pa.Table) -> pa.Table:
    for field in answers.schema:
        table = table.append_column(field, answers.column(field.name))
    return table
