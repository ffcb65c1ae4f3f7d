"""Streams: stdin, stdout and stderr of a process of ours, which goes on where nobody reads them any more."""

import errno
import io
import os
import sys
from typing import TextIO, cast

_UNREAD = 128 + 13  # as a shell has it of what SIGPIPE ended


class Patient(io.TextIOWrapper):
    """A stream of text that is written no more once that fails, for the reason in `lost`: work outlives its log."""

    lost: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write the text, or nothing."""
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Write what is held back, or nothing."""
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Let what is held back, and what is yet to come, go nowhere: it would fail again."""
        self.lost = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        super().flush()


def keep_streams() -> None:
    """Make this process's streams patient. One that is closed goes nowhere: else the next file that is opened would
    have its number, and get what libraries print."""
    for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, mode), number)  # the lowest number that is free is this
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    sys.stdout, sys.stderr = _patient(sys.stdout, 1), _patient(sys.stderr, 2)


def _patient(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:
        return Patient(io.BufferedWriter(io.FileIO(number, "w", closefd=False)), encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    return Patient(
        cast(io.BufferedWriter, stream.buffer),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def heard(status: int) -> int:
    """Return a process's exit status, another than 0 where what it has found could not be said on stdout."""
    lost = sys.stdout.lost if isinstance(sys.stdout, Patient) else None
    if lost is None or status:
        return status
    if lost.errno == errno.EPIPE:  # a reader that has had enough
        return _UNREAD
    sys.stderr.write(f"error: stdout cannot be written: {lost.strerror}\n")
    return 1
