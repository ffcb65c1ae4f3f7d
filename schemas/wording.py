"""Wording: what is wrong, in lines that name the setting, the rule and the value; no secret, no control character."""

import re
import unicodedata
from collections.abc import Callable, Collection
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_BEGINNING, _END, _WORTH_IT = 800, 200, 200  # characters of a line that are shown, and that are left out at least
GO_ON = "What is done stays; run the same command again to go on."


def describe_settings(
    error: "ValidationError", *, spell: Callable[[str], str] = str, of: str = "a job", known: Collection[str] = ()
) -> list[str]:
    """Return a line for each thing that is wrong: `limit: input should be greater than or equal to 1, got 0`.

    `spell` makes of a setting's path in the record (`benchmarks.vqav2.limit`) what people typed; `of` and `known` say
    what has no such setting, and what it has.
    """

    def describe(one: "ErrorDetails") -> str:
        rule = one["msg"].removeprefix("Value error, ")
        if not one["loc"] or rule.startswith("--"):  # a rule that names the settings it is about
            return rule
        setting = spell(".".join(map(str, one["loc"])))
        if one["type"] == "extra_forbidden":
            return f"{setting} is no setting of {of}{did_you_mean(str(one['loc'][-1]), known)}"
        if one["type"] == "missing":
            return f"{setting} is required"
        if one["type"] == "too_short" and not one["input"]:
            return f"{setting} must be given a value"
        return f"{setting}: {rule[0].lower()}{rule[1:]}, got {one['input']!r}"

    return [describe(one) for one in error.errors()]


def one_line(error: BaseException) -> str:
    """Return what went wrong without its line breaks: stores explain themselves over several lines."""
    return " ".join(str(error).split())


def printable(text: str) -> str:
    """Return `text` for a line of a terminal or log: whatever is no visible character is escaped, line breaks
    included."""
    if text.isprintable():
        return text
    return "".join(letter if _is_visible(letter) else _escaped(letter) for letter in text)


def printable_lines(text: str) -> str:
    """Return the same of every line of a text that has several of its own."""
    return "\n".join(map(printable, text.split("\n")))


def fitting_lines(text: str) -> str:
    """Return a text whose lines have their ends and lack their middle where they are long: a value of thousands of
    characters hides what is wrong with it."""
    return "\n".join(map(_fitting, text.split("\n")))


def _fitting(line: str) -> str:
    left_out = len(line) - _BEGINNING - _END
    if left_out <= _WORTH_IT:
        return line
    return f"{line[:_BEGINNING]} ... {left_out:,} characters left out ... {line[-_END:]}"


def redacted(text: str) -> str:
    """Return `text` with `***` for users, passwords, tokens and signatures of the URLs in it."""
    if "://" in text:
        text = _USER.sub("://***@", text)
    for pattern in (_QUERY, _BEARER):
        text = pattern.sub(r"\1***", text)
    return _HUB_TOKEN.sub("***", text)


def typed(path: Path) -> str:
    """Return a path for people, without secrets: of a URL that was typed in its place pathlib keeps one slash, in which
    `redacted` would see none."""
    return redacted(_ONE_SLASH.sub(r"\1://", str(path)))


def counted(number: int, noun: str) -> str:
    """Return a number with what it counts: `1 unit`, `2,000 units`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened(text: str, most: int) -> str:
    """Return `text`, secrets taken out, cut where it has more than `most` characters."""
    text = redacted(text[: 10 * most + 1000])  # before it is cut: half a secret is not found any more
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[:most]}..."


def credentials_in(url: str) -> str | None:
    """Return what a URL holds that no file may keep: `a user or password`, `a key or signature`; None for neither.

    A path of this machine may have any name; so may an object of a store, apart from its user.
    """
    scheme, slashes, rest = url.partition("://")
    if not slashes or not _SCHEME.fullmatch(scheme) or scheme.lower() in ("file", "local"):
        return None
    if _USER.match(url, len(scheme)):
        return "a user or password"
    has_query = scheme.lower() not in ("s3", "s3a", "gs", "gcs", "hf")
    return "a key or signature" if has_query and _QUERY.search(rest) else None


def lacks_bucket(url: str) -> bool:
    """Return whether a URL of a store does not say which bucket or repository, as `s3://$BUCKET/in` without BUCKET."""
    scheme, slashes, rest = url.partition("://")
    return bool(slashes) and scheme.lower() in _STORES and rest[:1] in ("", "/")


def holds_null(path: str) -> bool:
    """Return whether a path or URL has a null character, spelled as %00 in a file: URI: nothing has such a name."""
    return "\0" in path or (path[:5].lower() == "file:" and "%00" in path)


_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "hf")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
# Up to the last @ before a slash; but Azure has container@account there, the hub repository@revision. Or a password
# that has slashes, as keys of S3 do, and is no port and its path.
_USER = re.compile(
    r"://[^/?#\s'\"@:]*:[^/?#\s'\"]*@"  # user:password@
    r"|(?<!abfs)(?<!bfss)(?<!wasb)(?<!asbs)(?<!az)(?<!hf)://[^/?#\s'\"]*@"  # user@
    r"|://[^/\s@:]+:(?!\d{1,5}(?:[/?#\s]|$))[^\s@]{0,256}@"
)
_SECRETS = (
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid|key-pair-id|policy"
    r"|sig|signature|(?:access_|auth_?|api_?|id_|refresh_)?(?:token|key)|auth|passw(?:or)?d|pwd|secret|client_secret"
)
_QUERY = re.compile(rf"([?&;](?:{_SECRETS})=)[^&;\s'\"<>#]+", re.IGNORECASE)
_ONE_SLASH = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_BEARER = re.compile(r"(\b(?:bearer|basic) )[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


def _is_visible(letter: str) -> bool:
    """Return whether it prints; blanks of any width do, and the joiners that some scripts and emoji are written
    with."""
    return letter.isprintable() or letter in "\u200c\u200d" or unicodedata.category(letter) == "Zs"


def _escaped(letter: str) -> str:
    code = ord(letter)
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(letter)
    return named or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return `; did you mean models?`, or nothing where no known name is near."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
