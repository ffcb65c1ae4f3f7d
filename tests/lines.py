"""Stop at every line: something else happens between two lines of an operation, each of them once."""

import itertools
import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any


class Lines:
    """Calls `between` before the line of this number, and `after` before each one behind it, of these modules."""

    def __init__(self, modules: tuple[ModuleType, ...], number: int, between: Callable[[], object]) -> None:
        self._files = {module.__file__ for module in modules}
        self._number, self._between = number, between
        self.after: Callable[[], object] = lambda: None
        self.num = 0

    def run(self, work: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            work()
        finally:
            sys.settrace(before)

    def end(self) -> None:
        """Count no more: what comes now is not of the operation."""
        sys.settrace(None)

    def _called(self, frame: FrameType, _event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, _frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.num += 1
            if self.num == self._number:
                self._between()  # Python traces nothing in here
            elif self.num > self._number:
                self.after()
        return self._line


def each_line(run: Callable[[int], Lines]) -> Iterator[int]:
    """Run an operation once for each of its lines; yield the number of each when it is through."""
    for number in itertools.count(1):
        if run(number).num < number:
            assert number > 10  # there was something to stop
            return
        yield number
