from ipaddress import ip_address

import pytest

from pipeline.sources.web.hosts import HostRules
from schemas.errors import Refused


@pytest.mark.parametrize(
    ("pattern", "host", "may"),
    [
        ("example.com", "example.com", True),
        ("Example.COM.", "example.com", True),
        ("example.com", "EXAMPLE.com.", True),
        ("example.com", "a.example.com", False),
        ("example.com", "notexample.com", False),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        (".example.com", "a.example.com", True),
        ("*.example.com", "example.com.evil.test", False),
    ],
)
def test_only_hosts_that_are_allowed_are_asked(pattern: str, host: str, may: bool) -> None:
    assert (HostRules(allow=[pattern]).refusal(host) is None) == may
    assert (HostRules(deny=[pattern]).refusal(host) is None) != may


def test_networks_are_compared_with_what_a_name_resolves_to() -> None:
    inside, outside = [ip_address("10.1.2.3")], [ip_address("11.1.2.3")]
    allow, deny = HostRules(allow=["10.0.0.0/8"]), HostRules(deny=["10.0.0.0/8"])
    assert allow.refusal("a.test") is None  # not known yet
    assert allow.refusal("a.test", inside) is None
    assert allow.refusal("a.test", outside) is not None
    assert allow.refusal("a.test", [*inside, *outside]) is not None
    assert deny.refusal("a.test", [*outside, *inside]) is not None
    assert deny.refusal("a.test", outside) is None


def test_denied_is_denied_though_it_is_allowed() -> None:
    rules = HostRules(allow=["*.example.com"], deny=["bad.example.com", "2130706433"])
    assert rules.refusal("good.example.com") is None
    assert "--deny-hosts" in str(rules.refusal("bad.example.com"))
    assert "--deny-hosts" in str(rules.refusal("good.example.com", [ip_address("127.0.0.1")]))
    assert "--allow-hosts" in str(rules.refusal("example.org"))


@pytest.mark.parametrize(
    "text",
    ["", "*", "http://a.test", "a.test:80", "a.test/b", "*.*.test", "a b", "10.0.0.1/8", "300.1.1.1", "bücher.test"],
)
def test_what_is_no_host_is_refused_by_its_flag(text: str) -> None:
    with pytest.raises(Refused, match="--deny-hosts must be a host"):
        HostRules(deny=[text])
