"""Ending: how a process of ours ends, with the status that it has come to."""

import atexit
import os
import sys
from typing import NoReturn

from jobs.streams import heard


def end_process(status: int) -> NoReturn:
    """End the process with this exit status, once what is registered for its end is done.

    The rest of Python's own end is left out: Arrow's threads are waited for there, and one that lets go of bytes of
    Python's, or reads a file of Python's, aborts the process with status 134 (CPython's gh-87135, to Python 3.13).
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        status = heard(status)
        sys.stderr.flush()
    except OSError:  # nobody reads any more: Python itself says so, with a status of its own
        sys.exit(status)
    os._exit(status)
