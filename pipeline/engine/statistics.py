"""What the engine's parts have counted, as one record."""

from collections import Counter

from pipeline.engine.arithmetic import Arithmetic
from pipeline.engine.runner import Runner
from schemas.engine import EngineStatistics


def statistics(
    counts: Counter[str], runner: Runner, waiting_s: float, work: Arithmetic, product_rate: float | None
) -> EngineStatistics:
    """The statistics of a scheduler's and a runner's counts so far; `product_rate` is operations a second."""
    ran, seconds = runner.counts, runner.stopwatch.seconds()
    busy = counts["busy slots"]
    return EngineStatistics(
        num_rows=counts["rows"],
        num_images=ran["images"],
        num_tiles=ran["tiles"],
        num_tile_places=ran["tile places"],
        num_prompt_tokens=counts["prompt tokens"],
        num_prefilled_tokens=ran["tokens"],
        num_prefix_tokens=ran["prefix tokens"],
        num_prefill_places=ran["token places"],
        num_answer_tokens=counts["answer tokens"],
        num_prefills=ran["prefills"],
        num_decode_steps=ran["decode steps"],
        num_slot_steps=ran["slots"],
        num_busy_slot_steps=busy,
        num_second_tries=counts["second tries"],
        num_out_of_memory=counts["out of memory"] + ran["out of memory"],
        vision_s=seconds.get("vision", 0.0),
        prefill_s=seconds.get("prefill", 0.0),
        decode_s=seconds.get("decode", 0.0),
        waiting_s=waiting_s,
        teraflop=work.teraflop(
            tiles=ran["tiles"],
            tokens=ran["tokens"] + busy,
            pairs=ran["pairs"] + counts["pairs"],
            drawn=ran["drawn"] + busy,
        ),
        possible_teraflop=(product_rate or 0.0) * sum(seconds.values()) / 1e12,
    )
