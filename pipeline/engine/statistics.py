"""What the engine's parts have counted, as one record."""

from collections import Counter

from pipeline.engine.runner import Runner
from pipeline.engine.sizes import Sizes
from schemas.engine import EngineStatistics


def statistics(counts: Counter[str], runner: Runner, sizes: Sizes, waiting_s: float) -> EngineStatistics:
    """The statistics of a scheduler's and a runner's counts so far."""
    ran, seconds = runner.counts, runner.stopwatch.seconds()
    return EngineStatistics(
        num_rows=counts["rows"],
        num_images=ran["images"],
        num_prompt_tokens=counts["prompt tokens"],
        num_answer_tokens=counts["answer tokens"],
        num_prefills=ran["prefills"],
        num_decode_steps=ran["decode steps"],
        num_out_of_memory=counts["out of memory"] + ran["out of memory"],
        prefill_padding=_missing(ran["tokens"], ran["token places"]),
        tile_padding=_missing(ran["tiles"], ran["tile places"]),
        slot_use=counts["slots at work"] / max(1, ran["decode steps"] * sizes.slots),
        vision_s=seconds.get("vision", 0.0),
        prefill_s=seconds.get("prefill", 0.0),
        decode_s=seconds.get("decode", 0.0),
        waiting_s=waiting_s,
    )


def _missing(used: int, places: int) -> float:
    return 1 - used / places if places else 0.0
