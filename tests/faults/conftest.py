"""The seed of all random faults: another one every time, printed first; LLAVA_BATCH_SEED=N repeats it."""

import os
import random
import secrets

import pytest

SEED = int(os.environ.get("LLAVA_BATCH_SEED") or secrets.randbelow(10**6))


def pytest_report_header(config: pytest.Config) -> str:
    return f"random faults: LLAVA_BATCH_SEED={SEED}"


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that follow from the seed and the name of the test."""
    return random.Random(f"{SEED} {request.node.name}")
