"""One Ray a session, started after the S3 server so that its workers find the store in their environment."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

pytest_plugins = ["tests.object_store"]


@pytest.fixture(scope="session")
def cluster(store: str) -> Iterator[None]:
    """A local Ray of four logical CPUs; jobs run in this process join it."""
    ray.init(address="local", num_cpus=4, object_store_memory=300 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes a module that can be found until the test ends, empty, in a folder of its own."""
    made: list[str] = []

    def make(module: str) -> None:
        folder = tmp_path.joinpath("installed", *module.split("."))
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path / "installed")
        made.append(module)

    yield make
    for module in made:
        while module:  # what it is in was imported to find it
            sys.modules.pop(module, None)
            module = module.rpartition(".")[0]
