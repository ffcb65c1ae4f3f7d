"""One Ray a session, started after the S3 server so that its workers find the store in their environment."""

from collections.abc import Iterator

import pytest
import ray

pytest_plugins = ["tests.object_store"]


@pytest.fixture(scope="session")
def cluster(store: str) -> Iterator[None]:
    """A local Ray of four logical CPUs; jobs run in this process join it."""
    ray.init(address="local", num_cpus=4, object_store_memory=300 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
