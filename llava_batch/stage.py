"""A stage for a Ray Data pipeline of one's own: columns in, columns out, errors as columns.

dataset.map_batches(llava_batch.Caption("demo"), batch_format="pyarrow", batch_size=64)
"""

import threading
from collections.abc import Callable, Mapping
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
from schemas.errors import Refused
from schemas.job import JobSettings, columns_in

Batch: TypeAlias = Any  # a pyarrow.Table, a dict of numpy arrays or a pandas.DataFrame; what is returned is alike
_OF_A_RUN = ("keep", "reference_column", "limit")  # settings that say which rows a run's answers have, and with what
_OF_ROWS = ("id", "prompt")  # of an answer; left out where the batch has columns of these names
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
            answers = self._answer(_readable(dict(zip(batch.column_names, batch.columns, strict=True))))
            return _beside(batch.take(answers[_ROW]), answers.drop_columns([_ROW]))
        is_frame = hasattr(batch, "iloc")
        columns = {name: batch[name].to_numpy() for name in batch.columns} if is_frame else dict(batch)
        answers = self._answer(_readable(columns))
        rows = answers[_ROW].to_numpy()
        own = {name: values[rows] for name, values in columns.items()}
        whole = own | {name: _objects(answers[name]) for name in answers.column_names if name != _ROW}
        return type(batch)(whole) if is_frame else whole

    def _answer(self, table: pa.Table) -> pa.Table:
        """Return the columns of the answers, and `row`."""
        settings = self._settings
        columns = find_columns([FileSchema(url="the batch", schema=table.schema)], self._choices())
        if settings.temperature > 0 and columns.id is None:
            raise Refused("temperature above 0 needs an id column: what is drawn for a row follows from its id")
        rows = pa.array(np.arange(table.num_rows))
        requests = requests_in(table, columns).append_column(KEEP + _ROW, rows)
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


def _readable(columns: Mapping[str, Any]) -> pa.Table:
    """Return the columns as the files of a run would have them: pixels as encoded images."""
    arrays = {}
    for name, values in columns.items():
        if isinstance(values, pa.ChunkedArray) and not isinstance(values.type, pa.BaseExtensionType):
            arrays[name] = values
        else:
            plain = [_plain(one.as_py() if isinstance(one, pa.Scalar) else one) for one in values]
            try:
                arrays[name] = pa.array(plain)
            except (pa.ArrowException, TypeError):  # Python objects: they pass through, and are nothing to be asked
                continue
    return pa.table(arrays)


def _plain(value: object) -> object:
    if isinstance(value, Image.Image) or (isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim > 1):
        return encoded(value)
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value]
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
