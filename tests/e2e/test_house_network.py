"""Two real guests on the house's network, launched by the driver."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.drivers.base import Running
from guesthouse.errors import PortTaken
from guesthouse.guestos.agent import Agent
from guesthouse.host.namespace.idplan import FIRST_VM
from guesthouse.model.device import Publish
from guesthouse.model.guest import Guest
from guesthouse.network.ports import reserve
from tests.contract.driver_house import DriverHouse, driver_house, launched, nic, own_identities
from tests.house_network import TestHouse, test_house
from tests.unit.namespace_house import identity, need_ids, need_tun

from .qemu_guests import SECONDS, ended, micro_guest, up

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]


@pytest.fixture
async def house() -> AsyncIterator[tuple[DriverHouse, TestHouse]]:
    need_ids()
    need_tun()
    folder = Path(tempfile.mkdtemp(prefix="gq-"))
    (folder / "net").mkdir()
    async with driver_house("qemu", folder) as drivers, test_house(folder / "net") as nets:
        # One namespace for both, as the daemon has it.
        drivers.identities = own_identities(nets.namespace, folder)
        drivers.driver = drivers.qemu({"lan": nets.network})
        yield drivers, nets


async def said(drivers: DriverHouse, guest: Guest, *argv: str) -> str:
    agent = Agent(drivers.resources(guest).runtime / "agent.sock")
    try:
        done = await agent.exec(list(argv), timeout=SECONDS)
        return (done.stdout + done.stderr).decode()
    finally:
        await agent.close()


async def pings(drivers: DriverHouse, guest: Guest, whom: str, *flags: str) -> None:
    """Until it answers: the guest is given its address some time after it came up."""
    async with asyncio.timeout(SECONDS):
        while "1 packets received" not in (
            text := await said(drivers, guest, "ping", *flags, "-c", "1", "-W", "2", whom)
        ):
            assert "applet not found" not in text
            await asyncio.sleep(0.5)


async def test_two_guests_ping_each_other_by_name(house: tuple[DriverHouse, TestHouse]) -> None:
    drivers, nets = house
    web = micro_guest(name="web", nics=(nic(network="lan"),))
    wanted = Publish(host_port=0, guest_port=80)
    port = await reserve(wanted, {}, privileged=False)
    db = micro_guest(name="db", number=8, nics=(nic(network="lan", ports=(port,)),))
    running: list[Running] = [await up(drivers, web), await up(drivers, db)]
    await pings(drivers, web, "db")
    await pings(drivers, db, "web")
    await pings(drivers, db, "web", "-6")
    host, inside = identity("net"), nets.namespace.facts.net
    own = {identity("net", one.record.pid) for one in running}
    assert len(own) == 2 and not own & {host, f"net:[{inside}]"}
    uids = {Path(f"/proc/{one.record.pid}").stat().st_uid for one in running}
    assert uids == {nets.namespace.plan.outside(FIRST_VM + slot)[0] for slot in range(2)}
    seat = nets.records.seats[db.id, 0]
    assert seat.address(4) in await said(drivers, db, "ip", "-4", "address", "show", "eth0")
    with pytest.raises(PortTaken, match="slirp4netns"):
        await reserve(port, {}, privileged=False)
    await running[1].kill()
    await ended(running[1])
    await reserve(port, {}, privileged=False)
    # The next incarnation has the same card, address and name.
    again = await up(drivers, launched(db, running[1].record), incarnation=2)
    await pings(drivers, web, "db")
    for one in (running[0], again):
        await one.kill()
        await ended(one)
