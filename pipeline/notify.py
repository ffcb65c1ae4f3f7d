"""Notify: the last event of a run to a URL of the user's, when the command ends."""

import json
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from pipeline.run_folder.events import last_event
from schemas.errors import Refused
from schemas.wording import one_line, redacted, shortened

_WAIT_S = 10.0
_REFUSED = 2  # the exit status of what was found before anything started
_GRAIN = timedelta(milliseconds=1)  # of an event's time


def check_url(url: str) -> None:
    """Raise Refused for what is no http(s) URL; its path may be a secret, and is not said."""
    scheme = url.partition("://")[0] if "://" in url else "no"
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as error:  # which names what may be a password
        raise Refused("--notify must be an http:// or https:// URL, got one whose host or port is none") from error
    if scheme.lower() not in ("http", "https") or not is_whole:
        raise Refused(f"--notify must be an http:// or https:// URL, got one of {shortened(scheme, 20)!r} scheme")
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise Refused("--notify must be a URL of visible ASCII characters, got one with others")


def notify(url: str, folder: str, status: int, began: datetime) -> bool:
    """Post the last event since the command began, with its exit status; say where that cannot be done, and go on."""
    event = {**_since(began, folder, status), "output": redacted(folder), "exit_status": status}
    host = urlsplit(url).hostname
    try:
        _post(url, event)
    except (OSError, HTTPException, ValueError) as error:
        why = one_line(error).replace(url, "***")
        sys.stderr.write(f"--notify: {host} was not told: {type(error).__name__}: {why}\n")
        return False
    return True


def _since(began: datetime, folder: str, status: int) -> dict[str, Any]:
    """Return the run's newest event; where it has none since, what the exit status says."""
    event = None if status == _REFUSED else last_event(folder)  # a folder that is refused may be none at all
    if event is not None and _time_of(event) >= began - _GRAIN:
        return event
    return {"event": {0: "finished", _REFUSED: "refused"}.get(status, "failed")}


def _time_of(event: dict[str, Any]) -> datetime:
    try:
        return datetime.fromisoformat(str(event.get("time")))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def _post(url: str, event: dict[str, Any]) -> None:
    body = json.dumps({"text": describe(event), **event}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=_WAIT_S) as response:
        response.read(1)


def describe(event: dict[str, Any]) -> str:
    """Return the line that a chat shows: `text` is what Slack's and Mattermost's hooks look for."""
    counts = ", ".join(f"{event[name]:,} {name}" for name in ("answers", "errors") if isinstance(event.get(name), int))
    return f"llava-batch {event['event']}: {event['output']}" + (f" ({counts})" if counts else "")
