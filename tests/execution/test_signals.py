"""A signal stops what runs, and ends the process where that does not stop; a stop that was caught ends nothing."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.execution.signals import Stopped, guarded, stop_on_signals
from schemas.wording import GO_ON


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_that_was_caught_ends_nothing_later(number: int, status: int) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, guarded(), stop_on_signals(grace_s=3600):
        signal.raise_signal(number)
    assert caught.value.exit_status == status
    assert caught.value.guard.finished.is_set()
    assert signal.getsignal(number) == handler


def test_so_does_one_that_another_error_has_taken_the_place_of() -> None:
    stops = []
    with suppress(KeyError), guarded():
        try:
            with stop_on_signals(grace_s=3600):
                signal.raise_signal(signal.SIGTERM)
        except Stopped as stop:
            stops.append(stop)
            raise KeyError from None
    assert [stop.guard.finished.is_set() for stop in stops] == [True]


STUCK = """
import signal, time
from pipeline.execution.signals import guarded, stop_on_signals
with guarded():
    try:
        with stop_on_signals(grace_s=0.2):
            signal.raise_signal(signal.SIGTERM)
    finally:
        time.sleep(60)  # as a cluster that does not answer
"""


def test_what_does_not_stop_is_ended() -> None:
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", STUCK], cwd=root, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (143, f"\nstopping on SIGTERM\nstopped; w{GO_ON[1:]}\n")
