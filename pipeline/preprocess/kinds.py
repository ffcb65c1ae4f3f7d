"""Kinds: what bytes that are no image look like, without showing any of them: they may be anybody's secrets."""

import re

_HEAD = 512  # bytes that are looked at
_SIGNATURES = (
    (b"%PDF-", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"PAR1", "Parquet"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a pointer of Git LFS, not its file"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "a Photoshop file"),
)
_BOXES = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "a broken AVIF"}  # bytes 8 to 12, behind `ftyp`
_STARTED = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"RIFF", "WebP"), (b"BM", "BMP"))
_MARKUP = ((b"<svg", "SVG"), (b"<!doctype html", "HTML"), (b"<html", "HTML"), (b"<?xml", "XML"))


def kind_of(data: bytes | memoryview) -> str:
    """Return what the bytes look like: `HTML`, `gzip`, `text`, or `nothing known`."""
    head = bytes(data[:_HEAD])
    named = next((name for signature, name in _SIGNATURES if head.startswith(signature)), None)
    named = named or next((f"a broken {name}" for signature, name in _STARTED if head.startswith(signature)), None)
    if named is None and head[4:8] == b"ftyp":
        named = _BOXES.get(head[8:12], "a film")
    return named or _kind_of_text(head)


def without_bytes(message: str) -> str:
    """Return what a decoder says, up to where it shows what it has read."""
    return re.split(r"""b['"]|: """, message, maxsplit=1)[0].rstrip(" (")


def _kind_of_text(head: bytes) -> str:
    if not head.strip(b"\x00"):
        return "zeros"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    markup = next((name for tag, name in _MARKUP if text.startswith(tag)), None)
    if markup == "XML" and b"<svg" in text:
        return "SVG"
    if markup is not None:
        return markup
    is_text = not re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", head)
    return ("JSON" if text[:1] in (b"{", b"[") else "text") if is_text else "nothing known"
