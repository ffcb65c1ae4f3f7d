"""Store errors: what the stores' clients raise, as OSErrors that name the URL, as those of a disk name the path."""

import contextlib
import errno
import sys
from collections.abc import Iterator

from schemas.wording import one_line

_NUMBERS = (  # of errors that clients raise without one
    (PermissionError, errno.EACCES),
    (FileNotFoundError, errno.ENOENT),
    (FileExistsError, errno.EEXIST),
    (TimeoutError, errno.ETIMEDOUT),
)
# What clients raise that find no keys on this machine, or half of them: no other try finds them either.
_KEYLESS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")


@contextlib.contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Convert what the stores' clients raise besides OSError (no keys, no such host) into OSError; name the URL."""
    try:
        yield
    except NotImplementedError as error:  # what a client cannot do at all, as list the repositories of the hub
        raise OSError(f"{url}: {error}") from error
    except OSError as error:
        if type(error).__module__ != "builtins" or url in str(error):
            raise
        raise _named(url, error) from error
    except _client_errors() as error:
        refused = getattr(error, "status_code", getattr(error, "code", None)) in (401, 403)
        kind = PermissionError if refused or type(error).__name__ in _KEYLESS else OSError
        raise kind(f"{url}: {type(error).__name__}: {one_line(error)}") from error


def _named(url: str, error: OSError) -> OSError:
    """Return the error again with its URL: clients leave it out, as in a bare `Forbidden`."""
    number = error.errno or next((number for kind, number in _NUMBERS if isinstance(error, kind)), errno.EIO)
    said = error.strerror or one_line(error)
    return type(error)(number, said, url)


def _client_errors() -> tuple[type[Exception], ...]:
    """Return the base errors of those clients that are loaded; one that is not cannot have raised."""
    bases = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        *((client, "HTTPError") for client in ("httpx", "httpx2")),  # of one huggingface_hub or another
        ("google.auth.exceptions", "GoogleAuthError"),
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
    )
    return tuple(getattr(sys.modules[module], name) for module, name in bases if module in sys.modules)
