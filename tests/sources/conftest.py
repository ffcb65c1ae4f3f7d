from collections.abc import Iterator

import pytest

from tests.web_server import Web, serving


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as server:
        yield server
