"""The row's border: whatever a row's own work raises is its failure, under its own name and with its traceback."""

import pytest

from pipeline.preprocess.row_border import MOST_SHOWN, NOBODY, Nobody, attempt
from schemas.errors import Failure, RowError


class Panic(BaseException):
    """As a Rust library raises: no Exception."""


class Mute(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class Listener(Nobody):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, str]] = []

    def keep(self, failure: Failure, trace: str) -> None:
        self.kept.append((failure.type, trace))


def raising(error: BaseException) -> Failure | None:
    def step() -> None:
        raise error

    return attempt("prompt", step, NOBODY)


@pytest.mark.parametrize(
    "error", [ValueError("v"), MemoryError(), RecursionError("r"), AssertionError(), Panic(), Mute()]
)
def test_whatever_is_raised_is_the_rows_failure_under_its_own_name(error: BaseException) -> None:
    failure = raising(error)
    assert failure is not None
    assert (failure.stage, failure.type) == ("prompt", type(error).__name__)
    assert failure.message.startswith(f"{type(error).__name__}: ")


def test_half_of_a_surrogate_pair_can_be_told_of() -> None:
    failure = attempt("fetch", "\ud800".encode, NOBODY)
    assert isinstance(failure, Failure)
    assert failure.type == "UnicodeEncodeError"
    failure.message.encode()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_a_request_to_end_is_no_rows_failure(error: BaseException) -> None:
    with pytest.raises(type(error)):
        raising(error)


def test_a_message_is_bounded_and_text_throughout() -> None:
    foreseen = raising(RowError("fetch", "FetchFailed", "\ud800" + "x" * 10**6))
    unforeseen = raising(ValueError("\udfff" + "x" * 10**6))
    for failure in (foreseen, unforeseen):
        assert failure is not None
        assert len(failure.message.encode()) < MOST_SHOWN + 10


def test_a_traceback_names_the_line_and_what_led_to_it() -> None:
    def step() -> None:
        try:
            raise OSError("below")
        except OSError as error:
            raise ValueError("above") from error

    listener = Listener()
    attempt("decode", step, listener)
    attempt("decode", lambda: raising(RowError("decode", "NotAnImage", "foreseen")), listener)
    ((kind, trace),) = listener.kept
    assert kind == "ValueError"
    assert "test_row_border.py" in trace
    assert trace.index("OSError: below") < trace.index("led to")
    assert trace.rstrip().endswith("ValueError: above")
