import pytest

from tests.engine.oracle import Oracle, load_oracle


@pytest.fixture(scope="session", params=["llama", "mistral", "qwen2"])
def each_oracle(request) -> Oracle:
    """One oracle for every text backbone."""
    return load_oracle(request.param)


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return load_oracle("llama")
