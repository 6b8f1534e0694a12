"""The workload and its model, on a local folder (T9 to T11): a test that cannot see a wrong state proves nothing."""

from __future__ import annotations

import os
import random
from copy import deepcopy
from pathlib import Path

import pytest

from flakefs.testing.operations import Node, Op
from flakefs.testing.workload import Workload, seen_at, seen_in


@pytest.fixture
def load(tmp_path: Path) -> Workload:
    """One that has worked for a while."""
    made = Workload(tmp_path, random.Random(7))
    made.start()
    made.wait(lambda: len(made.ops) >= 400)
    made.stop()
    made.close()
    assert made.error is None
    return made


def test_a_local_folder_follows_the_model(load: Workload, tmp_path: Path) -> None:
    found = seen_at(tmp_path)
    assert found == seen_in(load.tree)
    number, tree = load.explain(found)
    assert number == len(load.ops)
    assert seen_in(tree) == found
    assert 0 < load.durable <= number
    assert {op.text.split()[0] for op in load.ops} >= {
        "create",
        "write",
        "rename",
        "exchange",
        "link",
        "unlink",
        "fsync",
    }


def test_what_never_was_is_not_accepted(load: Workload, tmp_path: Path) -> None:
    good = seen_at(tmp_path)
    path = next(path for path, (mode, data, *_) in good.items() if len(data) > 10)
    full = os.path.join(os.fsencode(tmp_path), path)
    with open(full, "r+b") as file:
        file.seek(5)
        byte = file.read(1)
        file.seek(5)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(AssertionError, match="no state that the workload passed through"):
        load.explain(seen_at(tmp_path))
    for wrong in (
        {name: seen for name, seen in good.items() if name != path},
        good | {b"new": (0o100600, b"", b"", {}, [b"new"])},
        good | {path: (good[path][0] ^ 0o100, *good[path][1:])},
        good | {path: (*good[path][:3], {b"user.one": b"x"}, good[path][4])},
        good | {path: (*good[path][:4], [path, b"other"])},
    ):
        with pytest.raises(AssertionError, match="no state that the workload passed through"):
            load.explain(wrong)


def test_a_state_before_the_last_fsync_is_not_accepted(load: Workload) -> None:
    tree = deepcopy(load.base)
    for op in load.ops[: load.durable]:
        op.apply(tree)
    assert load.explain(seen_in(tree))[0] >= load.durable
    early = deepcopy(load.base)
    for op in load.ops[: load.durable - 20]:
        op.apply(early)
    assert seen_in(early) != seen_in(tree)
    with pytest.raises(AssertionError, match="no state that the workload passed through"):
        load.explain(seen_in(early))


def test_a_write_may_arrive_in_part(tmp_path: Path) -> None:
    load = Workload(
        tmp_path, random.Random(1), {b"": Node(0, 0o40700), b"f": Node(1, 0o100600, bytearray(b"old" * 5000))}
    )
    op: Op | None = None
    while op is None or len(op.halves) < 3:
        op = load._chooser._write()
    load.ops.append(op)
    tree = deepcopy(load.base)
    op.halves[1](tree)
    assert seen_in(tree) != seen_in(load.base)
    number, found = load.explain(seen_in(tree))
    assert number == 0
    assert seen_in(found) == seen_in(tree)
    tree[b"f"].data[-1] ^= 1
    with pytest.raises(AssertionError, match="no state that the workload passed through"):
        load.explain(seen_in(tree))


def test_the_same_seed_does_the_same(tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        load = Workload(tmp_path / name, random.Random(3))
        load.start()
        load.wait(lambda load=load: len(load.ops) >= 100)  # type: ignore[misc]
        load.stop()
        load.close()
        texts.append([op.text.split("descriptor")[0] for op in load.ops[:100]])
    assert texts[0] == texts[1]


def test_an_error_ends_it(tmp_path: Path) -> None:
    load = Workload(tmp_path, random.Random(5))
    load.start()
    load.wait(lambda: len(load.ops) >= 50)
    os.rename(tmp_path, f"{tmp_path}.away")
    load.wait(lambda: False)
    assert load.ended
    assert isinstance(load.error, OSError)
    load.close()
