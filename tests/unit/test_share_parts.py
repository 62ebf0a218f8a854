"""Parts of the file server by themselves: paths, owners, handles, packets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guesthouse.shares.server import wire
from guesthouse.shares.server.beneath import normal
from guesthouse.shares.server.handles import File, Handles
from guesthouse.shares.server.owners import KEEP, NOBODY, Owners

pytestmark = pytest.mark.rootless


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (b"", b""), (b"/", b""), (b".", b""), (b"..", b""), (b"/..", b""), (b"a/../../b", b"b"),
        (b"//a//b/", b"a/b"), (b"/a/./b/../c", b"a/c"), (b"...", b"..."), (b"/a/..b", b"a/..b"),
    ],
)  # fmt: skip
def test_paths_stay_beneath(path: bytes, wanted: bytes) -> None:
    assert normal(path) == wanted


def test_a_path_with_nul_is_none() -> None:
    with pytest.raises(OSError):
        normal(b"a\0b")


def test_owners_are_told_and_kept(tmp_path: Path) -> None:
    status = tmp_path.stat()
    mine = Owners((status.st_uid, status.st_gid), (7, 8))
    assert mine.shown(status) == (7, 8)
    for wanted in ((7, 8), (0, 0), (KEEP, 8), (7, KEEP)):
        mine.check(status, wanted)
    with pytest.raises(PermissionError):
        mine.check(status, (9, 8))
    others = Owners((status.st_uid + 1, status.st_gid + 1), (7, 8))
    assert others.shown(status) == (NOBODY, NOBODY)


def test_handles_are_bounded_and_closed(tmp_path: Path) -> None:
    handles = Handles(2)
    fds = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]
    first = handles.add(File(fds[0]))
    handles.add(File(fds[1]))
    with pytest.raises(OSError, match="too many"):
        handles.add(File(fds[2]))
    with pytest.raises(OSError):
        os.fstat(fds[2])
    handles.close(first)
    with pytest.raises(OSError):
        handles.fd(first)
    handles.close_all()
    assert not len(handles)
    with pytest.raises(OSError):
        os.fstat(fds[1])


def test_a_packet_that_ends_early_is_no_packet() -> None:
    reader = wire.Reader(wire.number(100) + b"short")
    with pytest.raises(wire.Broken):
        reader.text()


def test_times_out_of_range_are_shown_as_the_nearest(tmp_path: Path) -> None:
    os.utime(tmp_path, ns=(-5_000_000_000, 5_000_000_000_000_000_000))
    shown = wire.Reader(wire.attributes(tmp_path.stat(), (1, 2))).attributes()
    assert shown.owner == (1, 2) and shown.times is not None and shown.times[0] == 0
