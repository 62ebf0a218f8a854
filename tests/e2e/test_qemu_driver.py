"""The life of real guests under the QEMU driver, and each way in which it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.drivers.base import (
    SERIAL_LOG,
    Exit,
)
from guesthouse.drivers.qemu.opening import QMP_SOCKET
from guesthouse.errors import DeadlineExceeded, LaunchFailed, QmpFailed
from guesthouse.guestos.agent import Agent
from guesthouse.host.keeper_client import KeeperClient
from guesthouse.host.process import ProcessHandle, is_alive
from guesthouse.model.guest import BootPath, OnPanic
from tests.contract.driver_house import (
    MEBIBYTE,
    DriverHouse,
    driver_house,
    launched,
    make_guest,
    nic,
)

from .qemu_guests import (
    SECONDS,
    ended,
    launch,
    micro_guest,
    type_in,
    until,
    up,
    within,
)

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]


@pytest.fixture
async def house() -> AsyncIterator[DriverHouse]:
    async with driver_house("qemu", Path(tempfile.mkdtemp(prefix="gq-"))) as made:
        yield made


async def test_boot_pause_and_power_button(house: DriverHouse) -> None:
    guest = micro_guest(nics=(nic(),))
    running = await up(house, guest)
    resources = house.resources(guest)
    agent = Agent(resources.runtime / "agent.sock")
    await agent.ping(timeout=SECONDS)
    await running.pause()
    assert await running.state() == ("paused", "user")
    await running.resume()
    await agent.ping(timeout=SECONDS)
    await agent.close()
    events = running.events()
    await running.power_button()
    await until(events, "shutdown")
    assert (await ended(running)).reason == "guest-shutdown"
    assert "Power down" in (resources.state / SERIAL_LOG).read_text(errors="replace")


async def test_reset_boots_again_in_the_same_process(house: DriverHouse) -> None:
    running = await up(house, micro_guest())
    events = running.events()
    await running.reset()
    await until(events, "reset")
    await until(events, "agent-open")
    assert is_alive(running.record.pid, running.record.pid_start)


async def test_reboot_in_a_first_boot_by_kernel_ends_the_process(house: DriverHouse) -> None:
    guest = make_guest(boot=BootPath.FIRST_KERNEL, memory=128 * MEBIBYTE)
    running = await up(house, guest)
    await type_in(house, running, "reboot -f")
    assert (await ended(running)).reason == "guest-reset"

    running = await up(house, launched(guest, running.record), incarnation=2)
    await running.reset()
    assert (await ended(running)).reason == "guest-reset"


@pytest.mark.parametrize("how", [OnPanic.STOP, OnPanic.PAUSE])
async def test_panic(house: DriverHouse, how: OnPanic) -> None:
    guest = micro_guest(on_panic=how)
    running = await up(house, guest)
    events = running.events()
    await type_in(house, running, "echo c >/proc/sysrq-trigger")
    await until(events, "panic")
    if how is OnPanic.STOP:
        assert (await ended(running)).reason == "guest-panic"
        return
    await until(events, "paused")
    assert await running.state() == ("paused", "panic")
    with pytest.raises(QmpFailed, match="Reset it"):
        await running.resume()
    await running.reset()
    await until(events, "agent-open")
    assert await running.state() == ("running", "")


async def test_crash_of_the_engine_is_told_from_a_kill(house: DriverHouse) -> None:
    running = await launch(house, micro_guest())
    os.kill(running.record.pid, signal.SIGSEGV)
    end = await ended(running)
    assert end.reason == "crash"
    assert "SIGSEGV" in end.message


async def test_signal_from_outside_is_told(house: DriverHouse) -> None:
    running = await launch(house, micro_guest())
    os.kill(running.record.pid, signal.SIGTERM)
    end = await ended(running)
    assert end.reason == "quit"
    assert "signal" in end.message


async def test_nothing_of_ours_stays_open_here(house: DriverHouse) -> None:
    guest = micro_guest(nics=(nic(),))
    refused = make_guest(cpu="no-such-cpu", number=9)

    async def round_trip(number: int) -> None:
        running = await launch(house, guest, incarnation=number)
        await running.kill()
        await ended(running)
        with pytest.raises(LaunchFailed):
            await house.driver.launch(refused, house.resources(refused), incarnation=number)

    await round_trip(1)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(2, 6):
        await round_trip(number)
    await within(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_attach_after_the_daemon_ended_and_the_guest_went_on(house: DriverHouse) -> None:
    guest = micro_guest()
    running = await up(house, guest)
    await running.detach()
    await house.again()
    found = await house.driver.attach(launched(guest, running.record), house.resources(guest))
    assert not isinstance(found, Exit)
    assert await found.state() == ("running", "")
    events = found.events()
    await found.power_button()
    await until(events, "exit")
    assert (await found.wait_exit()).reason == "guest-shutdown"


async def test_guest_that_ended_while_no_daemon_was_there(house: DriverHouse) -> None:
    guest = micro_guest()
    running = await up(house, guest)
    await type_in(house, running, "(sleep 2; poweroff -f) &")
    await running.detach()
    assert house.keeper is not None
    await house.keeper.close()
    await within(lambda: not is_alive(running.record.pid, running.record.pid_start))
    await house.open()
    found = await house.driver.attach(launched(guest, running.record), house.resources(guest))
    assert isinstance(found, Exit)
    assert found.reason == "guest-shutdown"


async def test_keeper_killed_guest_lives_and_its_end_is_still_told(house: DriverHouse) -> None:
    guest = micro_guest()
    running = await up(house, guest)
    assert house.keeper is not None
    old = await house.keeper.client()
    old_pid = old.pid
    os.kill(old_pid, signal.SIGKILL)
    async with asyncio.timeout(SECONDS):
        while True:
            client = await house.keeper.client()
            if client.pid != old_pid and [p.key for p in await client.processes()]:
                break
            await asyncio.sleep(0.05)
    info = await client.info(f"{guest.id}.1")
    assert not info.child
    assert await running.state() == ("running", "")
    await running.power_button()
    assert (await ended(running)).reason == "guest-shutdown"


async def test_keeper_killed_while_no_daemon_was_there(house: DriverHouse) -> None:
    guest = micro_guest()
    running = await up(house, guest)
    await running.detach()
    assert house.keeper is not None
    pid = (await house.keeper.client()).pid
    await house.keeper.close()
    os.kill(pid, signal.SIGKILL)
    await house.open()
    assert house.keeper is not None
    found = await house.driver.attach(launched(guest, running.record), house.resources(guest))
    assert not isinstance(found, Exit)
    keys = [p.key for p in await (await house.keeper.client()).processes()]
    assert keys == [f"{guest.id}.1"]
    await found.kill()
    assert (await ended(found)).reason in {"killed", "unknown"}


async def test_keeper_with_nothing_to_keep_ends_with_its_daemon(house: DriverHouse) -> None:
    guest = micro_guest()
    running = await launch(house, guest)
    assert house.keeper is not None
    keeper = ProcessHandle.open((await house.keeper.client()).pid)
    await running.detach()
    await house.keeper.close()
    with pytest.raises(DeadlineExceeded):
        await keeper.wait(1.0)  # a guest lives
    await house.open()
    await house.driver.end_stray(f"{guest.id}.1")
    await house.keeper.close()
    await keeper.wait(SECONDS)
    await house.open()


async def test_lost_monitor_is_connected_again(house: DriverHouse) -> None:
    guest = micro_guest()
    running = await launch(house, guest)
    events = running.events()
    session = running._session  # type: ignore[attr-defined]  # the connection itself is to be cut
    transport = session._client._writer.transport
    transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    await until(events, "lost")
    event = await until(events, "resumed")
    assert event.detail["reconnected"] is True
    assert await running.state() == ("running", "")


async def test_busy_monitor_leaves_the_guest_unobserved_not_dead(
    house: DriverHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program holds the only place at the monitor; later it goes."""
    guest = micro_guest()
    running = await launch(house, guest)
    await running.detach()
    resources = house.resources(guest)
    holder, writer = await asyncio.open_unix_connection(resources.runtime / QMP_SOCKET)
    await holder.readline()
    monkeypatch.setattr("guesthouse.drivers.qemu.driver._ATTACH_SECONDS", 0.5)
    found = await house.driver.attach(launched(guest, running.record), resources)
    assert not isinstance(found, Exit)
    events = found.events()
    writer.close()
    await until(events, "resumed")
    assert await found.state() == ("running", "")


async def test_launch_that_qemu_refuses_quotes_it_and_leaves_nothing(house: DriverHouse) -> None:
    guest = make_guest(cpu="no-such-cpu")
    resources = house.resources(guest)
    with pytest.raises(LaunchFailed, match="no-such-cpu"):
        await house.driver.launch(guest, resources, incarnation=1)
    assert not list(resources.runtime.iterdir())
    assert house.keeper is not None
    client: KeeperClient = await house.keeper.client()
    assert await client.processes() == []
    assert await client.exit_records() == []


async def test_cancelled_launch_leaves_nothing(house: DriverHouse) -> None:
    guest = micro_guest()
    resources = house.resources(guest)
    for delay in (0.005, 0.02, 0.04):
        task = asyncio.create_task(launch(house, guest))
        await asyncio.sleep(delay)
        task.cancel()
        try:
            running = await task
        except asyncio.CancelledError:
            pass
        else:
            await running.kill()
            await ended(running)
            assert house.keeper is not None
            await house.keeper.forget(f"{guest.id}.1")
        assert await house.driver.stray([]) == []
        assert [p.name for p in resources.runtime.iterdir() if p.name == QMP_SOCKET] == []
