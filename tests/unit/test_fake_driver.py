"""What the fake driver can be told to do, and that what answers inside it really answers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from guesthouse.drivers.base import AGENT_SOCKET, SSH_SOCKET, Exit
from guesthouse.drivers.fake import FakeDriver
from guesthouse.errors import DeadlineExceeded, LaunchFailed, NoMemory, QmpFailed
from guesthouse.guestos.agent import Agent
from guesthouse.guestos.ssh import GuestSsh
from guesthouse.model.guest import BootPath
from tests.contract.driver_house import DriverHouse, driver_house, launched, make_guest, nic

SECONDS = 60.0


@pytest.fixture
async def house() -> AsyncIterator[DriverHouse]:
    async with driver_house("fake", Path(tempfile.mkdtemp(prefix="gf-"))) as made:
        yield made


def fake(house: DriverHouse) -> FakeDriver:
    assert isinstance(house.driver, FakeDriver)
    return house.driver


async def test_ordered_failures(house: DriverHouse) -> None:
    guest = make_guest()
    fake(house).fail("launch", NoMemory("none left"), times=2)
    for _ in range(2):
        with pytest.raises(NoMemory):
            await house.driver.launch(guest, house.resources(guest), incarnation=1)
    running = await house.driver.launch(guest, house.resources(guest), incarnation=1)
    fake(house).fail("pause", LaunchFailed("no"))
    with pytest.raises(LaunchFailed):
        await running.pause()
    await running.pause()


async def test_guest_ends_by_itself_while_watched_and_while_not(house: DriverHouse) -> None:
    guest = make_guest()
    running = await house.driver.launch(guest, house.resources(guest), incarnation=1)
    fake(house).exit_guest(guest.id, "guest-panic", "It crashed.")
    end = await asyncio.wait_for(running.wait_exit(), SECONDS)
    assert end == Exit("guest-panic", "It crashed.")

    running = await house.driver.launch(guest, house.resources(guest), incarnation=2)
    await running.detach()
    await house.again()
    fake(house).exit_guest(guest.id, "crash")
    found = await house.driver.attach(launched(guest, running.record), house.resources(guest))
    assert isinstance(found, Exit)
    assert found.reason == "crash"


@pytest.mark.parametrize("reason", ["panic", "engine-error"])
async def test_only_a_reset_ends_a_panic(house: DriverHouse, reason: str) -> None:
    guest = make_guest()
    running = await house.driver.launch(guest, house.resources(guest), incarnation=1)
    events = running.events()
    fake(house).stop_guest(guest.id, reason)
    assert await running.state() == ("paused", reason)
    assert (await anext(events)).kind in {"panic", "paused"}
    with pytest.raises(QmpFailed):
        await running.resume()
    await running.reset()
    assert await running.state() == ("running", "")


async def test_an_io_error_goes_on(house: DriverHouse) -> None:
    guest = make_guest()
    running = await house.driver.launch(guest, house.resources(guest), incarnation=1)
    fake(house).stop_guest(guest.id, "io-error")
    await running.resume()
    assert await running.state() == ("running", "")


async def test_power_button(house: DriverHouse) -> None:
    guest = make_guest()
    running = await house.driver.launch(guest, house.resources(guest), incarnation=1)
    await running.pause()
    await running.power_button()
    assert await running.state() == ("paused", "user")
    await running.resume()
    await running.power_button()
    assert (await asyncio.wait_for(running.wait_exit(), SECONDS)).reason == "guest-shutdown"


async def test_reset_in_a_first_boot_by_kernel_ends_it(house: DriverHouse) -> None:
    guest = make_guest(boot=BootPath.FIRST_KERNEL)
    resources = house.resources(guest, boot=BootPath.KERNEL)
    running = await house.driver.launch(guest, resources, incarnation=1)
    await running.reset()
    assert (await asyncio.wait_for(running.wait_exit(), SECONDS)).reason == "guest-reset"


async def test_agent_and_ssh_answer(house: DriverHouse) -> None:
    guest = make_guest(nics=(nic(),))
    resources = house.resources(guest)
    running = await house.driver.launch(guest, resources, incarnation=1)
    agent = Agent(resources.runtime / AGENT_SOCKET)
    await agent.ping()
    assert [a.mac for a in await agent.addresses()] == [guest.spec.nics[0].mac]
    assert await agent.hostname() == guest.name
    key = asyncssh.generate_private_key("ssh-ed25519").export_private_key()
    ssh = GuestSsh(resources.runtime / SSH_SOCKET, key)
    await ssh.answers(timeout=SECONDS)
    ended, out, err = await ssh.run(["cat"], data=b"hello", timeout=SECONDS)
    assert (ended.code, out, err) == (0, b"hello", b"")
    await ssh.close()
    await agent.shutdown("powerdown")
    assert (await asyncio.wait_for(running.wait_exit(), SECONDS)).reason == "guest-shutdown"
    await agent.close()


async def test_a_rebooted_host(house: DriverHouse) -> None:
    guest = make_guest()
    running = await house.driver.launch(guest, house.resources(guest), incarnation=1)
    await running.detach()
    later = FakeDriver(house.folder / "fake", boot="later")
    found = await later.attach(launched(guest, running.record), house.resources(guest))
    assert isinstance(found, Exit)
    assert found.reason == "host-rebooted"
    assert await later.stray([]) == []


async def test_a_card_goes_unless_the_guest_is_paused(house: DriverHouse) -> None:
    guest = make_guest(nics=(nic(),))
    running = await house.driver.launch(guest, house.resources(guest), incarnation=1)
    events = running.events()
    card = nic(index=3, plug=0)
    await running.plug_nic(card)
    for _ in range(2):  # not there any more is fine
        await running.unplug_nic(3)
    assert (await anext(events)).kind == "unplugged"
    await running.plug_nic(card)
    await running.pause()
    with pytest.raises(DeadlineExceeded):
        await running.unplug_nic(3)
