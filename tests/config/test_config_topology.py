"""[topology]: which rule a host falls under (TP1, TP2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from flakefs.config import load
from flakefs.config.topology import TopologyOptions, TopologyRule, addresses_of
from flakefs.errors import ConfigError
from flakefs.mongo.clients import hosts_of

RULES = """
[topology]
rules = [
    { match = "10.1.0.0/16", dc = "dc1", rack = "r1" },
    { match = "10.0.0.0/8", dc = "dc1" },
    { match = "fd00:2::/32", dc = "dc2", rack = "r6" },
    { match = "*.DC2.example", dc = "dc2" },
    { match = "store?", rack = "r9" },
    { match = "/run/*", dc = "here" },
]
"""
NAMES = {"ten.example": ["10.1.2.3"], "both.example": ["192.168.0.1", "fd00:2::7"], "a.dc2.example": ["192.168.0.2"]}


@pytest.fixture
def topology(tmp_path: Path) -> TopologyOptions:
    (tmp_path / "flakefs.conf").write_text(RULES)
    return load(tmp_path / "flakefs.conf").topology


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("mongodb://10.1.2.3:27017/", ("dc1", "r1")),
        ("mongodb://u:p@10.2.0.1/db", ("dc1", "")),
        ("mongodb://[fd00:2::1]:27018/", ("dc2", "r6")),
        ("mongodb://ten.example/", ("dc1", "r1")),
        ("mongodb://both.example/", ("dc2", "r6")),
        ("mongodb://A.dc2.Example:1/", ("dc2", "")),
        ("mongodb://store7,store8/?replicaSet=x", ("", "r9")),
        ("mongodb://unknown.example,10.1.0.1/", ("dc1", "r1")),
        ("mongodb://%2Frun%2Fnode1.sock/", ("here", "")),
        ("mongodb://192.168.0.1/", None),
        ("mongodb://store77/", None),
    ],
)
def test_the_first_rule_that_matches(topology: TopologyOptions, uri: str, place: tuple[str, str] | None) -> None:
    def addresses(host: str) -> list[str]:
        return NAMES[host] if host in NAMES else addresses_of(host) if host[0] in "1f/" else []

    rule = topology.place_of(hosts_of(uri), addresses)
    assert (rule and (rule.dc, rule.rack)) == place, "TP1, TP2"


def test_names_are_looked_up() -> None:
    assert "127.0.0.1" in addresses_of("localhost")
    assert addresses_of("no.such.host.invalid") == []
    assert addresses_of("/run/x.sock") == []
    rule = TopologyRule(match="127.0.0.0/8", dc="here")
    assert TopologyOptions(rules=(rule,)).place_of(["localhost"]) is rule


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("5", "must be a list of tables"),
        ('["10.0.0.0/8"]', "must be a list of tables"),
        ('[{ dc = "a" }]', "entry 1: match is missing"),
        ('[{ match = "a", dc = "a" }, { match = "b", room = "x" }]', "entry 2: unknown key 'room'"),
        ('[{ match = "10.1.0.0/99", dc = "a" }]', "entry 1: match = '10.1.0.0/99' is no network"),
        ('[{ match = "a" }]', "says neither dc nor rack"),
        ('[{ match = "", dc = "a" }]', "must name a network or a host"),
        ('[{ match = "a", dc = 1 }]', "entry 1: dc must be a string, not 1"),
    ],
)
def test_rules_that_make_no_sense(tmp_path: Path, rules: str, words: str) -> None:
    (tmp_path / "flakefs.conf").write_text(f"[topology]\nrules = {rules}\n")
    with pytest.raises(ConfigError, match=words) as caught:
        load(tmp_path / "flakefs.conf")
    assert "[topology] rules" in str(caught.value)
