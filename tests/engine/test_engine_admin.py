"""Making file systems and nodes: refusals, markers, numbers, force (AD1 to AD4, NU1, SW1)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from flakefs.engine.admin import (
    add_node,
    create_filesystem,
    list_nodes,
    list_volumes,
    next_number,
    read_filesystem,
    set_address,
    set_node,
)
from flakefs.engine.sweep import node_door, stored_volumes
from flakefs.errors import (
    AlreadyFormatted,
    ConfigError,
    FormatUnsupported,
    NotFormatted,
    Unavailable,
    UsageError,
)
from flakefs.format.documents import COUNTERS, FORMAT, METADATA_COLLECTIONS, NODE_MARKER, NODES
from flakefs.format.records import FormatRecord
from tests.engine.conftest import World, fresh, uri_of


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that are not there are not waited for as long as in life; those that are answer within this."""
    monkeypatch.setattr("flakefs.mongo.clients.CHECK_SECONDS", 3.0)
    monkeypatch.setattr("flakefs.engine.admin.OLD_NODE_SECONDS", 3.0)


def create(world: World, database: str, **options: Any) -> FormatRecord:
    chosen = {
        "chunk_size": 1 << 16,
        "codec": "zstd",
        "first_node_uri": world.servers.node_uri(1),
        "first_node_database": world.new_database(),
        "resolve": uri_of,
    }
    return create_filesystem(world.metadata, database, **{**chosen, **options})


def home_of(world: World) -> Any:
    return world.metadata.client[world.database]


def test_a_new_file_system(world: World) -> None:
    """AD1."""
    assert read_filesystem(world.metadata, world.database) == world.format
    assert set(home_of(world).list_collection_names()) == set(METADATA_COLLECTIONS)
    assert [document["_id"] for document in home_of(world)[FORMAT].find({})] == ["format"]
    [node] = list_nodes(world.metadata, world.database)
    assert (node.id, node.state, node.database) == (1, "active", world.node_databases[1])
    assert list_volumes(world.metadata, world.database) == []
    assert world.node_home()[NODE_MARKER].find_one({}) == {"_id": world.format.uuid, "node": 1}


def test_prepare_runs_before_the_format_is_written(world: World) -> None:
    database = world.new_database()

    def prepare(home: Any) -> None:
        with pytest.raises(NotFormatted, match=r"make one with flakefs format"):
            read_filesystem(world.metadata, database)
        home["inodes"].create_index("p")

    record = create(world, database, prepare=prepare)
    assert read_filesystem(world.metadata, database) == record


def test_what_is_half_made_is_not_formatted_and_gives_way(world: World) -> None:
    """AD1, AD2: no force is needed to replace what never was a file system."""
    database, node_database = world.new_database(), world.new_database()

    def crash(home: Any) -> None:
        home["inodes"].insert_one({"_id": 1})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(world, database, first_node_database=node_database, prepare=crash)
    with pytest.raises(NotFormatted):
        read_filesystem(world.metadata, database)
    record = create(world, database, first_node_database=node_database)
    assert read_filesystem(world.metadata, database) == record
    assert world.metadata.client[database]["inodes"].find_one({}) is None


def test_an_existing_file_system_is_not_replaced(world: World) -> None:
    with pytest.raises(AlreadyFormatted, match="--force"):
        create(world, world.database)
    assert read_filesystem(world.metadata, world.database) == world.format


@pytest.mark.parametrize("force", [False, True])
def test_a_foreign_database_is_left_alone(world: World, force: bool) -> None:
    """AD2."""
    database = world.new_database()
    world.metadata.client[database]["sessions"].insert_one({"_id": "somebody's"})
    with pytest.raises(UsageError, match=r"another program \(sessions\)"):
        create(world, database, force=force)
    assert world.metadata.client[database]["sessions"].find_one({}) is not None


async def test_force_drops_what_belongs_to_this_file_system_only(world: World) -> None:
    shared = world.node_databases[1]
    other = create(world, world.new_database(), first_node_database=shared)
    async with world.open() as engine:
        await world.keep(engine, [fresh()])
    world.node_home()["vol_notours"].insert_one({"_id": 1})
    home_of(world)["of_somebody_else"].insert_one({"_id": 1})
    record = create(world, world.database, first_node_database=shared, force=True)
    assert record.uuid != world.format.uuid
    assert list_volumes(world.metadata, world.database) == []
    names = set(world.node_home().list_collection_names())
    assert names == {"vol_notours", NODE_MARKER}
    markers = world.node_home()[NODE_MARKER].find({})
    assert {document["_id"] for document in markers} == {record.uuid, other.uuid}
    assert "of_somebody_else" in home_of(world).list_collection_names()
    assert next_number(world.metadata, world.database, "volume") == 1


@pytest.mark.logs
def test_force_goes_on_when_an_old_node_is_away(world: World) -> None:
    home_of(world)[NODES].update_one({"_id": 1}, {"$set": {"uri": "mongodb://%2Fnowhere%2Fx.sock/"}})
    record = create(world, world.database, force=True)
    assert read_filesystem(world.metadata, world.database) == record


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 1000}, "power of two from 64 KiB to 8 MiB"),
        ({"codec": "brotli"}, "no codec 'brotli'; choose one of zstd, lz4, none"),
    ],
)
def test_options_that_cannot_be(world: World, options: dict[str, Any], message: str) -> None:
    database = world.new_database()
    with pytest.raises(UsageError, match=message):
        create(world, database, **options)
    assert world.metadata.client[database].list_collection_names() == []


def test_a_first_node_that_cannot_be_reached_changes_nothing(world: World) -> None:
    database = world.new_database()
    with pytest.raises(Unavailable, match="the node"):
        create(world, database, first_node_uri="mongodb://%2Fnowhere%2Fx.sock/")
    assert world.metadata.client[database].list_collection_names() == []


def test_a_newer_format_is_refused(world: World) -> None:
    home_of(world)[FORMAT].update_one({"_id": "format"}, {"$set": {"version": 99}})
    with pytest.raises(FormatUnsupported, match="version 99"):
        read_filesystem(world.metadata, world.database)


# -- nodes --


def test_nodes_get_numbers_that_are_never_used_again(world: World) -> None:
    """AD3."""
    assert world.add_node().id == 2
    assert world.add_node(id=7).id == 7
    home_of(world)[NODES].delete_one({"_id": 7})
    with pytest.raises(UsageError, match="7 is not free: the next one is 8"):
        world.add_node(id=7)
    with pytest.raises(UsageError, match="from 1 on"):
        world.add_node(id=0)
    assert world.add_node().id == 8
    assert [node.id for node in list_nodes(world.metadata, world.database)] == [1, 2, 8]


def test_a_database_is_one_node_only(world: World) -> None:
    """AD4: the same address is refused at once, another address of the same database by its marker."""
    uri = world.servers.node_uri(1)
    same: dict[str, Any] = {"node_database": world.node_databases[1], "resolve": uri_of}
    with pytest.raises(UsageError, match="is node 1 already"):
        add_node(world.metadata, world.database, uri=uri, **same)
    with pytest.raises(UsageError, match="is node 1 of this file system already"):
        add_node(world.metadata, world.database, uri=f"{uri}?appName=other", **same)
    assert len(list_nodes(world.metadata, world.database)) == 1


def test_a_node_may_get_another_address(world: World) -> None:
    """AD4: only one that leads to the node's data, which its mark says."""
    uri = world.servers.node_uri(1)
    move = partial(set_address, world.metadata, world.database, resolve=uri_of)
    with pytest.raises(UsageError, match="does not hold the data of node 1"):
        move(1, world.servers.node_uri(3))
    with pytest.raises(UsageError, match="there is no node 9"):
        move(9, uri)
    with pytest.raises(Unavailable):
        move(1, "mongodb://%2Fnowhere%2Fx.sock/")
    assert list_nodes(world.metadata, world.database)[0].uri == uri
    assert move(1, f"{uri}?appName=moved").id == 1
    assert list_nodes(world.metadata, world.database)[0].uri == f"{uri}?appName=moved"


def test_a_database_may_serve_two_file_systems(world: World) -> None:
    other = world.new_database()
    create(world, other)
    node = add_node(
        world.metadata,
        other,
        uri=world.servers.node_uri(1),
        node_database=world.node_databases[1],
        resolve=uri_of,
    )
    assert node.id == 2


def test_an_attempt_that_ended_half_way_may_be_repeated(world: World) -> None:
    database = world.new_database()
    world.node_databases[9] = database
    world.node_servers[9] = world.node_servers[1]
    world.node_home(9)[NODE_MARKER].insert_one({"_id": world.format.uuid, "node": 9})
    node = add_node(
        world.metadata, world.database, uri=world.servers.node_uri(1), node_database=database, resolve=uri_of
    )
    assert world.node_home(9)[NODE_MARKER].find_one({})["node"] == node.id


def test_an_address_is_checked_first(world: World) -> None:
    for uri, error in (
        ("mongodb://%2Fnowhere%2Fx.sock/", Unavailable),
        ("http://x", ConfigError),
    ):
        with pytest.raises(error):
            add_node(world.metadata, world.database, uri=uri, node_database="x", resolve=uri_of)
    with pytest.raises(UsageError, match="capacity"):
        world.add_node(capacity=-1)
    assert [node.id for node in list_nodes(world.metadata, world.database)] == [1]
    assert home_of(world)[COUNTERS].find_one({"_id": "node"})["next"] == 2, "no number was taken"


def test_setting_a_node(world: World) -> None:
    node = set_node(world.metadata, world.database, 1, state="readonly", dc="east", rack="r1", capacity=10**12)
    assert (node.state, node.dc, node.rack, node.capacity) == ("readonly", "east", "r1", 10**12)
    assert set_node(world.metadata, world.database, 1) == node
    assert set_node(world.metadata, world.database, 1, state="active", capacity=0).capacity is None
    assert list_nodes(world.metadata, world.database)[0].dc == "east"
    with pytest.raises(UsageError, match="there is no node 4; there are: 1"):
        set_node(world.metadata, world.database, 4, state="active")
    with pytest.raises(UsageError, match="'off'"):
        set_node(world.metadata, world.database, 1, state="off")


def test_numbers_are_given_once(world: World) -> None:
    """NU1."""
    with ThreadPoolExecutor(8) as pool:
        firsts = list(pool.map(lambda _: next_number(world.metadata, world.database, "thing", 3), range(40)))
    assert sorted(firsts) == list(range(1, 121, 3))


async def test_what_a_node_holds(world: World) -> None:
    """SW1."""
    async with world.open() as engine:
        [ref] = await world.keep(engine, [fresh()])
    [node] = list_nodes(world.metadata, world.database)
    home_of(world)["volumes"].delete_many({})
    with node_door(node, uri_of) as door:
        assert stored_volumes(door, node, world.format.uuid) == [ref.volume]
        assert stored_volumes(door, node, "00000000-0000") == []
