"""Markers: files that say which unit a worker is at, so that what kills it is known afterwards."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

from pydantic import TypeAdapter

from pipeline.storage import filesystem as fs
from schemas.errors import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A file to leave behind where the time is up."""

    url: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """The work at the time of writing, and the deaths known before. `row` None is a whole unit."""

    driver: str
    row: int | None = None
    alone: bool = False  # nothing else was done by the same worker
    deaths: dict[str, int] = field(default_factory=dict)  # by row
    # rows that took too long, and where; the last field, see Markers.slow
    slow: dict[str, Stage] = field(default_factory=dict)

    @property
    def accuses_nobody(self) -> bool:
        """Return whether the worker may have died of anything else that it was doing."""
        return self.row is None and not (self.alone or self.deaths or self.slow)

    def after_death(self) -> "Marker":
        """Return what is known now, the death that left this marker included."""
        if self.row is None:
            return self
        name = str(self.row)
        return replace(self, row=None, deaths={**self.deaths, name: self.deaths.get(name, 0) + 1})


_MARKER = TypeAdapter(Marker)


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """The markers of a run; `driver` names the one that is running."""

    folder: str
    driver: str

    def of_attempt(self, number: int) -> "Markers":
        """Return the markers of a later attempt at the same units, which does not know those of earlier ones."""
        return replace(self, driver=f"{self.driver}/{number}") if number else self

    def find(self, name: str) -> Marker | None:
        """Return the marker of that name that this driver's workers have left."""
        try:
            marker = _MARKER.validate_json(fs.read_bytes(self._path(name)))
        except (FileNotFoundError, ValueError):  # none, or torn by the kill of its storage
            return None
        return marker if marker.driver == self.driver else None

    def put(self, name: str, row: int | None = None, known: Marker | None = None, *, alone: bool = False) -> None:
        """Say what is about to be done, and what is known."""
        note = self.note(name, replace(self._with(known, row=row), alone=alone))
        fs.write_atomic(note.url, note.text.encode(), durable=False)  # says what a process died of, not a machine

    def slow(self, name: str, known: Marker | None = None) -> Callable[[int, Stage], Note]:
        """Return the function that says what is to be left behind where a row takes too long at a stage.

        It is called at every stage of every row: all but row and stage is written here, once.
        """
        url, marker = self._path(name), self._with(known, row=None)
        text = json.dumps(asdict(marker)).removesuffix("}}")  # of `slow`, the last field, and of the whole
        text += ", " if marker.slow else ""
        return lambda row, stage: Note(url=url, text=f'{text}"{row}": "{stage}"}}}}')

    def note(self, name: str, marker: Marker) -> Note:
        """Return a marker as what is written, and where."""
        return Note(url=self._path(name), text=json.dumps(asdict(marker)))

    def _with(self, known: Marker | None, *, row: int | None) -> Marker:
        return replace(known, row=row) if known else Marker(driver=self.driver, row=row)

    def remove(self, name: str) -> None:
        """Say that it went well."""
        fs.delete(self._path(name))

    def _path(self, name: str) -> str:
        return fs.join(self.folder, "markers", f"{name}.json")
