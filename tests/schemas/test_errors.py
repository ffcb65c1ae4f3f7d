"""A row's error says what to do; what it never holds is a secret, a megabyte or half a letter."""

import pytest

from schemas.errors import MOST, Failure, RowError


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        pytest.param("http://me:SECRET@h/x failed", "http://***@h/x failed", id="a secret"),
        pytest.param("a" * 10**6, "a" * MOST + "...", id="a megabyte"),
        pytest.param("a\udce9", r"a\udce9", id="no text"),
    ],
)
def test_a_message_is_made_fit_where_it_is_made(said: str, kept: str) -> None:
    error = RowError("fetch", "FetchFailed", said)
    assert error.failure.message == kept
    assert str(error) == f"fetch: FetchFailed: {kept}"
    assert Failure(stage="fetch", type="FetchFailed", message=kept) == error.failure
