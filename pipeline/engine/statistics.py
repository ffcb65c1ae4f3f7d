"""Counters of the engine, and the record that is made of them."""

from dataclasses import asdict, dataclass

from pipeline.engine.arithmetic import Arithmetic
from schemas.engine import EngineStatistics


@dataclass(slots=True, kw_only=True)
class Counters:
    """Counts of scheduler and runner: those of EngineStatistics, and two more that its operations follow from."""

    num_rows: int = 0
    num_images: int = 0
    num_tiles: int = 0
    num_padded_tiles: int = 0
    num_prompt_tokens: int = 0
    num_prefilled_tokens: int = 0
    num_prefix_tokens: int = 0
    num_padded_tokens: int = 0
    num_answer_tokens: int = 0
    num_prefills: int = 0
    num_decode_steps: int = 0
    num_slot_steps: int = 0
    num_busy_slot_steps: int = 0
    num_retries: int = 0
    num_out_of_memory: int = 0
    num_first_tokens: int = 0  # sampled behind prompts
    num_attention_pairs: int = 0  # tokens, and those that they attend to, themselves included


def make_statistics(
    counters: Counters, seconds: dict[str, float], waiting_s: float, work: Arithmetic, product_rate: float | None
) -> EngineStatistics:
    """Make the record of what was counted; `seconds` are a stopwatch's, `product_rate` is operations a second."""
    counts = asdict(counters)
    num_first_tokens, num_pairs = counts.pop("num_first_tokens"), counts.pop("num_attention_pairs")
    return EngineStatistics(
        **counts,
        vision_s=seconds.get("vision", 0.0),
        prefill_s=seconds.get("prefill", 0.0),
        decode_s=seconds.get("decode", 0.0),
        waiting_s=waiting_s,
        teraflop=work.teraflop(
            tiles=counters.num_tiles,
            tokens=counters.num_prefilled_tokens + counters.num_busy_slot_steps,
            pairs=num_pairs,
            sampled=num_first_tokens + counters.num_busy_slot_steps,
        ),
        possible_teraflop=(product_rate or 0.0) * sum(seconds.values()) / 1e12,
    )
