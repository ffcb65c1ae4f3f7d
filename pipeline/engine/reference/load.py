"""Load a checkpoint for transformers' own generation: any text network that it knows, in any form that it reads."""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from pipeline.engine.kernels.packages import check_packages
from pipeline.engine.network.forms import Forms
from pipeline.engine.network.load import in_fewer_bits, stop_ids_of, with_special_tokens
from pipeline.preprocess.files import load_generation_config
from pipeline.preprocess.pixels import PixelScale, read_scale
from pipeline.weights.network import quantization_of, without_wishes
from pipeline.weights.proof import check_loaded
from schemas.engine import EngineSettings
from schemas.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceModel:
    """transformers' network with what asking it needs; its parts may be on several devices."""

    network: LlavaNextForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    scale: PixelScale
    end_ids: tuple[int, ...]  # of the checkpoint
    stop_ids: tuple[int, ...]  # those, and the special tokens that a job's stop strings name
    num_tokens: int  # embeddings from here on are padding of the table
    forms: Forms

    @property
    def device(self) -> torch.device:
        """Return the device that inputs are put on."""
        return self.network.device


def load_reference(model: str, settings: EngineSettings) -> ReferenceModel:
    """Load a hub id or a local folder: safetensors only, no remote code; raise Refused for what is no LLaVA-NeXT."""
    check_packages(settings)
    config = AutoConfig.from_pretrained(model, revision=settings.revision, trust_remote_code=False)
    check_reference(config, settings, model)
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        model,
        config=without_wishes(config),
        revision=settings.revision,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=getattr(torch, settings.dtype),
        attn_implementation=settings.attention,
        ignore_mismatched_sizes=True,  # the report is checked instead: it names them all
        output_loading_info=True,
        device_map="auto" if settings.num_devices > 1 else settings.device,
        **in_fewer_bits(settings),
    )
    network, report = cast(tuple[LlavaNextForConditionalGeneration, dict[str, Any]], loaded)
    check_loaded(report, config, model)
    network.requires_grad_(False).eval()
    processor = AutoProcessor.from_pretrained(model, revision=settings.revision, trust_remote_code=False, backend="pil")
    tokenizer = processor.tokenizer
    network.generation_config = load_generation_config(model, settings.revision)
    end_ids = stop_ids_of(network, tokenizer, ())
    network.generation_config = GenerationConfig()  # `generate` would fill in what the settings do not ask
    num_tokens = min(max(tokenizer.get_vocab().values()) + 1, config.get_text_config().vocab_size)
    stop_ids = with_special_tokens(end_ids, tokenizer, settings.sampling.stop)
    return ReferenceModel(
        network=network,
        tokenizer=tokenizer,
        scale=read_scale(processor.image_processor),
        end_ids=end_ids,
        stop_ids=stop_ids,
        num_tokens=num_tokens,
        forms=Forms(tokenizer, stop_ids, num_tokens),
    )


def stopping_at(model: ReferenceModel, stop: tuple[str, ...]) -> ReferenceModel:
    """Return the same weights with other strings that end an answer."""
    stop_ids = with_special_tokens(model.end_ids, model.tokenizer, stop)
    if stop_ids == model.stop_ids:
        return model
    return replace(model, stop_ids=stop_ids, forms=Forms(model.tokenizer, stop_ids, model.num_tokens))


def check_reference(config: PreTrainedConfig, settings: EngineSettings, model: str) -> None:
    """Raise Refused for settings that transformers' generation cannot follow."""
    if config.model_type != "llava_next":
        raise Refused(f"model must be a LLaVA-NeXT checkpoint (llava_next), {model!r} is {config.model_type!r}")
    if settings.quantize == "fp8":
        raise Refused("quantize 'fp8' is of our own engine: with --engine transformers use 8bit or 4bit")
    if settings.kv_cache_dtype is not None:
        raise Refused(f"kv_cache_dtype {settings.kv_cache_dtype!r} is of our own engine: leave it out")
    if settings.quantize and quantization_of(config):
        raise Refused(f"quantize must be left out, {model!r} is quantised already")
    if settings.adapter is not None:
        raise Refused("adapter must be merged into the model's files for --engine transformers, it is not merged here")
