"""Replication codes: PC1 to PC3, every code on a large layout, and random topologies."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flakefs.errors import UsageError
from flakefs.format.placement import Place, check_code, choose, copies, satisfiable, satisfies, why_not

places = st.builds(
    Place, st.integers(1, 30), st.sampled_from(["", "a", "b", "c"]), st.sampled_from(["", "r", "s", "t"]),
    st.sampled_from(["one", "two", "three", "four"]),
)  # fmt: skip
topologies = st.lists(places, max_size=14, unique_by=lambda place: place.node)
codes = st.builds(lambda *digits: "".join(map(str, digits)), *[st.integers(0, 2)] * 3)
SMALL_CODES = [f"{x}{y}{z}" for x, y, z in itertools.product(range(4), repeat=3) if x + y + z <= 3]
LAYOUT = [
    Place(2 * (2 * dc + rack) + number + 1, f"dc{dc}", f"rack{rack}", f"server{(dc + rack + number) % 3}")
    for dc in range(3)
    for rack in range(2)
    for number in range(2)
]
"""3 data centers of 2 racks of 2 nodes, on 3 servers."""


def brute(code: str, chosen: list[Place]) -> bool:
    """The rule, said once more: some one is the main one, and the others divide as the code says."""
    for main in chosen:
        others = [place for place in chosen if place is not main]
        far = [place.dc for place in others if place.dc != main.dc]
        near = [place.rack for place in others if place.dc == main.dc and place.rack != main.rack]
        here = [place for place in others if (place.dc, place.rack) == (main.dc, main.rack)]
        if (len(far), len(near), len(here)) == tuple(map(int, code)) and len({*far}) == len(far):  # noqa: SIM102
            if len({*near}) == len(near):
                return True
    return False


@given(topologies, codes, st.randoms(use_true_random=False))
def test_what_is_chosen_keeps_the_code(topology: list[Place], code: str, rng: random.Random) -> None:
    """PC1."""
    weights = {place: rng.random() for place in topology}
    chosen = [found for main in topology if (found := choose(code, main, topology, weights.__getitem__))]
    for found in chosen:
        assert brute(code, found)
        assert satisfies(code, found)
        assert len(found) == copies(code)
    assert bool(chosen) == satisfiable(code, topology) == (why_not(code, topology) is None)


@given(topologies, codes)
@example([Place(1, "", "", "x"), Place(2, "", "r", "x")], "010")
def test_any_copy_may_be_the_main_one(topology: list[Place], code: str) -> None:
    """PC2, PC3."""
    found = next((found for main in topology if (found := choose(code, main, topology, lambda place: 0))), None)
    if found is not None:
        assert all(satisfies(code, order) for order in itertools.islice(itertools.permutations(found), 24))
        assert satisfies(code, [*found, *topology])
        assert not any(satisfies(code, found[:index] + found[index + 1 :]) for index in range(len(found)))


@pytest.mark.parametrize("code", SMALL_CODES)
def test_every_small_code_on_a_large_layout(code: str) -> None:
    far, near, here = map(int, code)
    possible = far <= 2 and near <= 1 and here <= 1
    for main in LAYOUT:
        found = choose(code, main, LAYOUT, lambda place: place.node)
        assert (found is not None) == possible
        if found is not None:
            assert found[0] == main
            assert brute(code, found)
    assert (why_not(code, LAYOUT) is None) == possible


def test_light_places_and_other_servers_are_preferred() -> None:
    one, two, three = (Place(number, "", "", server) for number, server in enumerate(["a", "a", "b"], start=1))
    assert choose("001", one, [two, three], lambda place: place.node) == [one, three], "two is on the same server"
    assert choose("001", one, [two], lambda place: 0) == [one, two], "preferred, never demanded"
    assert choose("001", three, [one, two], lambda place: -place.node) == [three, two]


def test_what_is_missing_is_named() -> None:
    here = [Place(1, "", "", "a"), Place(2, "", "", "b")]
    assert why_not("001", here) is None
    assert why_not("100", here) == (
        "replication 100 cannot be kept by the 2 nodes there are: missing is 1 further data center"
    )
    assert why_not("212", here[:1]) == (
        "replication 212 cannot be kept by the 1 node there is: missing are 2 further data centers and "
        "1 further rack in one data center and 2 further nodes in one rack"
    )
    assert why_not("000", []) == "replication 000 needs 1 node, and there is none"


def test_codes_are_checked() -> None:
    assert [check_code(code) for code in ("000", "321", "006")] == ["000", "321", "006"]
    for wrong in ("", "1", "0001", "07 ", "-01", "322", "007", "٠٠١"):
        with pytest.raises(UsageError, match="is no replication code"):
            check_code(wrong)
