"""The checkpoint in memory: transformers' network, its tokenizer, and the few numbers the engine takes from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils.import_utils import is_flash_attn_2_available

from pipeline.engine.decoder import Decoder, decoder_shape
from pipeline.engine.spread import device_map, devices_of, place, spread
from pipeline.engine.vision import Vision
from schemas.engine import EngineSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A LLaVA-NeXT checkpoint, ready to run on its device."""

    network: LlavaNextForConditionalGeneration  # shares its weights with decoder and vision
    decoder: Decoder
    vision: Vision
    tokenizer: PreTrainedTokenizerFast
    image_token_id: int
    stop_ids: tuple[int, ...]  # any of them ends an answer
    num_tokens: int  # embeddings from here on are padding of the table, never trained: their tokens are never drawn

    @property
    def device(self) -> torch.device:
        """Where images and tokens come in; the first of several."""
        return self.network.device

    @property
    def capturable(self) -> bool:
        """Whether a decode step can be one CUDA graph."""
        return len(self.decoder.parts) == 1


def load_model(model: str, settings: EngineSettings) -> LoadedModel:
    """Load a hub id or a local folder: safetensors only, no remote code."""
    _check_settings(settings)
    devices = devices_of(settings)
    config = AutoConfig.from_pretrained(model, revision=settings.revision, trust_remote_code=False)
    if config.model_type != "llava_next":
        raise ValueError(f"model must be a LLaVA-NeXT checkpoint (llava_next), {model!r} is {config.model_type!r}")
    loaded = AutoModelForImageTextToText.from_pretrained(
        model,
        revision=settings.revision,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=getattr(torch, settings.dtype),
        attn_implementation=settings.attention,
        **_placed(config, devices, settings),
    )
    network = cast(LlavaNextForConditionalGeneration, loaded)
    # The backend is named because the default follows what is installed; only its mean and std are used.
    processor = AutoProcessor.from_pretrained(model, revision=settings.revision, trust_remote_code=False, backend="pil")
    network.requires_grad_(False).eval()
    return make_ready(network, processor, settings)


def make_ready(
    network: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor, settings: EngineSettings
) -> LoadedModel:
    """A network with weights of whatever origin, on its devices and as the engine runs it."""
    tokenizer, images = processor.tokenizer, processor.image_processor
    decoder = Decoder(network, devices_of(settings), fp8=settings.quantize == "fp8")
    place(network, decoder.parts)
    return LoadedModel(
        network=network,
        decoder=decoder,
        vision=Vision(network, images.image_mean, images.image_std),
        tokenizer=tokenizer,
        image_token_id=network.config.image_token_id,
        stop_ids=_stop_ids(network, tokenizer, settings.sampling.stop),
        num_tokens=max(tokenizer.get_vocab().values()) + 1,
    )


def _placed(config: PreTrainedConfig, devices: Sequence[torch.device], settings: EngineSettings) -> dict[str, Any]:
    """How transformers is told where each weight goes as it is read. Those that our own 8-bit products are made of wait
    on the CPU, as their card may not hold all of them."""
    if settings.quantize == "fp8" or (len(devices) == 1 and devices[0].type == "cpu"):
        return {}
    return {"device_map": device_map(spread(decoder_shape(config.get_text_config()).layers, devices))}


def _check_settings(settings: EngineSettings) -> None:
    if settings.attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError("attention must be installed, 'flash_attention_2' needs the package flash-attn; use 'sdpa'")


def _stop_ids(
    network: LlavaNextForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, stop: tuple[str, ...]
) -> tuple[int, ...]:
    """The checkpoint's end tokens, and every stop string that is one special token: its text would never be seen."""
    generation, text = network.generation_config, network.config.get_text_config()
    candidates = (generation and generation.eos_token_id, text.eos_token_id, tokenizer.eos_token_id)
    eos = cast(int | list[int], next((ids for ids in candidates if ids is not None), []))
    added = tokenizer.added_tokens_decoder.items()
    named = [token_id for token_id, token in added if token.special and token.content in stop]
    ids = [*(eos if isinstance(eos, list) else [eos]), *named]
    if not ids:
        raise ValueError("the checkpoint must name an eos_token_id (generation_config.json or config.json), none found")
    return tuple(dict.fromkeys(ids))
