"""The engine's benchmarks run to their last line, on a tiny shape without a GPU."""

import json

from benchmarks import products
from benchmarks.engine import main

TINY = "--shape tiny --device cpu --dtype float32 --images 6 --rounds 1 --workers 1 --compare-transformers 3"


def test_the_benchmark_measures_every_workload_and_ends_with_json(capsys) -> None:
    main([*TINY.split(), "--workload", "caption", "questions"])
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads(lines[-1])
    assert [result["workload"] for result in summary["results"]] == ["caption", "questions"]
    assert all(result["images_per_s"] > 0 and 0 < result["share"] < 1 for result in summary["results"])
    assert summary["results"][1]["answers_per_s"] == 4 * summary["results"][1]["images_per_s"]
    assert summary["transformers_images_per_s"] > 0


def test_the_rate_of_products_is_measured_for_every_size(capsys) -> None:
    products.main(["--shape", "tiny", "--device", "cpu", "--tokens", "32", "64", "--seconds", "0.1", "--rounds", "2"])
    rates = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [rate["tokens"] for rate in rates] == [32, 64]
    for rate in rates:
        alone = [rate[name] for name in products.NAMES]
        assert 0 < min(alone) <= rate["together"] <= max(alone)
