"""Parts of the file server by themselves: paths, owners, handles, packets."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guesthouse.shares.server import wire
from guesthouse.shares.server.beneath import Tree, normal
from guesthouse.shares.server.handles import File, Handles
from guesthouse.shares.server.owners import KEEP, NOBODY, Owners
from guesthouse.shares.server.session import Rules, Session

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


FIELDS = st.one_of(
    st.binary(max_size=40).map(wire.text),
    st.sampled_from([b"/", b"/f", b"/d", b"../x", b"/d/..", b"\0" * 7 + b"\1"]).map(wire.text),
    st.integers(0, 0xFFFF_FFFF).map(wire.number),
    st.sampled_from([0, 1, 3, 15, 0x1A, 0x3F]).map(wire.number),
    st.binary(max_size=12),
)
EXTENDED = st.sampled_from(sorted(wire.EXTENSIONS)).map(wire.text)
PACKETS = st.builds(
    lambda kind, more, fields: bytes([kind]) + wire.number(7) + more + b"".join(fields),
    st.one_of(st.integers(0, 255), st.integers(wire.INIT, wire.SYMLINK)),
    st.one_of(st.just(b""), EXTENDED),
    st.lists(FIELDS, max_size=6),
)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(PACKETS, min_size=1, max_size=20))
def test_whatever_comes_is_answered_or_ends_it(tmp_path: Path, packets: list[bytes]) -> None:
    around = Path(tempfile.mkdtemp(dir=tmp_path))
    share, outside = around / "share", around / "outside"
    (share / "d").mkdir(parents=True)
    outside.mkdir()
    root, processes = (os.open(path, os.O_PATH) for path in (share, "/proc/self/fd"))
    session = Session(Tree(root, processes), Rules(False, Owners((0, 0), (1, 1)), 50))
    try:
        for packet in packets:
            answer = session.answer(packet)
            assert int.from_bytes(answer[:4]) == len(answer) - 4 <= wire.MAX_PACKET
    except wire.Broken:
        pass
    finally:
        session.close()
        os.close(root)
        os.close(processes)
        share.chmod(0o700)
    assert sorted(path.name for path in around.iterdir()) == ["outside", "share"]
    assert not list(outside.iterdir())
