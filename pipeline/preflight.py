"""Preflight: whether the output can be written, and whether it holds another run, before anything is read or loaded."""

import os

from pipeline import storage
from pipeline.merge import check_mergeable
from pipeline.plan import Plan
from pipeline.run import check_run, has_seals, read_run
from schemas.errors import Refused


def check_output(plan: Plan, *, continue_with_changes: bool = False) -> None:
    """Raise Refused where the folder cannot be made or written, RunMismatch where it holds another run."""
    folder = plan.settings.output
    check_writable(folder)
    try:
        check_run(folder, plan.describe(), plan.listing.files, continue_with_changes=continue_with_changes)
        if continue_with_changes:
            check_changes(plan)
    except OSError as error:
        raise Refused(f"--output {folder} cannot be looked at: {error}") from error


def check_changes(plan: Plan) -> None:
    """Raise RunMismatch where what is answered cannot be merged with what this plan would answer in its place."""
    folder = plan.settings.output
    run = read_run(folder)
    if run is not None and check_run(folder, plan.describe(), plan.listing.files, continue_with_changes=True):
        check_mergeable(plan.units(run["run"], sealed=has_seals(run)))


def check_writable(folder: str) -> None:
    """Raise Refused where a local folder cannot be made or written to, or the scheme is only for reading."""
    if storage.scheme_of(folder) in ("http", "https"):
        raise Refused(f"--output must be a local folder or in an object store, got {folder}")
    path = storage.local_path(folder)
    if path is None:
        return
    try:
        there = _nearest(path)
    except (OSError, ValueError) as error:  # a name too long, a link that goes round, a zero byte
        raise Refused(f"--output must be a folder that can be made, got {folder!r}: {error}") from error
    if not os.path.isdir(there):
        raise Refused(f"--output must be a folder that can be made, {there} is in the way and is none")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Refused(f"--output must be a folder that can be written, {there} cannot be")


def _nearest(path: str) -> str:
    """What is there of this path: itself, or the nearest thing above it."""
    while True:
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path)
        else:
            return path
