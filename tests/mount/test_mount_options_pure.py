"""What a mount is asked for: FuseOptions, words of -o, and calls of mount.flakefs."""

from __future__ import annotations

from typing import Any

import pytest

from flakefs.app import mount_options
from flakefs.cli import mount_helper
from flakefs.config import Config
from flakefs.config.model import MountOptions
from flakefs.errors import ConfigError, UsageError
from flakefs.fuse.options import FuseOptions


def test_options_refuse_nonsense() -> None:
    with pytest.raises(ConfigError, match="cache_seconds"):
        FuseOptions(cache_seconds=-1)
    with pytest.raises(ConfigError, match="tasks"):
        FuseOptions(tasks=0)


# -o words


def test_generic_words_are_accepted_and_ours_understood() -> None:
    words = mount_options.parse(["_netdev,nofail,defaults,x-systemd.automount,rw,ro", "config=/etc/f.conf"])
    assert words.read_only
    assert words.config_path == "/etc/f.conf"
    assert not words.changes
    assert not words.notes


def test_o1_what_fstab_may_say_is_accepted() -> None:
    words = mount_options.parse(
        [
            "defaults,auto,noauto,user,nouser,users,nousers,owner,group,nofail,_netdev,exec,suid,nosuid,dev,nodev,async",
            "relatime,noatime,strictatime,lazytime,comment=mine,uhelper=x,x-systemd.requires=network-online.target",
            "x-systemd.automount,x-systemd.mount-timeout=2min,x-systemd.device-timeout=0,x-gvfs-hide,X-mount.mkdir=0755",
        ]
    )
    assert words.notes == [
        "mount option strictatime has no effect: access times move as relatime says, or never with noatime"
    ]


@pytest.mark.parametrize(
    ("words", "on", "off"),
    [
        ("suid,dev,noexec,sync", "suid dev noexec sync", ""),
        ("suid,dev,noexec,sync,nosuid,nodev,exec,async", "", "suid dev noexec sync"),
        ("nosuid,suid,nodev", "suid", "dev"),
    ],
)
def test_o2_the_last_of_two_words_counts(words: str, on: str, off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    taken_back: dict[str, Any] = dict.fromkeys(off.split(), True)
    set_to = FuseOptions(**taken_back)
    fuse = mount_options.parse([words]).applied(Config(fuse=set_to)).fuse
    assert all(getattr(fuse, flag) for flag in on.split())
    assert not any(getattr(fuse, flag) for flag in off.split())
    assert not mount_options.parse(["ro,rw"]).read_only
    assert mount_options.parse(["noatime"]).applied(Config()).vfs.atime == "noatime"
    assert mount_options.parse(["noatime,relatime"]).applied(Config()).vfs.atime == "relatime"


@pytest.mark.parametrize("word", ["suid", "dev"])
def test_o3_what_only_root_gets_is_refused_to_others(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UsageError, match=f"mount option {word} is for mounts by root only"):
        mount_options.parse([word]).applied(Config())
    assert not getattr(mount_options.parse([f"{word},no{word}"]).applied(Config()).fuse, word)


@pytest.mark.parametrize(
    ("words", "set_to", "waits"),
    [
        ("rw", 0.0, 0.0),
        ("rw", 5.0, 5.0),
        ("_netdev", 0.0, mount_options.NETDEV_SECONDS),
        ("_netdev", 5.0, 5.0),
        ("_netdev,wait=0", 5.0, 0.0),
        ("wait=7,_netdev", 5.0, 7.0),
    ],
)
def test_how_long_the_metadata_server_is_waited_for(words: str, set_to: float, waits: float) -> None:
    config = Config(mount=MountOptions(wait_seconds=set_to))
    assert mount_options.parse([words]).applied(config).mount.wait_seconds == waits


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("bogus", "'bogus' is not known"),
        ("allow_othr", "did you mean 'allow_other'"),
        ("close=never", "close must be stored or fast"),
        ("fewer_copies=yes", "fewer_copies must be refuse or warn"),
        ("rack", "needs a value"),
        ("commit_interval=soon", "number of seconds"),
        ("wait=-1", "number of seconds"),
        ("wait", "needs a value"),
        ("commit_interval", "needs a value"),
        ("allow_other=1", "takes no value"),
        ("dirsync", "no effect on a FUSE mount"),
        ("remount", "unmount it and mount it again"),
    ],
)
def test_o1_other_words_are_refused_by_name(word: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        mount_options.parse([word])


def test_o1_the_words_that_are_known_are_listed_once() -> None:
    with pytest.raises(UsageError) as refused:
        mount_options.parse(["qqqqqq"])
    known = str(refused.value).partition("; known are ")[2].split(", ")
    assert known == sorted(set(known))
    assert {"atime", "database", "noatime", "ro"} <= set(known)


def test_words_change_the_configuration() -> None:
    words = mount_options.parse(
        [
            "allow_other,close=stored,atime=noatime,commit_interval=7,error_timeout=9,database=other,log=/l,balance=random"
        ]
    )
    config = words.applied(Config())
    assert config.fuse.allow_other
    assert config.vfs.close_stored
    assert config.vfs.atime == "noatime"
    assert config.namespace.commit_interval_seconds == 7
    assert config.namespace.error_timeout_seconds == config.vfs.error_timeout_seconds == 9
    assert (config.database, config.mount.log, config.engine.balance) == ("other", "/l", "random")


def test_words_about_places_and_copies() -> None:
    engine = mount_options.parse(["dc=east,rack=r 1", "write_dc=west,fewer_copies=warn"]).applied(Config()).engine
    assert (engine.dc, engine.rack, engine.write_dc, engine.fewer_copies) == ("east", "r 1", "west", "warn")


# mount.flakefs


def test_h1_wrong_calls_of_the_helper_have_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    for call in ([], ["one"], ["a", "b", "-z"], ["a", "b", "-o"], ["a", "/mnt", "-o", "bogus"]):
        assert mount_helper.run(call) == 1, call
        assert capsys.readouterr().err.startswith("mount.flakefs: ")


def test_the_helper_can_pretend() -> None:
    assert mount_helper.run(["flakefs", "/mnt/nowhere", "-f", "-o", "rw,_netdev"]) == 0
