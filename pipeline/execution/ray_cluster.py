"""The cluster: joined or started, what it has, and what is said while it has too little."""

import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from traceback import walk_tb
from types import TracebackType

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from pipeline.environment import (
    check_wait,
    cluster_address,
    cpus_here,
    object_store_folder,
    socket_folder,
)
from pipeline.execution.cluster_watch import (
    ClusterLost,
    Part,
    Watch,
    Wishes,
    is_there,
    num_losses,
    wait_for_head,
    watched,
)
from pipeline.execution.placement import Load, Placement, describe_wait, share_out
from pipeline.execution.ray_errors import RunFailed
from pipeline.storage.options import given_options
from schemas.errors import Refused
from schemas.job import JobSettings
from schemas.wording import one_line

CPUS_OF_A_JOB = 2  # of a Ray of our own, where they are only numbers
_STILL_ASKING_S = 2.0
_JOIN_AGAIN_S = 3.0
_STORE_ON_DISK = 2**30  # bytes of the object store where there is no shared memory
_STARTS = 3  # of a Ray that is too slow to start


@contextmanager
def on_cluster(wishes: Wishes, release: Callable[[], None]) -> Iterator[Watch]:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it set), else start one that ends with the block.

    Raises ClusterLost where it goes away; `release` is called where the process has to be ended then.
    """
    if ray.is_initialized():
        yield Watch(parts=(), release=release)
        return
    check_wait(wishes.wait_s)
    _quiet_ray(wishes.worker_logs)
    name_command()
    try:
        if address := cluster_address():
            _join(address, wishes)
        else:
            _start(wishes)
        with watched(Watch(parts=_needed(), release=release, wait_s=wishes.wait_s)) as watch:
            try:
                yield watch
            except (RuntimeError, OSError, ray.exceptions.RayError) as error:
                watch.check(error)
                raise
            finally:
                watch.leave()
                ray.shutdown()
    finally:
        ray.shutdown()


def _needed() -> list[Part]:
    """Return the processes without which this driver cannot go on, of those that it can reach by itself."""
    address = cluster_address() or ""
    if address.startswith("ray://"):
        return [part for part in [_part("its Ray client's server", address.removeprefix("ray://"))] if is_there(part)]
    context = ray.get_runtime_context()
    parts = [_part("its head (gcs_server)", context.gcs_address)]
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            host, port = node["NodeManagerAddress"], node["NodeManagerPort"]
            parts.append(_part("this machine's raylet", f"{host}:{port}"))
    return [part for part in parts if is_there(part)]


def _part(what: str, address: str) -> Part:
    host, _, port = address.split("/")[0].rpartition(":")
    return Part(what=what, host=host.strip("[]"), port=int(port))


def _join(address: str, wishes: Wishes) -> None:
    """Join a cluster. Raises Refused where there is none in time, or none that lets us in; ClusterLost where it was
    there before."""
    until = time.monotonic() + wishes.wait_s
    wait_for_head(wishes.wait_s)
    while True:
        try:
            with _stderr_hidden():
                options = {"env_vars": given} if (given := given_options()) else None
                ray.init(logging_level=logging.ERROR, log_to_driver=wishes.worker_logs, runtime_env=options)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            if time.monotonic() >= until and num_losses():
                lost = f"the cluster that was lost has not come back to {address} within {wishes.wait_s:g} s"
                raise ClusterLost(f"{lost}: {one_line(error)}") from error
            if time.monotonic() >= until:
                raise Refused(f"RAY_ADDRESS {address} cannot be joined: {one_line(error)}") from error
            time.sleep(_JOIN_AGAIN_S)  # its head is up before its raylet
        else:
            return


def _start(wishes: Wishes) -> None:
    """Start a Ray of this process's own that takes no more than there is, and leaves nothing in HOME."""
    os.environ.pop("RAY_ADDRESS", None)  # empty, or `local`
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:  # Ray would write a token to HOME, and the next Ray there would use it
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder = socket_folder()
    objects = object_store_folder(folder)
    for tries_left in reversed(range(_STARTS)):
        with StartFailures(folder, tries_left), _stderr_hidden():
            started = ray.init(
                address="local",
                num_cpus=max(CPUS_OF_A_JOB, cpus_here()),
                include_dashboard=wishes.dashboard,
                logging_level=logging.ERROR,
                log_to_driver=wishes.worker_logs,
                object_store_memory=_STORE_ON_DISK if objects else None,
                _plasma_directory=objects,
                _temp_dir=folder,
            )
            break
        sys.stderr.write("Ray has not started in its time, this machine is busy: once more\n")
    if wishes.dashboard:
        sys.stderr.write(f"dashboard http://{started.dashboard_url}\nmetrics   {metrics_address()}\n")


def metrics_address() -> str:
    """Return where this machine's metrics are, for Prometheus to read."""
    own = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == own)
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


class StartFailures(AbstractContextManager[None, bool]):
    """Turns what Ray raises where it does not start into RunFailed; a start that took too long passes while tries are
    left."""

    def __init__(self, folder: str, tries_left: int = 0) -> None:
        self._folder = folder
        self._tries_left = tries_left

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        took_too_long = kind is Exception  # Ray 2.60 gives its own processes 30 s, then raises just this
        if error is None or not (took_too_long or isinstance(error, OSError | RuntimeError | ValueError)):
            return False
        if not (took_too_long and self._tries_left):
            raise RunFailed(f"Ray did not start, its logs are below {self._folder}: {one_line(error)}") from error
        for frame, _ in walk_tb(trace):
            if (end := getattr(frame.f_locals.get("self"), "kill_all_processes", None)) is not None:  # Ray's Node
                end(check_alive=False, allow_graceful=True)
        return True


@contextmanager
def _stderr_hidden() -> Iterator[None]:
    """Keep from the terminal what Ray's C++ writes before it has a log file: that it has read its log level."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def plan_placement(settings: JobSettings, load: Load) -> Placement:
    """Return the pools' sizes on the cluster as it is; see `share_out`."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return share_out(machines, settings, load, may_grow=_may_grow())


def _may_grow() -> bool:
    """Return whether somebody adds machines to this cluster when they are asked for."""
    if "RAY_NODE_TYPE_NAME" in os.environ:  # set on machines that Ray's launcher and KubeRay start
        return True
    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except ray.exceptions.RayError:  # it does not say: who waits is told for what
        return True
    types = [node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes, *status.pending_nodes)]
    return any(not name.startswith("node_") for name in types)  # a type that no launcher has named


@contextmanager
def said_while_waiting(placement: Placement, say: Callable[[str], None], every_s: float = 30.0) -> Iterator[None]:
    """Say every so often what a job asks for and what there is, as long as that is less or nothing is to spare."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            say(describe_wait(placement, ray.cluster_resources(), ray.available_resources()))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_STILL_ASKING_S)  # a cluster that has gone away does not answer


def connect_no_more() -> None:
    """Have Ray raise where it is asked for something after its end, as by a thread of its own that has not ended yet.

    It would join or start another cluster by itself.
    """
    ray._private.auto_init_hook.enable_auto_connect = False


def name_command() -> None:
    """Have Ray tell its cluster this process's command though an argument is not UTF-8: it would not start."""
    command = ray._private.utils.get_entrypoint_name()
    sendable = command.encode("utf-8", "backslashreplace").decode()
    if sendable != command:
        ray._private.utils.get_entrypoint_name = lambda: sendable


def _quiet_ray(worker_logs: bool) -> None:
    """Leave stderr to the job's own lines; Ray's are in its session folder, and its errors are raised."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # every actor pool logs an error about its arguments
    # Ray 2.60 prints what the cluster's processes report, as a raylet's last words, on stdout unless this says no.
    ray._private.worker._worker_logs_enabled = worker_logs
