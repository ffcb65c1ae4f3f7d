"""Generation: what a checkpoint's own generation config asks of its answers beside their end, which no job follows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from schemas.job import JobSettings

if TYPE_CHECKING:
    from transformers import GenerationConfig

# Tokens and lengths that are read elsewhere or that a job sets itself, and what changes how fast a text is generated
# or what is returned with it, never the text.
_HARMLESS = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"}
    | {"max_length", "max_new_tokens", "transformers_version", "renormalize_logits", "remove_invalid_values"}
    | {"use_cache", "cache_implementation", "cache_config", "max_cache_len", "return_legacy_cache", "low_memory"}
    | {"output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"}
    | {"compile_config", "disable_compile", "prefill_chunk_size", "use_mtp", "speculation_type", "is_assistant"}
    | {"num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"}
    | {"assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"}
    | {"prompt_lookup_num_tokens", "max_matching_ngram_size"}
)
_OF_DRAWING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OF_BEAMS = ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty")
# At 1 these leave an answer as it is, where others do so at 0.
_FACTORS = frozenset(
    {"temperature", "top_p", "typical_p", "repetition_penalty", "encoder_repetition_penalty", "length_penalty"}
    | {"num_beams", "num_beam_groups", "num_return_sequences", "guidance_scale"}
)
_FLAGS = ("temperature", "top_p", "top_k", "repetition_penalty", "min_new_tokens")  # by the same names


def describe_unfollowed(generation: "GenerationConfig", settings: JobSettings) -> str | None:
    """Describe what transformers' `generate` would do to an answer by a checkpoint's generation config and the job does
    not, as its own settings say otherwise; None where there is nothing."""
    found = dict(_unfollowed(generation, settings))
    if not found:
        return None
    asked = ", ".join(f"{name} {value!r}" for name, value in found.items())
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in found if name in _FLAGS)
    return f"{asked}, which this job does not follow" + (f": see {flags}" if flags else "")


def _unfollowed(generation: "GenerationConfig", settings: JobSettings) -> Iterator[tuple[str, Any]]:
    from transformers import GenerationConfig

    ignored = {*_HARMLESS}
    ignored |= set() if generation.do_sample else {*_OF_DRAWING}
    ignored |= set() if (generation.num_beams or 1) > 1 else {*_OF_BEAMS}
    for name in vars(GenerationConfig()):  # transformers passes over others as well
        value = getattr(generation, name, None)
        if name.startswith("_") or name in ignored or not value or (name in _FACTORS and value == 1):
            continue
        if name in _FLAGS and value == getattr(settings, name):
            continue
        if name == "do_sample" and settings.temperature > 0:
            continue
        yield name, value
