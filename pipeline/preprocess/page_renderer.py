"""PDFs are read in a process of their own, which counts and draws pages: what hangs or crashes there costs a page.

`PageRenderer` is the one side, `main` the other: `python -m pipeline.preprocess.page_renderer`. A request is a line of
JSON and the file's bytes, where these are not those of the request before; the reply is a line of JSON and the pixels.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import IO, Any, TypeVar

from PIL import Image

from pipeline.preprocess.pdf import INSTALL, PdfPage, can_read_pdfs, count_pages, render_page
from pipeline.preprocess.row_border import NOBODY, attempt
from schemas.errors import Failure, RowError

T = TypeVar("T")

MOST_MEMORY = 512 * 2**20  # bytes for drawing a page, besides its file and its pixels
_PIXEL = 8  # bytes for each pixel of a page on its way out
_SPARE_S = 10  # of processor time: a process whose parent was killed ends by itself


class PageRenderer:
    """Draws pages one at a time; the process is started with the first and again after one that ended it."""

    def __init__(self, *, max_pixels: int, max_aspect: float, seconds: float) -> None:
        self._limits: dict[str, float] = {"max_pixels": max_pixels, "max_aspect": max_aspect, "seconds": seconds}
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._last: bytes | None = None  # what the process has at hand

    def __call__(self, wanted: PdfPage) -> Image.Image:
        """Return the page on white paper, in RGB; raises RowError."""
        return self._within_limits(lambda process: self._drawn(process, wanted))

    def count(self, source: bytes | str) -> int:
        """Return the pages of a PDF, by its bytes or its path on this machine; raises RowError."""
        return self._within_limits(lambda process: self._counted(process, source))

    def _within_limits(self, ask: Callable[[subprocess.Popen[bytes]], T]) -> T:
        """Return what the process answers; a RowError says that it ended, or took too long and was ended."""
        if not can_read_pdfs():
            raise RowError("decode", "NoPdfReader", INSTALL)
        with self._lock:
            process = self._process or self._start()
            late = threading.Event()
            timer = threading.Timer(self._seconds, _stop, (process, late))
            timer.daemon = True
            timer.start()
            try:
                return ask(process)
            except (BrokenPipeError, EOFError) as error:
                status = process.wait()
                self._end()
                self._process, self._last = None, None
                raise self._death(status, late.is_set()) from error
            finally:
                timer.cancel()

    def _drawn(self, process: subprocess.Popen[bytes], wanted: PdfPage) -> Image.Image:
        again = wanted.data is self._last
        asked = {"page": wanted.page, "dpi": wanted.dpi, "bytes": None if again else len(wanted.data)}
        reply = self._ask(process, asked, b"" if again else wanted.data)
        self._last = wanted.data
        size = (reply["width"], reply["height"])
        assert process.stdout is not None
        return Image.frombytes("RGB", size, _exactly(process.stdout, 3 * size[0] * size[1]))

    def _counted(self, process: subprocess.Popen[bytes], source: bytes | str) -> int:
        self._last = None
        if isinstance(source, str):
            return int(self._ask(process, {"path": source, "bytes": 0}, b"")["pages"])
        return int(self._ask(process, {"path": None, "bytes": len(source)}, source)["pages"])

    def _ask(self, process: subprocess.Popen[bytes], asked: dict[str, Any], data: bytes) -> dict[str, Any]:
        """Return the process's reply; raises RowError where that is a failure."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({**self._limits, **asked}).encode() + b"\n")
        process.stdin.write(data)
        process.stdin.flush()
        reply: dict[str, Any] = json.loads(_line(process.stdout))
        if "failure" in reply:
            raise RowError(**reply["failure"])
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.preprocess.page_renderer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._end = weakref.finalize(self, _end, process)
        self._process = process
        return process

    def _death(self, status: int, late: bool) -> RowError:
        if late or status == -signal.SIGXCPU:
            message = f"the file took more than {self._seconds:g} s: look at it"
            return RowError("decode", "TimedOut", message)
        needs = f"more than {MOST_MEMORY >> 20} MB besides its pixels"
        return RowError("decode", "PageCrashed", f"reading the PDF ended its process ({status}): it needs {needs}, or "
                        "PDFium fails on it")  # fmt: skip


def main() -> None:
    """Draw pages until there are no more requests."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's matter
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # crashes are expected
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not be read as a reply
    data, start = b"", _address_space()
    while line := requests.readline():
        asked = json.loads(line)
        data = data if asked["bytes"] is None else _exactly(requests, asked["bytes"])
        _bound_time(asked["seconds"])
        step: Callable[[], Image.Image | int] = partial(_count if "path" in asked else _draw, data, asked, start)
        done = attempt("decode", step, NOBODY)
        reply, pixels = _reply(done)
        replies.write(json.dumps(reply).encode() + b"\n" + pixels)
        replies.flush()


def _reply(done: Image.Image | int | Failure) -> tuple[dict[str, Any], bytes]:
    """Return the line that says what was done, and the pixels behind it."""
    if isinstance(done, Failure):
        return {"failure": {"stage": done.stage, "type": done.type, "message": done.message}}, b""
    if isinstance(done, int):
        return {"pages": done}, b""
    return {"width": done.width, "height": done.height}, done.tobytes()


def _count(data: bytes, asked: dict[str, Any], start: int) -> int:
    try:
        _bound_memory(start + 2 * len(data) + MOST_MEMORY)
        if asked["path"] is None:
            return count_pages(data)
        with open(asked["path"], "rb") as file:
            return count_pages(file)
    except MemoryError as error:
        message = f"counting its pages needs more than {MOST_MEMORY >> 20} MB"
        raise RowError("decode", "TooMuchMemory", message) from error
    finally:
        _bound_memory(None)


def _draw(data: bytes, asked: dict[str, Any], start: int) -> Image.Image:
    wanted = PdfPage(data=data, page=asked["page"], dpi=asked["dpi"])
    most = start + 2 * len(data) + MOST_MEMORY
    try:
        _bound_memory(most)
        return render_page(
            wanted, asked["max_pixels"], asked["max_aspect"], lambda pixels: _bound_memory(most + _PIXEL * pixels)
        )
    except MemoryError as error:
        message = f"drawing the page needs more than {MOST_MEMORY >> 20} MB besides its pixels"
        raise RowError("decode", "TooMuchMemory", message) from error
    finally:
        _bound_memory(None)


def _bound_memory(most: int | None) -> None:
    """Let the process have so many bytes of addresses, or as many as it likes. Only Linux keeps to it."""
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard if most is None else most, hard))


def _address_space() -> int:
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _bound_time(seconds: float) -> None:
    """End the process some time after its parent should have: that may be gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds + _SPARE_S)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _line(file: IO[bytes]) -> bytes:
    line = file.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return line


def _exactly(file: IO[bytes], num_bytes: int) -> bytes:
    found = file.read(num_bytes)
    if len(found) < num_bytes:
        raise EOFError
    return found


def _stop(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()


if __name__ == "__main__":
    main()
