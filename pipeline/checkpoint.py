"""Checkpoint: the one that a model name means, and proof that it is still the same one and can be loaded."""

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.preprocess.files import load_generation_config, load_processor
from pipeline.preprocess.generation import describe_unfollowed
from pipeline.weights import hub
from pipeline.weights.adapter import CONFIG, WEIGHTS, read_lora
from pipeline.weights.companions import check_tokens, template_in
from pipeline.weights.headers import INDEX, SINGLE
from pipeline.weights.hub import adapter_folder, locate
from schemas.errors import Refused
from schemas.job import JobSettings

_PROMPTS = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "tokenizer.json", "added_tokens.json")
_END = 2**20  # bytes hashed at either end of a file: a safetensors header, and the last weights
_CACHES = frozenset({".cache", ".git", ".huggingface", "__pycache__"})  # folders of other programs in a checkpoint's


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Proof of a checkpoint: the commit of a hub model; or a folder's hash, and that of each file."""

    hash: str
    files: dict[str, str] = field(default_factory=dict)  # chat template, tokenizer, weights, ... by name


def pin(model: str, revision: str | None) -> Pin:
    """Return what a resume compares. Raises Refused where there is no such model.

    A local file counts with its name, size and first and last MiB: ten seconds for 200 GB, and a retrained or truncated
    checkpoint shows.
    """
    folder = Path(locate(model))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise Refused(f"--model must be a checkpoint folder with a config.json, {model!r} has none")
        return pin_folder(folder)
    return Pin(hash=hub.commit_of(model, revision))


def at_their_folders(settings: JobSettings) -> JobSettings:
    """Return the settings with the whole paths of a model and an adapter that are folders of this machine; raise
    Refused for a file."""
    found = {"model": _whole(settings.model), "adapter": settings.adapter and _whole(settings.adapter)}
    for name, path in found.items():
        if path and os.path.isfile(path):
            raise Refused(f"--{name} must be a folder or a hub id, {path!r} is a file")
    return settings.model_copy(update=found)


def check_revision(settings: JobSettings) -> None:
    """Raise Refused for a revision of a folder: it would hold what the folder has, whatever was asked for."""
    if settings.revision is not None and Path(locate(settings.model)).is_dir():
        raise Refused(
            f"--revision is for a model of the hub, got {settings.revision!r} for {settings.model!r}, which is a folder"
        )


def _whole(model: str) -> str:
    path = os.path.abspath(os.path.expanduser(model))
    return path if model != "demo" and os.path.isdir(path) else model


def at_its_commit(settings: JobSettings, model: Pin) -> JobSettings:
    """Return the settings with a hub model's commit as its revision: a push while the job runs reaches no worker."""
    if Path(locate(settings.model)).is_dir():
        return settings
    return settings.model_copy(update={"revision": model.hash})


def with_base(settings: JobSettings) -> JobSettings:
    """Return the settings with the base as the model where `--model` names an adapter, and the adapter as one commit.

    Raises Refused where a whole model has an adapter beside it that the settings do not mention.
    """
    names = hub.names_in(locate(settings.model), settings.revision)
    beside = sorted(names & {CONFIG, WEIGHTS, "adapter_model.bin"})
    if not beside:
        return settings.model_copy(update={"adapter": settings.adapter and hub.at_adapter(settings.adapter)})
    if "config.json" in names and any(_is_weights(name) for name in names):
        return _with_adapter_beside(settings, beside[0])
    if settings.adapter is not None:
        raise Refused(f"--model must be the base of --adapter, {settings.model!r} is an adapter itself ({beside[0]})")
    named = settings.model if settings.revision is None else f"{settings.model}@{settings.revision}"
    adapter = hub.at_adapter(named)
    lora = read_lora(adapter_folder(adapter))
    if lora.base is None:
        raise Refused(f"--model {settings.model!r} is an adapter without a base: say --model BASE --adapter {named}")
    return settings.model_copy(update={"model": lora.base, "adapter": adapter, "revision": lora.base_revision})


def with_adapters_template(settings: JobSettings) -> JobSettings:
    """Return the settings with the chat template that the adapter was trained with, where it is not the base's and none
    was asked for; says so. Raises Refused where its tokens are not the base's."""
    folder = None if settings.adapter is None else adapter_folder(settings.adapter)
    if folder is None or not any((folder / name).exists() for name in _PROMPTS):
        return settings
    processor = load_processor(locate(settings.model), settings.revision)
    check_tokens(folder, processor.tokenizer.get_vocab())
    template = template_in(folder)
    if template in (None, processor.chat_template, processor.tokenizer.chat_template):
        return settings
    if settings.chat_template != "auto":
        sys.stderr.write(f"adapter {folder} has a chat template of its own, not asked for: see --chat-template\n")
        return settings
    sys.stderr.write(f"adapter {folder} is asked by its own chat template, which is not its base's\n")
    return settings.model_copy(update={"chat_template": template})


def prove(settings: JobSettings, model: Pin) -> Pin:
    """Return what a resume compares, with the adapter; raise Refused where the checkpoint cannot be loaded as it is.

    Only headers are read: of a hub's files those in the cache here, or else by range requests.
    """
    from transformers import AutoConfig

    from pipeline.weights.proof import prove_adapter, prove_checkpoint  # torch takes seconds to import

    config = AutoConfig.from_pretrained(locate(settings.model), revision=settings.revision, trust_remote_code=False)
    prove_checkpoint(place_of(settings.model, model.hash), config)
    if settings.adapter is None:
        return model
    folder = adapter_folder(settings.adapter)
    for line in prove_adapter(folder, config, settings.model):
        sys.stderr.write(f"{line}\n")
    own = pin_folder(folder)
    both = hashlib.sha256(f"{model.hash} {own.hash}".encode()).hexdigest()
    return Pin(hash=both, files={**model.files, **{f"adapter: {name}": hash for name, hash in own.files.items()}})


def describe_generation(settings: JobSettings) -> str | None:
    """Return what is to be said of a checkpoint whose generation config asks for more than the job does."""
    generation = load_generation_config(locate(settings.model), settings.revision)
    said = describe_unfollowed(generation, settings)
    return said and f"model {settings.model} has a generation config that asks for {said}"


def place_of(model: str, commit: str) -> str:
    """Return where a model's files can be read: its folder, or the hub's at the commit."""
    folder = locate(model)
    return folder if Path(folder).is_dir() else hub.place_of(model, commit)


def _with_adapter_beside(settings: JobSettings, file: str) -> JobSettings:
    """Return the settings of a whole model with an adapter's file in its folder. Raise Refused where nobody can tell
    whether it is merged already."""
    if settings.adapter is not None and hub.same_place(settings.adapter, locate(settings.model)):
        return settings
    raise Refused(
        f"--model {settings.model!r} must be a model or an adapter, it has weights and {file}: say --adapter "
        f"{settings.model} to merge the adapter into them, or take {file} away if they are merged already"
    )


def _is_weights(name: str) -> bool:
    return name in (SINGLE, INDEX) or (name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json")))


def pin_folder(folder: Path) -> Pin:
    """Return the hash of every file of a folder, at any depth, but for other programs' caches."""
    files = {path.relative_to(folder).as_posix(): _hash_file(path) for path in sorted(_files(folder))}
    return Pin(hash=hashlib.sha256(repr(files).encode()).hexdigest(), files=files)


def hash_code(root: Path = Path(__file__).parents[1]) -> str:
    """Return a hash of the code that shapes answers: all of pipeline/ and schemas/ but for what is named."""
    digest = hashlib.sha256()
    for path in shaping_files(root):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def shaping_files(root: Path = Path(__file__).parents[1]) -> list[Path]:
    """Return the files of the code that shape an answer, whichever they are called: new ones count."""
    found = sorted([*(root / "pipeline").rglob("*.py"), *(root / "schemas").rglob("*.py")])
    return [path for path in found if not _is_elsewhere(path.relative_to(root))]


# Code that decides where, when and how fast rows are answered and what becomes of the answers, never what they say.
NOT_SHAPING = frozenset(
    {
        "pipeline/check_bundle.py",
        "pipeline/check_model.py",
        "pipeline/check_questions.py",
        "pipeline/checkpoint.py",
        "pipeline/doctor.py",
        "pipeline/dryrun.py",
        "pipeline/environment.py",
        "pipeline/execution",
        "pipeline/forecast.py",
        "pipeline/job.py",
        "pipeline/look.py",
        "pipeline/notify.py",
        "pipeline/plan.py",
        "pipeline/preflight.py",
        "pipeline/rates.py",
        "pipeline/reports",
        "pipeline/retry.py",
        "pipeline/run_folder",
        "pipeline/scores.py",
        "pipeline/scoring",
        "pipeline/stages/locks.py",
        "pipeline/storage/backoff.py",
        "pipeline/sweep",
        "pipeline/verify.py",
        "pipeline/weights/headers.py",
        "pipeline/weights/proof.py",
        "schemas/benchmark.py",
        "schemas/setting_kinds.py",
        "schemas/sweep.py",
        "schemas/wording.py",
    }
)


def _is_elsewhere(path: Path) -> bool:
    return any(one.as_posix() in NOT_SHAPING for one in (path, *path.parents))


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _CACHES]
        for path in (Path(root, name) for name in names):
            if path.is_symlink() and not path.exists():
                raise Refused(f"{path} must be a file, it is a link to {os.readlink(path)}, which is not there")
            if path.is_file():
                yield path


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256(f"{path.stat().st_size}\n".encode())
    with path.open("rb") as file:
        digest.update(file.read(_END))
        file.seek(max(_END, path.stat().st_size - _END))
        digest.update(file.read())
    return digest.hexdigest()[:16]
