"""The benchmark of large networks runs on a tiny one without a GPU, each case in a process of its own."""

import json

from benchmarks.placement import main


def test_every_case_is_measured(capsys) -> None:
    main(["tiny", "tiny:2:fp8", "--device", "cpu", "--dtype", "float32", "--images", "2"])
    printed = capsys.readouterr()
    measured = json.loads(printed.out.splitlines()[-1])
    assert [one["case"]["num_devices"] for one in measured] == [1, 2]
    assert all(one["images_per_s"] > 0 and one["answer_tokens_per_s"] > 0 for one in measured)
    assert printed.err.count("fp8") == 2  # as it is measured, and in the table
