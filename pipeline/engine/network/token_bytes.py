"""The bytes that each token of a vocabulary stands for."""

import json
from functools import cached_property

from transformers import PreTrainedTokenizerFast

_NEVER = b"\xff"  # is in no text: the bytes of an id without a token


class TokenBytes:
    """Looks up the bytes that each token of a vocabulary stands for."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer.backend_tokenizer

    def of(self, token_id: int) -> bytes:
        """Return a token's bytes, whatever comes before it; those of a special token are its name's."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return _NEVER
        if "ByteFallback" in self._decoders and (byte := _byte_token(token)) is not None:
            return byte
        if "ByteLevel" in self._decoders and all(letter in _BYTES for letter in token):
            return bytes(_BYTES[letter] for letter in token)
        return self._decoded(token).encode(errors="replace")

    def _decoded(self, token: str) -> str:
        """Decode a token behind another one: at the beginning of a text its space would be dropped."""
        decoder = self._tokenizer.decoder
        return decoder.decode(["a", token]).removeprefix("a") if decoder else f" {token}"

    @cached_property
    def _decoders(self) -> frozenset[str]:
        """Return the kinds of the tokenizer's decoding steps; explicit byte tokens go before letters for bytes."""
        decoder = self._tokenizer.decoder
        kinds = frozenset(_kinds(json.loads(decoder.__getstate__()))) if decoder else frozenset()
        return kinds - {"ByteLevel"} if "ByteFallback" in kinds else kinds


def _kinds(step: dict[str, object]) -> list[str]:
    inner = step.get("decoders", [])
    assert isinstance(inner, list)
    return [str(step["type"]), *(kind for one in inner for kind in _kinds(one))]


def _byte_token(token: str) -> bytes | None:
    """Return the byte of a token such as <0x0A>."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return bytes.fromhex(token[3:5])
    except ValueError:
        return None


def _byte_letters() -> dict[str, int]:
    """Return the letters that byte-level vocabularies spell bytes with: printable ones are themselves, others follow
    from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_letters()
