"""Last word: a line on stderr where a driver ends with its folder still held, and nobody in it could say so.

Such ends are a SIGKILL, and Ray's own code, which ends the process without a word where its raylet is stopped. So that
no end is too sudden, the line is another process's: a shell of some hundred KB that waits until the driver's end of a
pipe is closed, and is silent where a word came through it before. It ends with its driver, whatever ends that.
"""

import contextlib
import os
import subprocess
from dataclasses import dataclass

from schemas.wording import GO_ON

_SHELL = "/bin/sh"
# What ends a whole group of processes in order is the driver's to follow: this one waits for its pipe alone.
_SCRIPT = "trap '' HUP INT TERM; read -r word || printf '%s\\n' \"$@\" >&2"
_END_S = 2.0


@dataclass(frozen=True, slots=True)
class LastWord:
    """Says that this process has ended, unless it is dismissed before; says nothing where there is no shell."""

    shell: subprocess.Popen[bytes] | None

    @classmethod
    def begin(cls) -> "LastWord":
        """Begin to wait for this process's end."""
        said = (
            "",
            f"error: the driver (process {os.getpid()}) has ended in the middle of its work: killed, as where memory "
            "is short, or by Ray, as where this machine's raylet is stopped",
            GO_ON,
        )
        with contextlib.suppress(OSError):
            command = [_SHELL, "-c", _SCRIPT, "last-word", *said]
            # Its own session: Ctrl-C is not for it, and a terminal is written to from the background as well.
            return cls(subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, start_new_session=True))
        return cls(None)

    def dismiss(self) -> None:
        """Let nothing be said: what happens to this process from now on is its own to say. Done again it is nothing."""
        if self.shell is None or self.shell.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):  # it has been killed; or has been dismissed
            self.shell.stdin.write(b"\n")
            self.shell.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.shell.wait(_END_S)
