"""Load a checkpoint: transformers' network, its tokenizer, and the few numbers that the engine needs of them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from pipeline.engine.kernels.packages import check_packages
from pipeline.engine.network.card import check_cards
from pipeline.engine.network.decoder import Decoder, decoder_shape
from pipeline.engine.network.forms import Forms
from pipeline.engine.network.memory import check_memory
from pipeline.engine.network.partition import device_map, devices_of, move_to_devices, partition
from pipeline.engine.network.vision import Vision
from pipeline.preprocess.facts import end_token_ids
from pipeline.preprocess.files import load_generation_config
from pipeline.preprocess.pixels import read_scale
from pipeline.weights.merging import merged_tensors
from pipeline.weights.network import quantization_of, without_wishes
from pipeline.weights.proof import check_loaded
from schemas.engine import EngineSettings
from schemas.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A LLaVA-NeXT checkpoint, ready to run on its device."""

    network: LlavaNextForConditionalGeneration  # shares its weights with decoder and vision
    decoder: Decoder
    vision: Vision
    tokenizer: PreTrainedTokenizerFast
    image_token_id: int
    stop_ids: tuple[int, ...]  # any of them ends an answer
    num_tokens: int  # embeddings from here on are padding of the table, never trained: their tokens are never sampled
    forms: Forms

    @property
    def device(self) -> torch.device:
        """Return the device that images and tokens are put on; the first of several."""
        return self.network.device

    @property
    def compilable(self) -> bool:
        """Tell whether torch.compile helps the blocks: layers of other packages are called one by one either way."""
        return not getattr(self.network, "is_quantized", False)

    @property
    def capturable(self) -> bool:
        """Tell whether the parts of a decode step can be CUDA graphs.

        bitsandbytes' 8 bits ask the host in every product which columns are too large for them.
        """
        return not getattr(self.network, "is_loaded_in_8bit", False)


def load_model(model: str, settings: EngineSettings) -> LoadedModel:
    """Load a hub id or a local folder: safetensors only, no remote code."""
    network = load_network(model, settings)
    # The backend is named because the default follows what is installed; only its mean and std are used.
    processor = AutoProcessor.from_pretrained(model, revision=settings.revision, trust_remote_code=False, backend="pil")
    return make_ready(network, processor, settings)


def load_network(model: str, settings: EngineSettings) -> LlavaNextForConditionalGeneration:
    """Load transformers' network alone, checked as a job checks it, on its devices."""
    check_packages(settings)
    devices = devices_of(settings)
    check_cards(settings, devices)
    config = AutoConfig.from_pretrained(model, revision=settings.revision, trust_remote_code=False)
    if config.model_type != "llava_next":
        raise Refused(f"model must be a LLaVA-NeXT checkpoint (llava_next), {model!r} is {config.model_type!r}")
    if settings.quantize and (stored := quantization_of(config)):
        raise Refused(f"quantize must be left out, {model!r} is quantised already ({_method(stored)})")
    if devices[0].type == "cuda":
        check_memory(config, settings, min(torch.cuda.mem_get_info(device)[0] for device in devices))
    network = _load_network(model, without_wishes(config), devices, settings)
    if getattr(network, "is_loaded_in_8bit", False):  # it would warn at every product that it rounds to float16
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    network.requires_grad_(False).eval()
    return network


def _load_network(
    model: str, config: PreTrainedConfig, devices: Sequence[torch.device], settings: EngineSettings
) -> LlavaNextForConditionalGeneration:
    """Load the network, an adapter merged into its weights; raises Refused where any weight would be made up."""
    told = {
        "use_safetensors": True,
        "dtype": getattr(torch, settings.dtype),
        "attn_implementation": settings.attention,
        "ignore_mismatched_sizes": True,  # the report is checked instead: it names them all
        "output_loading_info": True,
        **_placed(config, devices, settings),
    }
    loaded: Any
    if settings.adapter is None:
        hub = {"revision": settings.revision, "trust_remote_code": False}
        loaded = AutoModelForImageTextToText.from_pretrained(model, config=config, **hub, **told)
    else:
        with merged_tensors(model, settings.revision, config, settings.adapter) as tensors:
            loaded = LlavaNextForConditionalGeneration.from_pretrained(None, config=config, state_dict=tensors, **told)
    network, report = cast(tuple[LlavaNextForConditionalGeneration, dict[str, Any]], loaded)
    check_loaded(report, config, model)
    network.generation_config = load_generation_config(model, settings.revision)
    return network


def make_ready(
    network: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor, settings: EngineSettings
) -> LoadedModel:
    """Prepare a network with weights of any origin: on its devices, as the engine runs it."""
    tokenizer, images = processor.tokenizer, processor.image_processor
    decoder = Decoder(network, devices_of(settings), fp8=settings.quantize == "fp8")
    move_to_devices(network, decoder.parts)
    stop_ids = stop_ids_of(network, tokenizer, settings.sampling.stop)
    num_tokens = min(max(tokenizer.get_vocab().values()) + 1, network.config.get_text_config().vocab_size)
    return LoadedModel(
        network=network,
        decoder=decoder,
        vision=Vision(network, read_scale(images), settings.image_tokens),
        tokenizer=tokenizer,
        image_token_id=network.config.image_token_id,
        stop_ids=stop_ids,
        num_tokens=num_tokens,
        forms=Forms(tokenizer, stop_ids, num_tokens),
    )


def stopping_at(model: LoadedModel, stop: tuple[str, ...]) -> LoadedModel:
    """Return the same weights with other strings that end an answer; answers with a form may end in them too."""
    stop_ids = stop_ids_of(model.network, model.tokenizer, stop)
    if stop_ids == model.stop_ids:
        return model
    return replace(model, stop_ids=stop_ids, forms=Forms(model.tokenizer, stop_ids, model.num_tokens))


def _method(stored: object) -> str:
    found = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    return str(getattr(found, "value", found))


def _placed(config: PreTrainedConfig, devices: Sequence[torch.device], settings: EngineSettings) -> dict[str, Any]:
    """Return what tells transformers where each weight goes as it is read, and in how many bits.

    Weights of our own 8-bit products wait on the CPU, as their card may not hold all of them.
    """
    if settings.quantize == "fp8":
        return {}
    placed = {"device_map": device_map(partition(decoder_shape(config.get_text_config()).layers, devices))}
    return placed | in_fewer_bits(settings)


def in_fewer_bits(settings: EngineSettings) -> dict[str, Any]:
    """Return what tells transformers to load the decoder's layers in bitsandbytes' 8 or 4 bits, if it is asked for."""
    if settings.quantize not in ("8bit", "4bit"):
        return {}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_8bit=settings.quantize == "8bit",
            load_in_4bit=settings.quantize == "4bit",
            # Whole names from the top: shorter ones match nothing, and the default leaves out the head alone.
            llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
        )
    }


def stop_ids_of(
    network: LlavaNextForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, stop: tuple[str, ...]
) -> tuple[int, ...]:
    """Return the checkpoint's end tokens, and every stop string that is a special token: its text is never decoded."""
    stated = end_token_ids(network.generation_config, network.config.get_text_config())
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    ids = with_special_tokens(tuple(stated or own), tokenizer, stop)
    if not ids:
        raise Refused("the checkpoint must name an eos_token_id (generation_config.json or config.json), none found")
    return ids


def with_special_tokens(
    end_ids: tuple[int, ...], tokenizer: PreTrainedTokenizerFast, stop: tuple[str, ...]
) -> tuple[int, ...]:
    """Return end tokens, and those stop strings that are special tokens."""
    added = tokenizer.added_tokens_decoder.items()
    named = [token_id for token_id, token in added if token.special and token.content in stop]
    return tuple(dict.fromkeys([*end_ids, *named]))
