"""Shares by virtiofs as a whole, with a program that behaves as virtiofsd does as far as we see."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.errors import EngineError, HostLacks, LaunchFailed
from guesthouse.host.virtiofsd import Virtiofsd
from guesthouse.model.share import Share, Way
from guesthouse.operations.live import Progress
from guesthouse.shares.attached import GuestShares
from tests.sharing_guest import FakeGuest

pytestmark = pytest.mark.rootless

PROGRAM = """#!/usr/bin/python3 -I
import socket, sys
number = next(int(word[5:]) for word in sys.argv if word.startswith("--fd="))
connection, _ = socket.socket(fileno=number).accept()
print("Client connected, servicing requests", flush=True)
while connection.recv(100):
    pass
"""


class House:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.guest = FakeGuest()
        self.guest.file_systems = ("fuse", "virtiofs")
        self.program = folder / "virtiofsd"
        self.says(PROGRAM)
        (folder / "run").mkdir()
        self.shares = self.again()

    def says(self, program: str) -> None:
        self.program.write_text(program)
        self.program.chmod(0o755)

    def again(self) -> GuestShares:
        async def find() -> Virtiofsd:
            return Virtiofsd(str(self.program), True, True, True)

        return GuestShares(self.folder / "run", self.guest, self.guest, user="guest", find=find)

    def share(self, **more: object) -> Share:
        source = self.folder / "src"
        source.mkdir(exist_ok=True)
        fields = {"host_uid": os.getuid(), "host_gid": os.getgid(), "way": Way.VIRTIOFS, **more}
        return Share(name="src", source=str(source), target="/src", **fields)  # type: ignore[arg-type]  # of many types

    def records(self) -> list[Path]:
        return list((self.folder / "run").glob("*.json"))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.guest.close()


async def test_it_comes_and_goes(house: House) -> None:
    record = await house.shares.mount(house.share())
    assert (record.way, record.reason) == (Way.VIRTIOFS, "virtiofs, as wanted.")
    assert list(house.guest.ports) == [record.device] and house.guest.mounted == {"/src"}
    assert house.again().server(house.share()) == record
    assert not list((house.folder / "run").glob("*.sock"))
    await house.shares.unmount(house.share())
    assert not house.guest.ports and not house.guest.mounted and house.records() == []
    with pytest.raises(ProcessLookupError):
        os.kill(record.pid, 0)


async def test_it_is_chosen_unless_root_shares(house: House) -> None:
    record = await house.shares.mount(house.share(way=None))
    if os.geteuid() == 0:
        assert record.way is Way.SFTP and "set-uid" in record.reason
    else:
        assert (record.way, record.reason) == (Way.VIRTIOFS, "virtiofs: the fastest.")
    await house.shares.unmount(house.share(way=None))


@pytest.mark.parametrize("wrong", ["program", "device"])
async def test_where_it_fails_sftp_takes_over_and_says_why(house: House, wrong: str) -> None:
    if wrong == "program":
        house.says("#!/bin/sh\necho the sandbox failed\nexit 1\n")
    else:
        house.guest.no_folder_fits = True
    said = "the sandbox failed" if wrong == "program" else "it does not fit"
    with pytest.raises((LaunchFailed, EngineError), match=said):
        await house.shares.mount(house.share())
    assert not house.guest.ports and house.records() == []
    share = house.share(way=None, host_uid=os.getuid())
    if os.geteuid() != 0:
        record = await house.shares.mount(share)
        assert record.way is Way.SFTP and said in record.reason
        await house.shares.unmount(share)


async def test_a_guest_without_shared_memory_takes_none(house: House) -> None:
    house.guest.no_folders = "the guest was started without memory that can be shared"
    with pytest.raises(HostLacks, match="without memory that can be shared"):
        await house.shares.mount(house.share())


async def test_a_risk_is_taken_only_by_who_wants_it(house: House) -> None:
    house.guest.risk = "a mount may hang"
    assert (await house.shares.mount(house.share())).way is Way.VIRTIOFS
    await house.shares.unmount(house.share())
    record = await house.shares.mount(house.share(way=None))
    assert record.way is Way.SFTP and "no virtiofs: a mount may hang" in record.reason
    await house.shares.unmount(house.share(way=None))


async def test_one_that_dies_is_told_and_another_takes_its_place(house: House) -> None:
    share = house.share()
    first = await house.shares.mount(share)
    os.kill(first.pid, signal.SIGKILL)
    assert await asyncio.wait_for(house.shares.lost(), 30) == share
    second = await house.shares.mount(share)
    assert second.pid != first.pid and list(house.guest.ports) == [second.device]
    await house.shares.unmount(share)


async def test_one_that_died_under_the_guest_is_told_until_its_restart(house: House) -> None:
    share = house.share()
    first = await house.shares.mount(share)
    os.kill(first.pid, signal.SIGKILL)
    await asyncio.wait_for(house.shares.lost(), 30)
    house.guest.keeps_folders = True
    for attempt in (house.shares.mount, house.shares.unmount):
        with pytest.raises(EngineError, match="until the guest is restarted"):
            await attempt(share)
    assert first.device in house.guest.ports
    house.guest.keeps_folders = False
    await house.shares.mount(share)
    assert first.device not in house.guest.ports
    await house.shares.unmount(share)


async def test_a_guest_that_was_reset_finds_its_device(house: House) -> None:
    share = house.share()
    first = await house.shares.mount(share)
    house.guest.mounted.clear()
    await house.shares.after_reset(share)
    assert await house.shares.mount(share) == first and house.guest.mounted == {"/src"}
    await house.shares.dropped(share)
    assert not house.guest.ports and house.records() == []


async def test_an_update_before_the_wait_begins_is_not_missed() -> None:
    progress = Progress()
    changed = progress.changed()
    progress.update(("ssh",), "", "")
    await asyncio.wait_for(changed, 30)
