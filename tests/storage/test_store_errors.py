"""What a client raises names its URL, keeps its kind, and passes where it would have passed."""

import errno

import pytest

from pipeline.storage.backoff import is_transient
from pipeline.storage.store_errors import store_errors

URL = "s3://b/a.jpg"


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        pytest.param(PermissionError("Forbidden"), errno.EACCES, id="forbidden"),
        pytest.param(FileNotFoundError("The specified bucket does not exist"), errno.ENOENT, id="no bucket"),
        pytest.param(FileExistsError("b/a.jpg"), errno.EEXIST, id="there already"),
        pytest.param(OSError(errno.EBUSY, "Please reduce your request rate."), errno.EBUSY, id="busy"),
        pytest.param(TimeoutError(), errno.ETIMEDOUT, id="late"),
        pytest.param(OSError("no reason"), errno.EIO, id="anything else"),
    ],
)
def test_an_error_without_its_url_gets_it_and_stays_what_it_was(raised: OSError, number: int) -> None:
    with pytest.raises(type(raised), match=URL) as caught, store_errors(URL):
        raise raised
    assert (caught.value.errno, caught.value.__cause__) == (number, raised)
    assert is_transient(caught.value) == is_transient(raised)


@pytest.mark.parametrize("name", ["NoCredentialsError", "ProfileNotFound"])
def test_keys_that_are_not_there_are_no_permission(name: str) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    raised = getattr(exceptions, name)(profile="work")
    with pytest.raises(PermissionError, match=f"{URL}: {name}"), store_errors(URL):
        raise raised


def test_an_error_that_names_its_url_is_left_alone() -> None:
    said = PermissionError(f"{URL}: Forbidden")
    with pytest.raises(PermissionError) as caught, store_errors(URL):
        raise said
    assert caught.value is said


def test_what_a_client_cannot_do_is_an_os_error() -> None:
    with pytest.raises(OSError, match=f"{URL}: not this"), store_errors(URL):
        raise NotImplementedError("not this")
