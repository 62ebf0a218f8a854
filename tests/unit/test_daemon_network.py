"""The daemon's rooms with the house's network: there when somebody needs it, and gone after."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from guesthouse import daemon
from guesthouse.daemon import open_rooms
from guesthouse.drivers.qemu.cards import network_of
from guesthouse.drivers.qemu.identity import Identities, Needs
from guesthouse.errors import InvalidInput
from guesthouse.host.capabilities import NETWORKS, lacking
from guesthouse.host.folders import prepare, resolve
from guesthouse.host.keeper_client import KeeperClient, SpawnRequest
from guesthouse.host.launcher import FdTable
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.namespace.idbook import IdBook
from guesthouse.host.process import boot_id, start_ticks
from guesthouse.model.folders import Folders
from guesthouse.model.guest import Guest, LaunchRecord
from guesthouse.operations.deletion import remove_guest
from guesthouse.operations.guest_ids import forget_ids
from guesthouse.operations.networking import default_network
from guesthouse.operations.rooms import Rooms

from ..contract.driver_house import make_guest, nic
from ..house_network import network
from .namespace_house import need_ids, need_tun

pytestmark = pytest.mark.rootless
LAN = network()
NAMESPACE = "namespace.json"


@pytest.fixture
async def folders() -> AsyncIterator[Folders]:
    need_ids()
    need_tun()
    with tempfile.TemporaryDirectory(prefix="gh-") as folder:
        names = ("STATE", "CACHE", "RUNTIME", "CONFIG")
        env = {**os.environ, **{f"GUESTHOUSE_{n}": f"{folder}/{n.lower()}" for n in names}}
        made = resolve(env, uid=os.geteuid())
        prepare(made)
        yield made
        client = await KeeperClient.connect(made.keeper_socket, state=made.keeper_state)
        await client.quit(force=True)
        client.close()


async def write(rooms: Rooms, *guests: Guest) -> None:
    puts = [rooms.documents.guests.put_op(guest) for guest in guests]
    puts.append(rooms.documents.networks.put_op(LAN))
    await rooms.view.wait_for(await rooms.documents.store.commit(puts))


async def attach(rooms: Rooms, guest: Guest) -> None:
    backend = network_of(rooms.driver._networks, guest.spec.nics[0].network)
    await backend.attach(guest.id, guest.spec.nics[0], 0, hostname=guest.name)


def lives(guest: Guest) -> Guest:
    """A guest whose process is this one."""
    pid = os.getpid()
    launch = LaunchRecord(
        incarnation=1, argv=(), machine="", cpu="", accelerator="", accelerator_reason="",
        engine="", boot=guest.spec.boot, spec=guest.spec, pid=pid, pid_start=start_ticks(pid),
        boot_id=boot_id(), launched_at=0.0,
    )  # fmt: skip
    return msgspec.structs.replace(guest, launch=launch)


async def test_it_stays_for_guests_that_live_and_goes_with_the_last(folders: Folders) -> None:
    record = folders.runtime / NAMESPACE
    guest = make_guest(name="web", number=3, nics=(nic(network=LAN.id),))
    async with open_rooms(folders) as (rooms, _keeper, _probed):
        assert not record.exists(), "nobody needs it"
        with pytest.raises(InvalidInput, match="no network"):
            await attach(rooms, guest)
        await write(rooms, lives(guest))
        await attach(rooms, guest)
        assert [lease.address4 for lease in rooms.view.leases.values()] == ["10.201.1.25"]
    before = record.read_text()
    async with open_rooms(folders) as (rooms, _keeper, _probed):
        assert record.read_text() == before, "found again"
        backend = network_of(rooms.driver._networks, LAN.id)
        assert [seat.name for seat in backend._seats.values()] == ["web"]
        await remove_guest(rooms, guest.id, ())
        assert not backend._seats and not rooms.view.leases
    assert not record.exists()


async def test_what_is_left_of_guests_that_ended_goes(folders: Folders) -> None:
    guest = make_guest(name="web", number=3, nics=(nic(network=LAN.id),))
    async with open_rooms(folders) as (rooms, _keeper, _probed):
        await write(rooms, guest)
        await attach(rooms, guest)
    assert (folders.runtime / NAMESPACE).exists()
    async with open_rooms(folders) as (rooms, _keeper, _probed):
        backend = network_of(rooms.driver._networks, LAN.id)
        links = (await backend._namespace.run(["ip", "-o", "link"])).text
        assert LAN.bridge not in links and "t3-0" not in links
        assert len(rooms.view.leases) == 1, "its address is kept"
    assert not (folders.runtime / NAMESPACE).exists()


async def test_ids_are_kept_until_the_guest_is_deleted(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "book_folder", lambda _uid: tmp_path)
    book = IdBook(tmp_path, folders.state)

    async def held() -> dict[str, int]:
        return {one.guest: one.slot for one in await book.all()}

    web, db = make_guest(name="web", number=3), make_guest(name="db", number=4)
    async with open_rooms(folders) as (rooms, _keeper, _probed):
        await write(rooms, web, db)
        for guest in (web, db):
            await rooms.driver._confined(guest.id, Needs(Path("/bin/true"), host_network=True))
        await book.take("vm", "of a guest whose deletion was cut short", limit=10)
    async with open_rooms(folders) as (rooms, _keeper, _probed):
        assert await held() == {web.id: 0, db.id: 1}, "only what nobody has is given back"
        await remove_guest(rooms, web.id, ())
        assert await held() == {db.id: 1}


async def test_ids_of_a_living_process_are_not_free(folders: Folders, tmp_path: Path) -> None:
    """A guest whose document was lost may run on; its ids are no other's."""
    book = IdBook(tmp_path, folders.state)
    identities = Identities(HouseNamespace(folders.runtime), lambda: book, am_root=True)
    for guest in ("running", "gone"):
        await book.take("vm", guest, limit=10)
    async with open_rooms(folders) as (rooms, keeper, _probed):
        client = await keeper.client()
        log = folders.runtime / "log"
        with FdTable() as none:
            request = SpawnRequest(key="running.1", argv=("/bin/sleep", "1000"), env={}, stderr=log)
            spawned = await client.spawn(request, none)
        await forget_ids(identities, keeper, rooms.view)
        assert [one.guest for one in await book.all()] == ["running"]
        os.kill(spawned.pid, signal.SIGKILL)


async def test_the_default_network_is_made_here_and_changes_while_guests_are_on_it(
    folders: Folders,
) -> None:
    async with open_rooms(folders) as (rooms, _keeper, _probed):
        networks = rooms.facts().capability(NETWORKS)
        assert networks is not None
        if lacking(rooms.facts().capabilities) is not None:
            assert not networks.available and networks.cure
            pytest.skip(networks.reason)
        assert networks.available
        made = await default_network(rooms)
        assert await default_network(rooms) == made, "there is one"
        await rooms.refresh_networks()
        assert not (folders.runtime / NAMESPACE).exists(), "nobody is on it"
        guest = make_guest(name="web", number=3, nics=(nic(network=made.id),))
        await write(rooms, guest)
        await attach(rooms, guest)
        (lease,) = rooms.view.leases.values()
        assert lease.address4 and lease.address6
        backend = network_of(rooms.driver._networks, made.id)
        changed = await rooms.documents.networks.update(
            made.id, lambda one: msgspec.structs.replace(one, mtu=1400)
        )
        await rooms.view.wait_for(changed.revision)
        await rooms.refresh_networks()
        link = (await backend._namespace.run(["ip", "-o", "link", "show", made.bridge])).text
        assert "mtu 1400" in link
        await rooms.pool.write_copy("leases", lease)
        await remove_guest(rooms, guest.id, ())
        assert f"leases/{lease.id}" not in rooms.pool.copies.keys


async def test_a_lost_database_costs_no_guest_its_network(folders: Folders) -> None:
    record = folders.runtime / NAMESPACE
    guest = lives(make_guest(name="web", number=3, nics=(nic(network=LAN.id),)))
    async with open_rooms(folders) as (rooms, _keeper, _probed):
        await write(rooms, guest)
        await attach(rooms, guest)
        leases = dict(rooms.view.leases)
    before = record.read_text()
    for path in folders.state.glob("guesthouse.db*"):
        path.unlink()
    async with open_rooms(folders):
        pass
    assert record.read_text() == before, "a daemon that knows of nothing leaves it alone"
    async with open_rooms(folders) as (rooms, _keeper, _probed):
        puts = [rooms.documents.leases.put_op(lease) for lease in leases.values()]
        await rooms.documents.store.commit(puts)
        await write(rooms, guest)
        await rooms.recover_networks()
        backend = network_of(rooms.driver._networks, LAN.id)
        assert [seat.name for seat in backend._seats.values()] == ["web"]
        assert record.read_text() == before
        await remove_guest(rooms, guest.id, ())
    assert not record.exists()
