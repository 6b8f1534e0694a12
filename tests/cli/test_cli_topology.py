"""nodes add takes data center and rack from the rules of the configuration, unless they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_nodes_add_applies_the_rules(cli: Any, new_database: Callable[[], str]) -> None:
    with cli.config.open("a") as file:
        file.write('[topology]\nrules = [{ match = "*/node1.sock", dc = "dc7", rack = "r7" }]\n')
    address = cli.servers.node_uri(1).rstrip("/")

    def added(*options: str) -> tuple[str, str]:
        node = cli.json("nodes", "add", f"{address}/{new_database()}", *options)
        return node["dc"], node["rack"]

    assert added() == ("dc7", "r7")
    assert added("--rack", "r8") == ("dc7", "r8")
    assert added("--dc", "", "--rack", "") == ("", "")
    other = cli.json("nodes", "add", f"{cli.servers.node_uri(2).rstrip('/')}/{new_database()}")
    assert (other["dc"], other["rack"]) == ("", "")
