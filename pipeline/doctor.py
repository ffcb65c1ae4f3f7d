"""Doctor: what a machine has for a job, a line each, and for what it lacks the command that mends it."""

import os
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement

from pipeline.environment import cards_here, cluster_address, cpus_here, head_address, socket_folder, version_of
from pipeline.storage import filesystem as fs
from pipeline.storage.local_files import nearest
from schemas.errors import Refused
from schemas.job import JobSettings
from schemas.packages import FLASH_ATTENTION, Extra, install_line
from schemas.wording import one_line

State = Literal["ok", "look", "fail"]

GB = 10**9
_LEAST_DISK, _LEAST_SHM, _LEAST_FILES = 10 * GB, 2 * GB, 65_536
_FEW_FILES = 4096
_PYTHON = (3, 11)
_OF_SCHEMES: dict[str, Extra] = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "abfs": "az",
    "http": "http",
    "https": "http",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; `mend` is the command, or what to do, where it is not in order."""

    name: str
    state: State
    found: str
    mend: str | None = None


def examine(settings: JobSettings) -> Iterator[Finding]:
    """Yield what is found, the machine first, then what these settings need of it."""
    yield _python()
    yield from _packages()
    yield from _cards(settings)
    yield from _ray()
    yield from _machine(settings)
    yield from _chosen(settings)
    yield from _stores(settings)


def _python() -> Finding:
    found = sys.version.split()[0]
    if sys.version_info[:2] >= _PYTHON:
        return Finding(name="python", state="ok", found=f"{found}, {cpus_here()} cores")
    return Finding(name="python", state="fail", found=found, mend="python3.11 -m venv .venv  # 3.11 or newer")


def _packages() -> Iterator[Finding]:
    """Yield each package that every job needs, against the project's own bounds."""
    for requirement in _required():
        found, wanted = version_of(requirement.name), str(requirement)
        name = requirement.name
        if found is None:
            yield Finding(name=name, state="fail", found="not installed", mend=f"pip install '{wanted}'")
        elif requirement.specifier.contains(found, prereleases=True):
            yield Finding(name=name, state="ok", found=found)
        else:
            yield Finding(name=name, state="fail", found=f"{found}, {requirement.specifier} is needed",
                          mend=f"pip install '{wanted}'")  # fmt: skip


def _required(project: Path = Path(__file__).parents[1] / "pyproject.toml") -> list[Requirement]:
    if project.exists():
        texts = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        texts = [text for text in metadata.requires("llava-batch") or [] if "extra ==" not in text]
    found = []
    for text in texts:
        try:
            found.append(Requirement(text))
        except InvalidRequirement:  # of a later form than this packaging reads
            continue
    return found


def _cards(settings: JobSettings) -> Iterator[Finding]:
    """Yield driver and cards, and whether torch can use them."""
    try:
        cards = cards_here()
    except Refused as error:
        yield Finding(name="driver", state="fail", found=one_line(error), mend="nvidia-smi; sudo dmesg | grep -i nvrm")
        return
    if not cards:
        wanted = settings.gpus is not None and settings.gpus > 0 and not cluster_address()
        yield Finding(
            name="cards",
            state="fail" if wanted else "look",
            found="no NVIDIA GPU can be used here: jobs run on the CPU, far too slow for a real checkpoint",
            mend="nvidia-smi  # is the driver there, and CUDA_VISIBLE_DEVICES not empty?",
        )
        return
    yield from _driver()
    sizes = ", ".join(f"{card / GB:.0f} GB" for card in cards)
    yield Finding(name="cards", state="ok", found=f"{len(cards)}: {sizes}")
    import torch

    built = torch.version.cuda
    if built is None or not torch.cuda.is_available():
        yield Finding(
            name="torch on cards",
            state="fail",
            found=f"torch {torch.__version__} {'is built for the CPU' if built is None else 'finds no usable driver'}",
            mend="pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130",
        )
        return
    names = {torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
    yield Finding(name="torch on cards", state="ok", found=f"CUDA {built}, {', '.join(sorted(names))}")
    yield from _lacks(settings)
    if torch.cuda.get_device_capability() == (9, 0) and version_of("quack-kernels") is None:
        yield Finding(
            name="kernels",
            state="look",
            found="a prefill's fused kernels for this card are not installed: captions are some 4 % slower",
            mend=install_line("hopper"),
        )


def _lacks(settings: JobSettings) -> Iterator[Finding]:
    """Yield what cards lack for the precision of these settings."""
    import torch

    from pipeline.engine.network.card import Card
    from pipeline.stages.engine_settings import dtype_of

    cards = {Card.of(torch.device("cuda", number)) for number in range(torch.cuda.device_count())}
    lacks = {card.why_not(dtype_of(settings, on_gpu=True), settings.quantize) for card in cards}
    for lack in sorted(filter(None, lacks)):
        mend = "--dtype float16, --quantize 4bit, or a PyTorch for this card: https://pytorch.org/get-started"
        yield Finding(name="precision", state="fail", found=lack, mend=mend)


def _driver() -> Iterator[Finding]:
    tool = shutil.which("nvidia-smi")
    assert tool is not None  # it has named the cards
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False, timeout=60)
    versions = sorted(set(found.stdout.split()))
    yield Finding(name="driver", state="ok", found=", ".join(versions) or "unknown")


def _ray() -> Iterator[Finding]:
    """Yield the cluster that RAY_ADDRESS names, or where a Ray of the job's own would live."""
    address, head = cluster_address(), head_address()
    if address is None:
        try:
            yield Finding(name="ray", state="ok", found=f"a Ray of the job's own, below {socket_folder()}")
        except Refused as error:
            yield Finding(name="ray", state="fail", found=one_line(error), mend="export TMPDIR=/tmp")
        return
    if head is None:
        yield Finding(name="ray", state="ok", found=f"RAY_ADDRESS {address}")
        return
    try:
        socket.create_connection(head, 3).close()
    except OSError as error:
        mend = 'ray status --address "$RAY_ADDRESS"; unset RAY_ADDRESS  # for a Ray of the job\'s own'
        yield Finding(name="ray", state="fail", found=f"RAY_ADDRESS {address}: {error}", mend=mend)
    else:
        yield Finding(name="ray", state="ok", found=f"RAY_ADDRESS {address} takes connections")


def _machine(settings: JobSettings) -> Iterator[Finding]:
    """Yield disk, shared memory, open files and memory."""
    folders = {"disk (temporary)": os.environ.get("TMPDIR") or "/tmp", "disk (models)": _cache()}
    if (output := fs.local_path(settings.output)) is not None and settings.output != NO_OUTPUT:
        folders["disk (output)"] = output
    for name, folder in folders.items():
        free = shutil.disk_usage(nearest(os.path.realpath(folder))).free
        state: State = "ok" if free >= _LEAST_DISK else "look"
        mend = None if state == "ok" else f"du -sh {folder}/* | sort -h  # 7B weights are 15 GB, Ray spills to disk"
        yield Finding(name=name, state=state, found=f"{free / GB:.0f} GB free at {folder}", mend=mend)
    yield bytecode()
    yield _shared_memory()
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))


def bytecode(package: str = "torch") -> Finding:
    """Return whether a package's modules lie there compiled, or can: else every worker compiles them as it starts."""
    spec = find_spec(package)
    if spec is None or spec.cached is None:
        return Finding(name="bytecode", state="ok", found=f"{package} has none")
    if os.path.exists(spec.cached):
        return Finding(name="bytecode", state="ok", found=f"{package}'s is there")
    if not sys.dont_write_bytecode and os.access(nearest(os.path.realpath(spec.cached)), os.W_OK):
        return Finding(name="bytecode", state="ok", found=f"{package}'s is written by the first worker")
    library = os.path.dirname(os.path.dirname(str(spec.origin)))
    why = "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else "its folder may not be written"
    found = f"{package} has none and {why}: every worker that starts compiles it again, for seconds"
    mend = f"python -m compileall -q -j 0 {shlex.quote(library)}  # as the packages' owner"
    return Finding(name="bytecode", state="look", found=found, mend=mend)


def open_files(soft: int, hard: int) -> Finding:
    """Return what limits of open files mean for Ray, which needs many; one below 0 is none."""
    most = _LEAST_FILES if hard < 0 else min(hard, _LEAST_FILES)
    mends = [f"ulimit -n {most}  # Ray needs many"] if 0 <= soft < most else []
    mends += [_MORE_FILES] if most < _FEW_FILES else []  # only root can
    found = "no limit" if soft < 0 else f"{soft:,} a process"
    return Finding(name="open files", state="look" if mends else "ok", found=found, mend="; ".join(mends) or None)


def _shared_memory() -> Finding:
    if not os.path.isdir("/dev/shm"):
        return Finding(
            name="/dev/shm", state="look", found="there is none: Ray keeps objects on the disk", mend=_MORE_SHM
        )
    size = shutil.disk_usage("/dev/shm").total
    if size >= _LEAST_SHM:
        return Finding(name="/dev/shm", state="ok", found=f"{size / GB:.0f} GB")
    return Finding(name="/dev/shm", state="look", found=f"{size / GB:.2f} GB: Ray spills to disk", mend=_MORE_SHM)


_MORE_FILES = (
    f"docker run --ulimit nofile={_LEAST_FILES} ...  # or, as root, `* - nofile {_LEAST_FILES}` in "
    "/etc/security/limits.conf, and log in again"
)
_MORE_SHM = "docker run --shm-size=8g ...  # or mount -o remount,size=8g /dev/shm"


def _cache() -> str:
    home = os.path.expanduser("~")
    return os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache", "huggingface"
    )


def _chosen(settings: JobSettings) -> Iterator[Finding]:
    """Yield the packages that only some settings need, and the model."""
    wanted = {
        "bitsandbytes": (install_line("quantize"), settings.quantize in ("8bit", "4bit"), "--quantize 8bit and 4bit"),
        "flash-attn": (FLASH_ATTENTION, settings.attention == "flash_attention_2", "--attention flash_attention_2"),
        "pypdfium2": (install_line("pdf"), False, "pages of PDFs"),
        "jiwer": (install_line("scores"), settings.reference_column is not None, "scoring"),
        "aiohttp-cors": (install_line("cluster"), settings.dashboard, "--dashboard"),
    }
    for name, (install, is_asked, purpose) in wanted.items():
        if (found := version_of(name)) is not None:
            yield Finding(name=name, state="ok", found=f"{found}, for {purpose}")
        elif is_asked:
            yield Finding(name=name, state="fail", found=f"not installed; {purpose}", mend=install)
    if settings.model != "demo":
        yield _model(settings)


def _model(settings: JobSettings) -> Finding:
    from pipeline.plan import resolve_model
    from pipeline.preflight import check_machine

    try:
        settings, model = resolve_model(settings)
        check_machine(settings, cards_here())
    except (Refused, OSError) as error:
        return Finding(name="model", state="fail", found=one_line(error), mend="llava-batch check-model MODEL")
    return Finding(name="model", state="ok", found=f"{settings.model} ({model.hash[:12]}) can be loaded here")


def _stores(settings: JobSettings) -> Iterator[Finding]:
    """Yield whether what the settings name is there and can be reached by its client with the keys there are."""
    urls = [("input", url) for url in settings.input if url != NO_INPUT]
    urls += [] if settings.output == NO_OUTPUT else [("output", settings.output)]
    for name, url in urls:
        scheme = fs.scheme_of(url)
        try:
            there = fs.exists(re.split(r"[*?\[{]", url)[0].rpartition("/")[0] or url if _is_glob(url) else url)
        except (OSError, ValueError, ImportError) as error:
            extra = _OF_SCHEMES.get(scheme)
            mend = install_line(extra) if extra and isinstance(error, ImportError) else _KEYS
            yield Finding(name=name, state="fail", found=f"{url}: {one_line(error)}", mend=mend)
            continue
        if name == "output":
            yield _output(url, there=there)
        elif there:
            yield Finding(name=name, state="ok", found=f"{url} is there")
        else:
            yield Finding(name=name, state="fail", found=f"{url} is not there", mend="ls  # or the store's own client")


def _output(url: str, *, there: bool) -> Finding:
    from pipeline.preflight import check_writable

    try:
        check_writable(url)
    except Refused as error:
        return Finding(name="output", state="fail", found=one_line(error), mend=_ELSEWHERE)
    return Finding(name="output", state="ok", found=f"{url} {'is there' if there else 'can be made'}")


_ELSEWHERE = "ls -ld  # and choose another --output, or mend who may write there"
_KEYS = "llava-batch --storage-option s3.profile=NAME ...  # docs/stores.md: endpoints, keys, profiles"
NO_INPUT, NO_OUTPUT = "none", "none"  # where doctor is asked about the machine alone


def _is_glob(url: str) -> bool:
    return re.search(r"[*?\[{]", url) is not None
