"""Hosts: which of them rows may name, by name, by `*.domain` or by network (`--allow-hosts`, `--deny-hosts`)."""

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from pipeline.sources.web.addresses import Address, Network, literal
from schemas.errors import Refused


class HostRules:
    """Hosts that are allowed and denied; without any allowed, all that are not denied are."""

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._allow = _Patterns("--allow-hosts", allow)
        self._deny = _Patterns("--deny-hosts", deny)

    def refusal(self, host: str, addresses: Sequence[Address] | None = None) -> str | None:
        """Return why a host may not be asked, None where it may.

        Without `addresses`, before it is resolved, only what they cannot change is said.
        """
        if self._deny.have(host) or any(map(self._deny.have_address, addresses or ())):
            return "--deny-hosts names it"
        if self._allow.is_empty or self._allow.have(host):
            return None
        if addresses is None:
            return None if self._allow.networks else "--allow-hosts does not name it"
        if addresses and all(map(self._allow.have_address, addresses)):
            return None
        return "--allow-hosts does not name it"


class _Patterns:
    def __init__(self, flag: str, texts: Iterable[str]) -> None:
        self.networks: list[Network] = []
        self._names: set[str] = set()
        self._domains: list[str] = []
        for text in texts:
            self._add(flag, text.strip())

    @property
    def is_empty(self) -> bool:
        return not (self.networks or self._names or self._domains)

    def have(self, host: str) -> bool:
        """Return whether the host's name is one of these."""
        host = plain_host(host)
        return host in self._names or any(host.endswith(domain) for domain in self._domains)

    def have_address(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def _add(self, flag: str, text: str) -> None:
        rule = f"{flag} must be a host, *.domain, an address or a network as 10.0.0.0/8, got {text!r}"
        try:
            address = literal(text)
            if address is not None or "/" in text:
                self.networks.append(ip_network(text if address is None else address))
                return
        except ValueError as error:
            raise Refused(rule) from error
        if not text.isascii():
            raise Refused(f"{rule}: write names in ASCII, as xn--bcher-kva.example")
        domain = plain_host(text.removeprefix("*"))
        if not _NAME.fullmatch(domain):
            raise Refused(rule)
        if domain.startswith("."):
            self._domains.append(domain)
        else:
            self._names.add(domain)


_NAME = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def plain_host(host: str) -> str:
    """Return the one spelling of a host's name in ASCII: lower case, without the dot of its root."""
    return host.rstrip(".").lower()
