"""The shares of a guest as a whole: all or none, undone when it fails, found by the next daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guesthouse.errors import AgentUnavailable, EngineError, InUse, InvalidInput
from guesthouse.model.share import Share
from guesthouse.shares.attached import GuestShares
from tests.sharing_guest import FakeGuest

pytestmark = pytest.mark.rootless


def shares(folder: Path, *names: str) -> list[Share]:
    for name in names:
        (folder / name).mkdir(exist_ok=True)
    return [
        Share(
            name=name,
            source=str(folder / name),
            target=f"/mnt/{name}",
            host_uid=os.getuid(),
            host_gid=os.getgid(),
        )
        for name in names
    ]


def room(folder: Path, guest: FakeGuest) -> GuestShares:
    (folder / "run").mkdir(exist_ok=True)
    return GuestShares(folder / "run", guest, guest, user="guest")


def records(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run").glob("*.json"))


@pytest.fixture
def guest() -> FakeGuest:
    return FakeGuest()


async def test_mount_and_unmount_all(tmp_path: Path, guest: FakeGuest) -> None:
    made, both = room(tmp_path, guest), shares(tmp_path, "a", "b")
    assert await made.mount_all(both) == {}
    assert guest.mounted == {"/mnt/a", "/mnt/b"} and len(guest.ports) == 2
    assert records(tmp_path) == ["share-a.json", "share-b.json"]
    record = made.server(both[0])
    assert record is not None and record.share == both[0] and record.walls
    await made.unmount_all(both)
    assert not guest.mounted and not guest.ports and records(tmp_path) == []
    await made.unmount_all(both)
    assert made.server(both[0]) is None


async def test_one_that_is_busy_keeps_all(tmp_path: Path, guest: FakeGuest) -> None:
    made, all_three = room(tmp_path, guest), shares(tmp_path, "a", "b", "c")
    await made.mount_all(all_three)
    guest.busy.add("/mnt/b")
    with pytest.raises(InUse, match=r"vim \(process 7\)"):
        await made.unmount_all(all_three)
    assert guest.mounted == {"/mnt/a", "/mnt/b", "/mnt/c"} and len(guest.ports) == 3
    guest.busy.clear()
    await made.unmount_all(all_three)


async def test_the_next_daemon_finds_them_and_touches_nothing(
    tmp_path: Path, guest: FakeGuest
) -> None:
    both = shares(tmp_path, "a", "b")
    await room(tmp_path, guest).mount_all(both)
    ports, before = dict(guest.ports), len(guest.log)
    after = room(tmp_path, guest)
    assert await after.mount_all(both) == {}
    assert guest.ports == ports
    assert guest.log[before:] == ["mounted /mnt/a", "mounted /mnt/b"]
    await after.unmount_all(both)
    assert not guest.ports and records(tmp_path) == []


async def test_what_the_guest_lost_is_mounted_anew(tmp_path: Path, guest: FakeGuest) -> None:
    made, [share] = room(tmp_path, guest), shares(tmp_path, "a")
    await made.mount(share)
    old = guest.ports["share.a"]
    guest.mounted.clear()
    await made.mount(share)
    assert guest.mounted == {"/mnt/a"} and guest.ports["share.a"] is not old
    await made.unmount(share)


async def test_a_failure_is_undone_and_keeps_nobody_else_out(
    tmp_path: Path, guest: FakeGuest
) -> None:
    made, all_three = room(tmp_path, guest), shares(tmp_path, "a", "b", "c")
    guest.broken.add("/mnt/a")
    (tmp_path / "b").rmdir()
    problems = await made.mount_all(all_three)
    assert isinstance(problems["a"], EngineError) and "broken" in problems["a"].message
    assert isinstance(problems["b"], InvalidInput)
    assert guest.mounted == {"/mnt/c"} and list(guest.ports) == ["share.c"]
    assert records(tmp_path) == ["share-c.json"]
    guest.users.clear()
    await made.unmount(all_three[2])
    with pytest.raises(InvalidInput, match="no user guest"):
        await made.mount(all_three[2])


async def test_a_guest_that_does_not_answer_loses_no_mount(
    tmp_path: Path, guest: FakeGuest
) -> None:
    made, [share] = room(tmp_path, guest), shares(tmp_path, "a")
    await made.mount(share)
    guest.away = True
    for attempt in (made.mount(share), made.unmount(share), made.unmount_all([share])):
        with pytest.raises(AgentUnavailable):
            await attempt
    assert guest.ports and records(tmp_path) == ["share-a.json"]
    await made.dropped(share)
    assert not guest.ports and records(tmp_path) == []
