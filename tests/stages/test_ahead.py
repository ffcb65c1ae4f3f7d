"""Images are fetched ahead of their use: in order, never too many bytes at once, and one that hangs costs itself."""

import threading
import time
from collections.abc import Sequence

import pytest

from pipeline.stages.ahead import Ahead, Job, Room
from schemas.errors import Failure, RowError
from schemas.request import ImageRef

FAILURE = Failure(stage="fetch", type="FileNotFound", message="it is gone")


class Store:
    """Images called after their sizes; counts the bytes that are out."""

    def __init__(self) -> None:
        self.out, self.most = 0, 0
        self.fetched: list[str] = []
        self._lock = threading.Lock()
        self.never = threading.Event()

    def fetch(self, image: ImageRef, room: Room) -> bytes | Failure:
        assert image.uri is not None
        if image.uri == "hangs":
            self.never.wait()
        if not image.uri.isdigit():
            return FAILURE
        room(int(image.uri))
        with self._lock:
            self.fetched.append(image.uri)
            self.out += int(image.uri)
            self.most = max(self.most, self.out)
        return bytes(int(image.uri))

    def use(self, data: bytes) -> int:
        with self._lock:
            self.out -= len(data)
        return len(data)


def refs(*names: str) -> list[ImageRef]:
    return [ImageRef(uri=name) for name in names]


def ahead(num_threads: int = 4, seconds: float | None = 60, most_bytes: int = 100) -> Ahead[bytes]:
    return Ahead[bytes](len, num_threads=num_threads, seconds=seconds, most_bytes=most_bytes)


def used(ahead: Ahead[bytes], store: Store, rows: Sequence[Sequence[ImageRef]]) -> list[list[int] | str]:
    """The sizes of each row's images, or why there are none."""
    found: list[list[int] | str] = []
    with ahead.unit(rows, store.fetch) as jobs:
        for row in jobs:
            try:
                found.append([store.use(data) for data in ahead.take(row)])
            except RowError as error:
                found.append(error.failure.type)
    return found


def test_rows_get_their_own_images_in_order() -> None:
    rows = [refs("1", "2"), [], refs("3", "gone", "4"), refs("5")]
    assert used(ahead(), Store(), rows) == [[1, 2], [], "FileNotFound", [5]]


def test_bytes_ahead_are_bounded_and_one_larger_than_all_of_them_gets_its_turn() -> None:
    store = Store()
    rows = [refs("60", "60"), refs("500"), refs(*["30"] * 99), refs("99")]
    assert used(ahead(), store, rows) == [[60, 60], [500], [30] * 99, [99]]
    assert store.most <= 100 + 500


def test_images_that_rows_bring_along_take_no_thread_and_no_room() -> None:
    by_thread = [ImageRef(data=bytes(500)), ImageRef(uri="90"), ImageRef(data=bytes(7)), ImageRef(data=b"")]

    def fetch(image: ImageRef, room: Room) -> bytes | Failure:
        room(int(image.uri or 0))
        return threading.current_thread().name.encode()

    one = ahead()
    with one.unit([by_thread, [ImageRef(data=bytes(99))]], fetch) as jobs:
        found = [[name.decode() for name in one.take(row)] for row in jobs]
    here = threading.current_thread().name
    assert found == [[here, "fetch", here, here], [here]]


def test_two_units_at_once_do_not_wait_for_each_other_for_ever() -> None:
    one, store = ahead(num_threads=2), Store()
    rows = [refs("90", "50"), refs("70")] * 5
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(used(one, store, rows))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [[[90, 50], [70]] * 5] * 4
    assert store.most <= 100 + 90


def test_images_that_hang_are_timed_out_and_their_neighbours_are_fetched() -> None:
    store = Store()
    rows = [refs("1"), refs("hangs"), refs("hangs"), refs("2"), refs("3", "hangs"), refs("4")]
    found = used(ahead(num_threads=2, seconds=0.05), store, rows)
    store.never.set()
    assert found == [[1], "TimedOut", "TimedOut", [2], "TimedOut", [4]]


def test_a_unit_that_ends_in_an_exception_leaves_nothing_behind() -> None:
    one, store = ahead(), Store()
    with pytest.raises(KeyError), one.unit([refs("90"), refs("90")], store.fetch):
        raise KeyError
    assert used(one, Store(), [refs("90"), refs("80")]) == [[90], [80]]


def test_no_time_of_a_fetch_runs_while_it_waits_for_room() -> None:
    one, asked = ahead(), threading.Event()

    def fetch(image: ImageRef, room: Room) -> bytes | Failure:
        if image.uri == "20":
            asked.set()
        room(int(image.uri or ""))
        return bytes(int(image.uri or ""))

    with one.unit([refs("90"), refs("20")], fetch) as (first, second):
        (waiting,) = second
        assert isinstance(waiting, Job)
        assert asked.wait(60)
        until = time.monotonic() + 10
        while waiting.began is not None and time.monotonic() < until:  # its thread is just about to
            time.sleep(0.001)
        assert waiting.began is None
        assert [[len(data) for data in one.take(row)] for row in (first, second)] == [[90], [20]]
