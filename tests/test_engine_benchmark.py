"""The engine's benchmark runs from JPEG bytes to its last line, on a tiny shape without a GPU."""

import json

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
