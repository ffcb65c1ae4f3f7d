"""The benchmark of large networks runs on a tiny one without a GPU."""

import json

from benchmarks.placement import main, table


def test_a_case_is_measured_over_its_devices(capsys) -> None:
    main(["tiny:2:fp8", "--device", "cpu", "--dtype", "float32", "--images", "2"])
    (measured,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (measured["case"]["num_devices"], measured["case"]["quantize"]) == (2, "fp8")
    assert measured["images_per_s"] > 0 < measured["answer_tokens_per_s"]
    head, line = table([measured])
    assert line.split()[:3] == ["tiny", "2", "fp8"]
    assert head.startswith("shape")
