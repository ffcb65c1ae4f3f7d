"""Options: how stores are reached, in words that are no secret: `s3.endpoint_url=...`, `s3.profile=NAME`.

They go where fsspec's own configuration goes, the environment (`FSSPEC_S3`, ...), so that what this process starts has
them too. Keys do not: they are in the environment or in a store's own files, of which a profile is a part.
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

from fsspec.config import conf, set_conf_env

from schemas.errors import Refused
from schemas.wording import credentials_in, did_you_mean, redacted

STORES = {"s3": ("s3", "s3a"), "gs": ("gs", "gcs"), "az": ("az", "abfs"), "hf": ("hf",), "http": ("http", "https")}
_GIVEN = "LLAVA_BATCH_STORAGE_OPTIONS"
_FORM = re.compile(r"([a-z0-9]+)\.([a-z_][a-z0-9_]*)=(.*)", re.DOTALL)
# Of these and of what they are part of, the value is a key: `client_secret`, `account_key`, `sas_token`, ...
_SECRET = re.compile(r"key|secret|token|passw|credential|connection_string|auth|headers")
_NO_SECRETS = {("gs", "token"): ("anon", "cloud", "google_default")}  # what else may be said there is a key


def use_options(options: Sequence[str]) -> None:
    """Have this process and those that it starts reach stores by these options; raises Refused for what is none."""
    added: dict[str, dict[str, Any]] = {}
    for option in options:
        store, name, value = check_option(option)
        for protocol in STORES[store]:
            added.setdefault(protocol, {})[name] = value
    for protocol, own in added.items():
        conf.setdefault(protocol, {}).update(own)
        os.environ[_variable(protocol)] = json.dumps({**_in_environment(protocol), **own})
    os.environ[_GIVEN] = json.dumps(added)


def given_options() -> dict[str, str]:
    """Return the variables that give processes on other machines what `use_options` was given, and nothing else."""
    given = json.loads(os.environ.get(_GIVEN, "{}"))
    return {_variable(protocol): json.dumps(own) for protocol, own in given.items()}


def check_option(option: str) -> tuple[str, str, object]:
    """Return the store, the name and the value of an option; raise Refused for what is none, or holds a key."""
    shown = redacted(option.partition("=")[0])
    found = _FORM.fullmatch(option)
    if found is None:
        raise Refused(f"--storage-option must be STORE.NAME=VALUE, as s3.endpoint_url=http://host:9000, got {shown}")
    store, name, text = found.groups()
    if store not in STORES:
        near = did_you_mean(store, STORES)
        raise Refused(f"--storage-option {shown} must begin with one of {', '.join(STORES)}{near}")
    if _SECRET.search(name) and text not in _NO_SECRETS.get((store, name), ()):
        raise Refused(
            f"--storage-option {shown} must not hold a key, as commands are seen and kept: put keys in the "
            "environment or in a profile (s3.profile=NAME), see docs/stores.md"
        )
    if (secret := credentials_in(text)) is not None:
        raise Refused(f"--storage-option {shown} must not hold {secret}")
    value = _value(text)
    if isinstance(value, dict | list) and _SECRET.search(text.lower()):
        raise Refused(f"--storage-option {shown} must not hold a key, see docs/stores.md")
    return store, name, value


def _value(text: str) -> object:
    """Return what a text says in JSON (true, 3, {...}), else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _variable(protocol: str) -> str:
    return f"FSSPEC_{protocol.upper()}"


def _in_environment(protocol: str) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    set_conf_env(found)
    return found.get(protocol, {})
