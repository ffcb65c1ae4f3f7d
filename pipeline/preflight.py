"""Preflight: whether the output can be written, and whether it holds another run, before anything is read or loaded."""

import os
import uuid
from contextlib import suppress
from typing import Any

from pipeline.engine.kernels.packages import check_packages, check_quantised, is_there
from pipeline.engine.network.decoder import decoder_shape
from pipeline.engine.network.memory import check_memory, describe_memory, memory_of
from pipeline.engine.reference.load import check_reference
from pipeline.environment import check_gpus, cluster_address
from pipeline.plan import Plan
from pipeline.preprocess.files import load_config
from pipeline.run_folder.layout import RUN, check_apart, check_links, state_path
from pipeline.run_folder.merge import check_mergeable
from pipeline.run_folder.run import check_run, has_seals, read_run
from pipeline.stages.engine_settings import engine_settings
from pipeline.storage import filesystem as fs
from pipeline.storage.local_files import nearest
from pipeline.weights.hub import locate
from schemas.errors import Refused
from schemas.job import JobSettings
from schemas.packages import install_line
from schemas.wording import lacks_bucket, one_line


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
    """Raise RunMismatch where what is answered cannot be merged with what this plan would answer instead."""
    folder = plan.settings.output
    run = read_run(folder)
    if run is not None and check_run(folder, plan.describe(), plan.listing.files, continue_with_changes=True):
        check_mergeable(plan.units(run["run"], sealed=has_seals(run)))


def check_writable(folder: str, flag: str = "--output") -> None:
    """Raise Refused where a folder cannot be made or written to, is a part of a run, or its scheme is only for
    reading."""
    check_place(folder, flag)
    check_apart(folder)
    path = fs.local_path(folder)
    if path is None:
        _check_store(folder, flag)
        return
    try:
        there = nearest(path)
    except (OSError, ValueError) as error:  # a name too long, a link that goes round, a zero byte
        raise Refused(f"{flag} must be a folder that can be made, got {folder!r}: {error}") from error
    check_links(folder)
    if not os.path.isdir(there):
        raise Refused(f"{flag} must be a folder that can be made, {there} is in the way and is none")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Refused(f"{flag} must be a folder that can be written, {there} cannot be")
    if os.geteuid() != 0:  # whom no mode keeps out
        check_umask(_umask())


def check_umask(umask: int) -> None:
    """Raise Refused for a umask under which this process cannot use the folders that it makes."""
    if umask & 0o700:
        raise Refused(
            "umask must leave the owner of a new folder the right to read, write and enter it, as 022 does, got "
            f"{umask:03o}"
        )


def _umask() -> int:
    """Return this process's umask, without setting it, as other threads may write meanwhile; 0 where that is not
    told, as on a system that is not Linux."""
    with suppress(OSError), open("/proc/self/status", "rb") as file:
        return next((int(line.split()[1], 8) for line in file if line.startswith(b"Umask:")), 0)
    return 0


def check_place(folder: str, flag: str = "--output") -> None:
    """Raise Refused for what is no place of a folder, whatever is there."""
    if not folder.strip():
        raise Refused(f"{flag} must not be empty, got {folder!r}: is a variable of the shell unset?")
    if lacks_bucket(folder):
        raise Refused(f"{flag} must name a bucket, got {folder!r}: is a variable of the shell unset?")
    if fs.scheme_of(folder) in ("http", "https"):
        raise Refused(f"{flag} must be a local folder or in an object store, got {folder}")


def _check_store(folder: str, flag: str) -> None:
    """Raise Refused where the keys at hand may not look into a store's folder, or not write a new one."""
    try:
        if not fs.exists(state_path(folder, RUN)):  # of a run that is there, its lock tells
            trial = state_path(folder, f"trial-{uuid.uuid4().hex}")
            fs.write_atomic(trial, b"whether this folder can be written")
            fs.delete(trial)
    except (PermissionError, FileNotFoundError) as error:
        raise Refused(
            f"{flag} must be a folder that can be written, {folder} cannot be ({one_line(error)}): check its bucket, "
            "and the keys in the environment"
        ) from error


def check_machine(settings: JobSettings, cards: tuple[int, ...]) -> None:
    """Raise ValueError for a setting that the engine would refuse, a package that is missing, or `cards`, the bytes of
    each, that are too small. On a cluster only its own machines can tell the last two."""
    engine = engine_settings(settings, on_gpu=bool(cards) and settings.gpus != 0)
    config = load_config(locate(settings.model), settings.revision)
    text: Any = config.text_config  # typed as a dict as well, which it is no longer once loaded
    if settings.engine == "transformers":
        check_reference(config, engine, settings.model)
    else:
        _check_network(text)
    if cluster_address():
        return
    check_gpus(settings.gpus, cards)
    check_packages(engine)
    if settings.dashboard and not is_there("aiohttp_cors"):  # of ray[default] alone
        raise Refused(f"--dashboard needs Ray's own packages for it: {install_line('cluster')}")
    check_quantised(config, settings.model)
    if engine.device != "cpu" and settings.engine == "own":
        check_memory(config, engine, min(cards))


def _check_network(text: Any) -> None:  # noqa: ANN401  transformers' config of any text network
    """Raise Refused for a network that our engine does not build, with what does."""
    try:
        decoder_shape(text)
    except Refused as error:
        raise Refused(f"{error}; --engine transformers runs it, slower") from error


def describe_needs(settings: JobSettings) -> str:
    """Return the memory that a GPU needs for the model."""
    if settings.engine == "transformers":
        return "what transformers takes: batches are halved where it is short"
    engine = engine_settings(settings, on_gpu=True)
    config = load_config(locate(settings.model), settings.revision)
    return describe_memory(memory_of(config, engine), engine)
