"""Addresses: which of them may be connected to for a row, whose writer must not reach what only this machine can."""

import re
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NUMBER = r"(?:0x[0-9a-f]*|[0-9]+)"
_NUMERIC = re.compile(rf"{_NUMBER}(?:\.{_NUMBER}){{0,3}}", re.IGNORECASE)


def _named(name: str, *networks: str) -> tuple[tuple[Network, str], ...]:
    return tuple((ip_network(network), name) for network in networks)


# Not even where private addresses are allowed: what answers there hands out this machine's own keys, or is nobody.
_NEVER = (
    *_named("a cloud's metadata address", "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16"),
    *_named("a cloud's metadata address", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"),
    *_named("a link-local address", "169.254.0.0/16", "fe80::/10"),
    *_named("no address of anybody", "0.0.0.0/8", "::/128"),
    *_named("a multicast address", "224.0.0.0/4", "ff00::/8"),
    *_named("a broadcast address", "255.255.255.255"),
)
_PRIVATE = (
    *_named("a loopback address", "127.0.0.0/8", "::1"),
    *_named("a private address", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"),
    *_named("a carrier's private address", "100.64.0.0/10"),
    *_named("a relay's address", "192.88.99.0/24"),
)
# Where an address of IPv4 is in one of IPv6: the network, and how far it is from the end, in bits.
_EMBEDDING = (
    (ip_network("::ffff:0:0/96"), 0),  # mapped
    (ip_network("::ffff:0:0:0/96"), 0),  # translated
    (ip_network("::/96"), 0),  # compatible
    (ip_network("64:ff9b::/96"), 0),  # NAT64
    (ip_network("64:ff9b:1::/48"), 0),  # NAT64 of one's own; with a /96 below it
    (ip_network("2002::/16"), 80),  # 6to4
    (ip_network("2001::/32"), 0),  # Teredo, inverted
)
_TEREDO = ip_network("2001::/32")
_ISATAP = 0x5EFE  # in bits 32 to 47 of an address of any network


def refusal(address: Address, *, allow_private: bool) -> str | None:
    """Return what an address is that may not be connected to, as in `a loopback address`; None for one that may."""
    inside = _embedded(address)
    for one in (address, *([] if inside is None else [inside])):
        if (name := _find(one, _NEVER)) is not None:
            return name
    if allow_private:
        return None
    if (name := _find(address, _PRIVATE)) is not None:
        return name
    if inside is not None:
        return "an address of IPv4 inside one of IPv6"
    return None if address.is_global and not address.is_reserved else "a reserved address"


def literal(host: str) -> Address | None:
    """Return the address that a host spells, also as `2130706433`, `0x7f.1` or `0177.0.0.1`; None for a name.

    Raises ValueError where a host is made of numbers and is no address all the same.
    """
    host = host.removeprefix("[").removesuffix("]").rstrip(".")
    if ":" in host:
        return ip_address(host.partition("%")[0])
    if not _NUMERIC.fullmatch(host):
        return None
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError as error:
        raise ValueError(f"{host} is no address") from error


def parsed(host: str) -> Address | None:
    """Return the address that a resolver's answer or a socket's end spells in full, None where it is none."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _find(address: Address, networks: tuple[tuple[Network, str], ...]) -> str | None:
    return next((name for network, name in networks if address in network), None)


def _embedded(address: Address) -> IPv4Address | None:
    """The address of IPv4 that one of IPv6 leads to, None where it is one of its own."""
    if isinstance(address, IPv4Address) or int(address) <= 1:
        return None
    bits = int(address)
    for network, shift in _EMBEDDING:
        if address in network:
            inside = bits >> shift & 0xFFFFFFFF
            return IPv4Address(inside ^ 0xFFFFFFFF if network == _TEREDO else inside)
    return IPv4Address(bits & 0xFFFFFFFF) if bits >> 32 & 0xFFFF == _ISATAP and not bits >> 48 & 0xFDFF else None
