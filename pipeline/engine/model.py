"""The checkpoint in memory: transformers' network, its tokenizer, and the few numbers the engine takes from them."""

from dataclasses import dataclass
from typing import cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils.import_utils import is_flash_attn_2_available

from pipeline.engine.decoder import Decoder
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
        return self.network.device


def load_model(model: str, settings: EngineSettings) -> LoadedModel:
    """Load a hub id or a local folder: safetensors only, no remote code."""
    _check_settings(settings)
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
    )
    network = cast(LlavaNextForConditionalGeneration, loaded)
    # The backend is named because the default follows what is installed; only its mean and std are used.
    processor = AutoProcessor.from_pretrained(model, revision=settings.revision, trust_remote_code=False, backend="pil")
    network.requires_grad_(False).eval().to(settings.device)
    return make_ready(network, processor, settings)


def make_ready(
    network: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor, settings: EngineSettings
) -> LoadedModel:
    """A network on its device, with weights of whatever origin, as the engine runs it."""
    tokenizer, images = processor.tokenizer, processor.image_processor
    decoder = Decoder(network)
    if settings.quantize == "fp8":
        decoder.quantise()
    return LoadedModel(
        network=network,
        decoder=decoder,
        vision=Vision(network, images.image_mean, images.image_std),
        tokenizer=tokenizer,
        image_token_id=network.config.image_token_id,
        stop_ids=_stop_ids(network, tokenizer, settings.sampling.stop),
        num_tokens=max(tokenizer.get_vocab().values()) + 1,
    )


def _check_settings(settings: EngineSettings) -> None:
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device must exist on this machine, which has no CUDA device, got {settings.device!r}")
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
