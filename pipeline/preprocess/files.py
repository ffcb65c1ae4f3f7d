"""Files: the parts of a checkpoint that transformers reads before any weight, or in one line why it cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from schemas.errors import Refused

if TYPE_CHECKING:
    from transformers import GenerationConfig, LlavaNextConfig, LlavaNextProcessor

T = TypeVar("T")

_GENERATION = "generation_config.json"
_LONGEST_REASON = 400  # characters of what a library says


def load_config(model: str, revision: str | None) -> "LlavaNextConfig":
    """Load the config of a folder or a hub id; raise Refused where there is none, or another model's."""
    from transformers import AutoConfig, LlavaNextConfig  # here and below: who preprocesses has read it all before

    config = _read(
        f"model {model!r} must be a checkpoint's folder or a hub id",
        lambda: AutoConfig.from_pretrained(model, revision=revision or "main", trust_remote_code=False),
    )
    if not isinstance(config, LlavaNextConfig):
        raise Refused(f"model {model!r} must be a LLaVA-NeXT checkpoint (llava_next), got {config.model_type!r}")
    return config


def load_generation_config(model: str, revision: str | None) -> "GenerationConfig | None":
    """Load the generation config, which a checkpoint need not have; raise Refused where it has one that is broken."""
    from transformers import GenerationConfig

    rule = f"{_GENERATION} of model {model!r} must be whole"

    def load() -> GenerationConfig | None:
        try:
            return GenerationConfig.from_pretrained(model, revision=revision or "main")
        except OSError as error:  # transformers raises the same for a file that is absent and for one that is no JSON
            if (Path(model) / _GENERATION).exists() or isinstance(error.__context__, ValueError):
                raise
            return None

    return _read(rule, load)


def load_processor(model: str, revision: str | None) -> "LlavaNextProcessor":
    """Load the tokenizer, the image processor's settings and the chat template; raise Refused where one is broken."""
    from transformers import AutoProcessor, LlavaNextProcessor

    rule = f"model {model!r} must have a tokenizer and a processor config"
    processor = _read(  # backend: the image processor is not used, and the default one needs torchvision
        f"{rule} that can be read",
        lambda: AutoProcessor.from_pretrained(
            model, revision=revision or "main", trust_remote_code=False, backend="pil"
        ),
    )
    if not isinstance(processor, LlavaNextProcessor):  # without a processor config it is the tokenizer alone
        raise Refused(f"{rule} of LLaVA-NeXT, got {type(processor).__name__}")
    return processor


def reason_of(error: BaseException) -> str:
    """Return what an exception says, in one line of bounded length."""
    said = " ".join(str(error).split())
    whole = said if isinstance(error, OSError | Refused) and said else f"{type(error).__name__}: {said}"
    return whole if len(whole) <= _LONGEST_REASON else whole[: _LONGEST_REASON - 3] + "..."


def _read(rule: str, load: Callable[[], T]) -> T:
    """Return what `load` reads. A file that is wrong makes libraries raise anything, from KeyError to PanicException's
    kin of tokenizers: all of it is a checkpoint that cannot be used."""
    try:
        return load()
    except Exception as error:
        raise Refused(f"{rule}: {reason_of(error)}") from error
