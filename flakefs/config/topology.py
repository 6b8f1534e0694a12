"""The section [topology]: where a node stands, told by its address.

Purpose
    `rules = [{match = "10.1.0.0/16", dc = "dc1", rack = "r1"}, {match = "*.dc2.example", dc = "dc2"}]`: the first rule
    that matches the host of a new node gives it its data center and rack.

Invariants
    TP1  A rule with a network matches a host that is an address in it, or a name of which one address is; every other
         rule matches names (and addresses as they are written) with * and ?, whatever the case.
    TP2  A node whose address has several hosts (a replica set) matches when one of them does.

Not here
    Taking hosts out of a URI (mongo.clients), applying the rules (cli.nodes).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from flakefs.errors import ConfigError

Addresses = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyRule:
    """One line of `rules`."""

    match: str
    """A network like 10.1.0.0/16, an address, or a name with * and ?."""
    dc: str = ""
    rack: str = ""

    def __post_init__(self) -> None:
        if not self.match:
            raise ConfigError("match must name a network or a host")
        if "/" in self.match and self.network is None and not self.match.startswith(("/", "*")):
            raise ConfigError(f"match = {self.match!r} is no network; write it like 10.1.0.0/16 or fd00:1::/32")
        if not self.dc and not self.rack:
            raise ConfigError(f"the rule for {self.match!r} says neither dc nor rack")

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
        try:
            return ipaddress.ip_network(self.match, strict=False)
        except ValueError:
            return None

    def matches(self, host: str, addresses: Addresses) -> bool:
        """TP1."""
        network = self.network
        if network is None:
            return fnmatchcase(host.lower(), self.match.lower())
        return any(ipaddress.ip_address(address) in network for address in addresses(host))


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyOptions:
    """What the configuration may say about places."""

    rules: tuple[TopologyRule, ...] = ()
    """The first one that matches counts."""

    def place_of(self, hosts: Iterable[str], addresses: Addresses | None = None) -> TopologyRule | None:
        """The rule for a node at *hosts*, if any (TP2). *addresses*: what a name leads to; None: as the system says."""
        hosts = list(hosts)
        known: dict[str, list[str]] = {}

        def remembered(host: str) -> list[str]:
            if host not in known:
                known[host] = (addresses or addresses_of)(host)
            return known[host]

        return next((rule for rule in self.rules if any(rule.matches(host, remembered) for host in hosts)), None)


def addresses_of(host: str) -> list[str]:
    """The host itself when it is an address; else what its name leads to; none for a unix socket or an unknown name."""
    if host.startswith("/"):
        return []
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(entry[4][0]).partition("%")[0] for entry in found]
