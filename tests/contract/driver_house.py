"""What a driver needs around it in a test: a guest document, folders, files, a keeper."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from guesthouse.drivers.base import Driver, Resources
from guesthouse.drivers.fake import FakeDriver
from guesthouse.drivers.qemu.driver import Confine, QemuDriver
from guesthouse.drivers.qemu.identity import Identities
from guesthouse.drivers.qemu.keeping import KeeperLink
from guesthouse.host.keeper_client import KeeperClient
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.namespace.idbook import IdBook
from guesthouse.host.probe import probe
from guesthouse.model.device import Nic, new_mac
from guesthouse.model.guest import BootPath, Guest, GuestSpec, GuestStatus, LaunchRecord
from guesthouse.model.host import HostFacts
from guesthouse.model.ids import new_id
from guesthouse.model.image import BootFiles
from guesthouse.model.states import GuestState
from guesthouse.network.base import NetworkBackend
from guesthouse.network.builtin import Builtin

MEBIBYTE = 1 << 20


def make_guest(*, name: str = "web", number: int = 7, **spec: Any) -> Guest:
    wanted = {"image": "none", "image_id": new_id(), "memory": 64 * MEBIBYTE, **spec}
    return Guest(
        id=new_id(),
        name=name,
        uuid=str(uuid.uuid4()),
        number=number,
        created_at=0.0,
        spec=GuestSpec(**wanted),
        status=GuestStatus(state=GuestState.STOPPED, since=0.0),
    )


def nic(**fields: Any) -> Nic:
    return Nic(mac=new_mac(), **fields)


def launched(guest: Guest, record: LaunchRecord) -> Guest:
    return msgspec.structs.replace(guest, launch=record)


_probed: list[HostFacts] = []


async def this_host() -> HostFacts:
    """Probed once for all tests."""
    if not _probed:
        with tempfile.TemporaryDirectory() as cache:
            _probed.append(await probe(Path(cache)))
    return _probed[0]


def own_identities(namespace: HouseNamespace, folder: Path) -> Identities:
    """With a book of ids in `folder`, beside the user's real one."""
    book = IdBook(folder / "ids", folder)
    return Identities(namespace, lambda: book, am_root=os.geteuid() == 0)


class DriverHouse:
    """Makes drivers on one folder; `again` is what a restarted daemon has."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.driver: Driver
        self.keeper: KeeperLink | None = None
        self.namespace = HouseNamespace(folder)
        self.identities = own_identities(self.namespace, folder)

    def resources(self, guest: Guest, **fields: Any) -> Resources:
        runtime, state = self.folder / "r" / guest.id[-6:], self.folder / "s" / guest.id
        for path in (runtime, state):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        wanted = {"disks": (), "seed": "", "boot": BootPath.DISK, **fields}
        return Resources(runtime=runtime, state=state, **wanted)

    async def open(self) -> None:
        if self.kind == "fake":
            self.driver = FakeDriver(self.folder / "fake")
            return
        await this_host()
        (self.folder / "keeper").mkdir(exist_ok=True)
        self.keeper = KeeperLink(self.folder / "keeper.sock", self.folder / "keeper")
        self.driver = self.qemu({"builtin": Builtin()})

    def qemu(
        self,
        networks: Mapping[str, NetworkBackend],
        *,
        facts: HostFacts | None = None,
        confined: Confine | None = None,
    ) -> QemuDriver:
        """A driver whose guests are as in a real house, if nothing else is said."""
        assert self.keeper is not None
        found = facts or _probed[0]
        return QemuDriver(
            lambda: found,
            self.keeper,
            networks,
            am_root=os.geteuid() == 0,
            confined=confined or self.identities.confinement,
        )

    async def again(self) -> None:
        """The daemon ends (its guests detached by the test, or not) and another one starts."""
        if self.keeper is not None:
            await self.keeper.close()
        await self.open()

    async def close(self) -> None:
        for key in await self.driver.stray([]):
            await self.driver.end_stray(key)
        if self.keeper is not None:
            await self.keeper.close()
            client = await KeeperClient.connect(
                self.folder / "keeper.sock", state=self.folder / "keeper"
            )
            await client.quit(force=True)
            client.close()
        await self.namespace.dissolve()


@asynccontextmanager
async def driver_house(kind: str, folder: Path) -> AsyncIterator[DriverHouse]:
    house = DriverHouse(kind, folder)
    await house.open()
    try:
        yield house
    finally:
        await house.close()
        shutil.rmtree(folder, ignore_errors=True)


def boot_files(folder: Path) -> BootFiles:
    """Of an image folder with kernel, initrd and cmdline."""
    return BootFiles(
        kernel=str(folder / "kernel"),
        initrd=str(folder / "initrd"),
        kernel_digest="",
        initrd_digest="",
        cmdline=(folder / "cmdline").read_text().strip(),
    )
