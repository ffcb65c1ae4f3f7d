"""The bundle of check-model: what a bug report is made of in one zip. No weights, no pictures, no path, no secret."""

import io
import json
import platform
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from pipeline.check_model import Checked
from pipeline.checkpoint import Pin
from pipeline.environment import cards_here, cpus_here, version, version_of
from pipeline.storage import filesystem as fs
from pipeline.weights.hub import locate
from schemas.job import JobSettings
from schemas.wording import redacted

_PACKAGES = ("torch", "transformers", "ray", "numpy", "pillow", "pyarrow", "tokenizers", "safetensors", "accelerate")
_OPTIONAL = ("bitsandbytes", "flash-attn", "flash-attn-4", "quack-kernels", "triton", "torchvision", "gptqmodel")
_CONFIGS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "adapter_config.json",
)
_SETTINGS = {"input", "output", "allow_root", "image_root", "user_agent"}  # no matter of a model's


def write_bundle(path: str, settings: JobSettings, model: Pin, checked: Sequence[Checked]) -> None:
    """Write the zip over what was there, whole or not at all."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in _contents(settings, model, checked):
            bundle.writestr(name, redacted(text))
    fs.write_atomic(path, file.getvalue())


def _contents(settings: JobSettings, model: Pin, checked: Sequence[Checked]) -> Iterator[tuple[str, str]]:
    yield "versions.json", _json(versions())
    yield "settings.json", _json(_without_paths(settings.model_dump(mode="json", exclude=_SETTINGS)))
    yield "model.json", _json({"hash": model.hash, "files": model.files})
    yield "results.json", _json([_result(one) for one in checked])
    for name in _CONFIGS:
        if (text := _read(settings, name)) is not None:
            yield f"model/{name}", text if name.endswith(".jinja") else _json(_without_paths(json.loads(text)))


def versions() -> dict[str, Any]:
    """Return what this machine runs: packages, system, cards."""
    return {
        "llava-batch": version(),
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": cpus_here(),
        "cards": list(cards_here()),
        **{name: version_of(name) for name in _PACKAGES},
        **{name: found for name in _OPTIONAL if (found := version_of(name)) is not None},
    }


def _result(checked: Checked) -> dict[str, Any]:
    comparisons = [{**asdict(one), "first_difference": one.first_difference} for one in checked.comparisons]
    return {**asdict(checked), "comparisons": comparisons}


def _read(settings: JobSettings, name: str) -> str | None:
    """Return a small file of the checkpoint, None where it has none."""
    folder = Path(locate(settings.model))
    if folder.is_dir():
        path: str | None = str(folder / name) if (folder / name).is_file() else None
    else:
        path = cached_file(
            settings.model, name, revision=settings.revision, _raise_exceptions_for_missing_entries=False
        )
    return None if path is None else Path(path).read_text(encoding="utf-8", errors="replace")


def _without_paths(value: Any) -> Any:  # noqa: ANN401  JSON
    """Return JSON in which a path of this machine is its last name alone."""
    if isinstance(value, dict):
        return {name: _without_paths(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "file:")) else value


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
