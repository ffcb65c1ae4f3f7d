from ipaddress import ip_address

import pytest

from pipeline.sources.web.addresses import literal, refusal

PRIVATE = [
    *(
        "127.0.0.1",
        "127.255.1.2",
        "::1",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "fc00::1",
        "fd12::1",
    ),
    *("100.64.0.1", "100.127.255.255", "198.18.0.1", "192.0.2.1", "203.0.113.9", "192.0.0.1", "2001:db8::1", "fec0::1"),
    *("240.0.0.1", "192.88.99.1", "100::1", "5f00::1"),
]
NEVER = [
    *("169.254.169.254", "169.254.1.1", "fe80::1", "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "239.1.1.1", "ff02::1"),
    *("255.255.255.255", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254", "::ffff:169.254.169.254"),
    *("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::ffff:0.0.0.0", "::ffff:0:169.254.169.254", "::169.254.169.254"),
]
INSIDE = [
    *(
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
    ),
    *("2002:808:808::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "::127.0.0.1", "::ffff:0:127.0.0.1"),
    *("2a00::5efe:7f00:1", "2a00::200:5efe:a00:1"),
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "100.128.0.1",
    "192.169.0.1",
    "2606:4700::1111",
    "2a00:1450:4001:830::200e",
]


@pytest.mark.parametrize("address", [*PRIVATE, *NEVER, *INSIDE])
def test_an_address_that_is_not_everybodys_is_refused(address: str) -> None:
    assert refusal(ip_address(address), allow_private=False)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_not_refused(address: str) -> None:
    assert refusal(ip_address(address), allow_private=False) is None


@pytest.mark.parametrize("address", [*PRIVATE, *INSIDE, *PUBLIC])
def test_private_ones_can_be_allowed(address: str) -> None:
    assert refusal(ip_address(address), allow_private=True) is None


@pytest.mark.parametrize("address", NEVER)
def test_metadata_and_what_is_nobodys_never_can(address: str) -> None:
    assert refusal(ip_address(address), allow_private=True)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0X7F.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("[::1]", "::1"),
        ("::ffff:7f00:1", "::ffff:127.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("example.com", None),
        ("0x7f.example", None),
        ("127.0.0.1.nip.io", None),
    ],
)
def test_every_spelling_of_an_address_is_that_address(host: str, address: str | None) -> None:
    assert literal(host) == (address and ip_address(address))


@pytest.mark.parametrize("host", ["256.1.1.1", "1.2.3.4.5.6", "99999999999", "0x", "08.1.1.1", ":::", "1:2"])
def test_numbers_that_are_no_address_are_refused(host: str) -> None:
    if host == "1.2.3.4.5.6":
        assert literal(host) is None  # a name, which resolves to nothing
        return
    with pytest.raises(ValueError, match="."):
        literal(host)
