"""One suite that every driver passes. Guests here are firmware only, so that it stays quick."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guesthouse.drivers.base import DiskSource, DriverEvent, Exit, Running
from guesthouse.errors import (
    Conflict,
    GuesthouseError,
    HostLacks,
    InvalidInput,
    InvalidTransition,
    NotFound,
    PortTaken,
)
from guesthouse.host.process import is_alive
from guesthouse.model.device import Link, Publish
from guesthouse.model.guest import Guest

from .driver_house import DriverHouse, driver_house, launched, make_guest, nic

SECONDS = 60.0


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.qemu)])
async def house(request: pytest.FixtureRequest) -> AsyncIterator[DriverHouse]:
    # Short paths: sockets have to fit into 107 bytes.
    async with driver_house(request.param, Path(tempfile.mkdtemp(prefix="gd-"))) as made:
        yield made


async def start(house: DriverHouse, guest: Guest, incarnation: int = 1, **named: Any) -> Running:
    resources = house.resources(guest)
    return await house.driver.launch(guest, resources, incarnation=incarnation, **named)


async def ended(running: Running) -> Exit:
    return await asyncio.wait_for(running.wait_exit(), SECONDS)


async def kinds_until(events: AsyncIterator[DriverEvent], kind: str) -> list[str]:
    seen: list[str] = []
    async with asyncio.timeout(SECONDS):
        async for event in events:
            seen.append(event.kind)
            if event.kind == kind:
                return seen
    raise AssertionError(f"the events ended before {kind!r}: {seen}")


def a_port(**fields: Any) -> Publish:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return Publish(host_port=sock.getsockname()[1], guest_port=80, **fields)


async def test_launch_tells_what_was_started(house: DriverHouse) -> None:
    guest = make_guest(nics=(nic(),))
    running = await start(house, guest)
    record = running.record
    assert record.incarnation == 1
    assert record.spec == guest.spec
    assert record.argv
    assert record.machine
    assert record.engine
    assert record.accelerator in {"kvm", "tcg"}
    assert await running.state() == ("running", "")
    if house.kind == "qemu":
        assert is_alive(record.pid, record.pid_start)


async def test_paused_launch_runs_when_resumed(house: DriverHouse) -> None:
    running = await start(house, make_guest(), paused=True)
    assert await running.state() == ("paused", "starting")
    events = running.events()
    await running.resume()
    assert "resumed" in await kinds_until(events, "resumed")
    assert await running.state() == ("running", "")


async def test_pause_and_resume_and_again(house: DriverHouse) -> None:
    running = await start(house, make_guest())
    events = running.events()
    for _ in range(2):
        await running.pause()
        await running.pause()
        assert await running.state() == ("paused", "user")
        await running.resume()
        await running.resume()
        assert await running.state() == ("running", "")
    await running.kill()
    seen = await kinds_until(events, "exit")
    assert [k for k in seen if k in {"paused", "resumed"}] == ["paused", "resumed"] * 2
    assert seen[-1] == "exit"


async def test_reset_keeps_the_process(house: DriverHouse) -> None:
    running = await start(house, make_guest())
    events = running.events()
    await running.reset()
    await kinds_until(events, "reset")
    assert await running.state() == ("running", "")


async def test_reset_of_a_paused_guest_leaves_it_paused(house: DriverHouse) -> None:
    running = await start(house, make_guest())
    await running.pause()
    events = running.events()
    await running.reset()
    await kinds_until(events, "reset")
    # As after a paused launch: before its first instruction.
    assert await running.state() == ("paused", "starting")


async def test_kill_ends_everything(house: DriverHouse) -> None:
    guest = make_guest()
    running = await start(house, guest)
    events = running.events()
    await running.kill()
    if house.kind == "qemu":
        assert not is_alive(running.record.pid, running.record.pid_start)
    assert (await ended(running)).reason == "killed"
    assert await kinds_until(events, "exit") == ["exit"]
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    # Whoever listens later learns just that.
    assert await kinds_until(running.events(), "exit") == ["exit"]
    await running.kill()
    for call in (running.state, running.pause, running.resume, running.reset, running.screenshot):
        with pytest.raises(NotFound):
            await call()
    assert not list(house.resources(guest).runtime.iterdir())


async def test_killed_in_pause(house: DriverHouse) -> None:
    running = await start(house, make_guest())
    await running.pause()
    await running.kill()
    assert (await ended(running)).reason == "killed"


async def test_many_wait_for_one_end(house: DriverHouse) -> None:
    running = await start(house, make_guest())
    waiting = [asyncio.create_task(ended(running)) for _ in range(3)]
    given_up = asyncio.create_task(running.wait_exit())
    await asyncio.sleep(0)
    given_up.cancel()
    await running.kill()
    assert {end.reason for end in await asyncio.gather(*waiting)} == {"killed"}


async def test_screenshot(house: DriverHouse) -> None:
    running = await start(house, make_guest())
    picture = await running.screenshot()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.endswith(b"IEND\xaeB`\x82")


async def test_no_screenshot_without_a_display(house: DriverHouse) -> None:
    running = await start(house, make_guest(display=False))
    with pytest.raises(InvalidInput):
        await running.screenshot()


async def test_publish_and_unpublish_live(house: DriverHouse) -> None:
    running = await start(house, make_guest(nics=(nic(),)))
    real = await running.publish(0, Publish(host_port=0, guest_port=80))
    assert real.host_port > 0
    if house.kind == "qemu":
        with socket.create_connection(("127.0.0.1", real.host_port), timeout=SECONDS):
            pass
    with pytest.raises(PortTaken):
        await running.publish(0, real)
    await running.unpublish(0, real)
    assert await running.publish(0, real) == real
    with pytest.raises(InvalidInput):
        await running.publish(1, Publish(host_port=0, guest_port=80))


async def test_ports_are_plugged_and_unplugged_live(house: DriverHouse) -> None:
    running = await start(house, make_guest())
    name = "share.a"

    async def hears_the_end(sock: socket.socket) -> bool:
        sock.setblocking(False)
        read = asyncio.get_running_loop().sock_recv(sock, 100)
        return await asyncio.wait_for(read, SECONDS) == b""

    await running.unplug_port(name)
    ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
    for index in (0, 1):  # the second takes the place of the first
        await running.plug_port(name, theirs[index].fileno(), seen_as="house.x")
        theirs[index].close()
    assert await hears_the_end(ours[0])
    with pytest.raises(BlockingIOError):
        ours[1].setblocking(False)
        ours[1].recv(1)
    await running.unplug_port(name)
    assert await hears_the_end(ours[1])
    await running.plug_port(name, theirs[2].fileno(), seen_as="house.x")
    theirs[2].close()
    await running.kill()
    assert await hears_the_end(ours[2])
    await ended(running)
    with pytest.raises(NotFound):
        await running.plug_port(name, ours[0].fileno(), seen_as="house.x")
    for sock in ours:
        sock.close()


async def test_cards_come_and_move_live(house: DriverHouse) -> None:
    guest = make_guest(nics=(nic(),))
    running = await start(house, guest)
    card = nic(index=1, plug=0)
    for _ in range(2):  # what is there already is fine
        await running.plug_nic(card)
    port = await running.publish(1, Publish(host_port=0, guest_port=80))
    with pytest.raises(Conflict):
        await running.plug_nic(nic(index=1, plug=0))
    with pytest.raises(InvalidInput):
        await running.plug_nic(nic(index=2))
    for up in (False, False, True):
        await running.set_link(1, up=up)
    down = msgspec.structs.replace(card, link=Link.DOWN)
    await running.move_nic(down)
    elsewhere = msgspec.structs.replace(card, network="lan")
    with pytest.raises((InvalidTransition, InvalidInput)):
        await running.move_nic(elsewhere)
    with pytest.raises(InvalidTransition):
        await running.unplug_nic(0)
    await running.unplug_nic(5)
    for missing in (running.move_nic(nic(index=5, plug=5)), running.set_link(5, up=True)):
        with pytest.raises(NotFound):
            await missing
    await running.detach()
    await house.again()
    spec = guest.spec.with_nic(card)
    guest = launched(msgspec.structs.replace(guest, spec=spec), running.record)
    found = await house.driver.attach(guest, house.resources(guest))
    assert not isinstance(found, Exit)
    await found.plug_nic(card)
    await found.unpublish(1, port)
    await found.kill()
    await ended(found)
    with pytest.raises(NotFound):
        await found.plug_nic(card)


async def test_port_taken_at_the_start(house: DriverHouse) -> None:
    port = a_port()
    first = await start(house, make_guest(nics=(nic(ports=(port,)),)))
    second = make_guest(name="other", number=8, nics=(nic(ports=(port,)),))
    with pytest.raises(PortTaken) as caught:
        await start(house, second)
    assert caught.value.detail["host_port"] == port.host_port
    assert caught.value.detail["holder"]
    assert not list(house.resources(second).runtime.iterdir())
    await first.kill()
    await ended(first)
    await start(house, second)


async def test_failed_launch_can_be_tried_again_with_the_same_number(house: DriverHouse) -> None:
    guest = make_guest()
    missing = DiskSource("root", (house.folder / "no.qcow2",), 1 << 30, False, "")
    with pytest.raises(NotFound):
        await house.driver.launch(guest, house.resources(guest, disks=(missing,)), incarnation=1)
    assert await house.driver.stray([]) == []
    running = await start(house, guest)
    assert await running.state() == ("running", "")


async def test_two_processes_of_one_incarnation_are_refused(house: DriverHouse) -> None:
    guest = make_guest()
    running = await start(house, guest)
    with pytest.raises(GuesthouseError) as caught:
        await house.driver.launch(guest, house.resources(guest), incarnation=1)
    assert isinstance(caught.value, Conflict)
    # The refusal has not harmed it: it can still be reached from anew.
    await running.detach()
    await house.again()
    found = await house.driver.attach(launched(guest, running.record), house.resources(guest))
    assert not isinstance(found, Exit)
    assert await found.state() == ("running", "")


async def test_next_incarnation(house: DriverHouse) -> None:
    guest = make_guest()
    first = await start(house, guest)
    await first.kill()
    await ended(first)
    guest = launched(guest, first.record)
    second = await start(house, guest, 2)
    assert second.record.incarnation == 2
    assert second.record.pid != first.record.pid
    assert await second.state() == ("running", "")


async def test_detach_and_attach_by_a_restarted_daemon(house: DriverHouse) -> None:
    guest = make_guest()
    running = await start(house, guest)
    await running.pause()
    await running.detach()
    await house.again()
    found = await house.driver.attach(launched(guest, running.record), house.resources(guest))
    assert not isinstance(found, Exit)
    assert found.record == running.record
    assert await found.state() == ("paused", "user")
    events = found.events()
    await found.resume()
    await kinds_until(events, "resumed")
    await found.screenshot()
    await found.kill()
    assert (await ended(found)).reason == "killed"


async def test_attach_to_what_ended_meanwhile(house: DriverHouse) -> None:
    guest = make_guest()
    running = await start(house, guest)
    await running.kill()
    assert (await ended(running)).reason == "killed"
    await house.again()
    found = await house.driver.attach(launched(guest, running.record), house.resources(guest))
    assert isinstance(found, Exit)
    assert found.reason == "killed"


async def test_attach_after_a_reboot_of_the_host(house: DriverHouse) -> None:
    guest = make_guest()
    running = await start(house, guest)
    await running.detach()
    before = msgspec.structs.replace(running.record, boot_id="another-boot")
    if house.kind == "fake":
        house.driver.boot = "the-next-boot"  # type: ignore[attr-defined]  # the fake driver alone has it
    found = await house.driver.attach(launched(guest, before), house.resources(guest))
    assert isinstance(found, Exit)
    assert found.reason == "host-rebooted"
    if house.kind == "fake":
        house.driver.boot = running.record.boot_id  # type: ignore[attr-defined]  # the fake driver alone has it


async def test_attach_without_a_launch(house: DriverHouse) -> None:
    guest = make_guest()
    found = await house.driver.attach(guest, house.resources(guest))
    assert isinstance(found, Exit)
    assert found.reason == "unknown"


async def test_events_end_at_detach(house: DriverHouse) -> None:
    running = await start(house, make_guest())
    events = running.events()
    await running.detach()
    async with asyncio.timeout(SECONDS):
        assert [event async for event in events] == []


async def test_each_listener_hears_everything(house: DriverHouse) -> None:
    running = await start(house, make_guest())
    one, two = running.events(), running.events()
    await running.pause()
    await running.resume()
    await running.kill()
    first, second = await kinds_until(one, "exit"), await kinds_until(two, "exit")
    assert first == second
    assert first[:2] == ["paused", "resumed"]


async def test_a_process_is_found_without_its_record(house: DriverHouse) -> None:
    """As after a database was lost and the copy of the guest's document is an old one."""
    guest = make_guest()
    assert await house.driver.find(guest) is None
    running = await start(house, guest, 3)
    record = running.record
    assert await house.driver.find(launched(guest, record)) == record
    older = msgspec.structs.replace(record, incarnation=2, pid=1, pid_start=1)
    for document in (guest, launched(guest, older)):
        found = await house.driver.find(document)
        assert found is not None
        same = ("incarnation", "pid", "pid_start", "boot_id", "machine", "cpu", "accelerator")
        assert [getattr(found, f) for f in same] == [getattr(record, f) for f in same]
        assert abs(found.launched_at - record.launched_at) < 60
    await running.detach()
    taken = await house.driver.attach(launched(guest, found), house.resources(guest))
    assert not isinstance(taken, Exit)
    assert (await taken.state())[0] == "running"
    await taken.kill()
    await ended(taken)
    assert await house.driver.find(launched(guest, record)) is None


async def test_a_process_that_nobody_follows_is_ended(house: DriverHouse) -> None:
    guest, other = make_guest(), make_guest(name="other", number=2)
    assert await house.driver.end(guest) is False
    running = await start(house, guest)
    bystander = await start(house, other)
    await running.detach()
    await house.again()
    document = launched(guest, running.record)
    assert await house.driver.end(document) is True
    assert await house.driver.find(document) is None
    assert await house.driver.end(document) is False
    assert await house.driver.find(launched(other, bystander.record)) is not None


async def test_strays_are_found_and_ended(house: DriverHouse) -> None:
    guest = make_guest()
    running = await start(house, guest, 3)
    key = f"{guest.id}.3"
    assert await house.driver.stray([]) == [key]
    assert await house.driver.stray([guest]) == [key]
    assert await house.driver.stray([launched(guest, running.record)]) == []
    await house.driver.end_stray(key)
    # Its record goes with it, so whoever still watched may be too late to read why.
    assert (await ended(running)).reason in {"killed", "unknown"}
    assert await house.driver.stray([]) == []
    await house.driver.end_stray(key)
    # Its number is free again.
    await start(house, guest, 3)


async def test_strays_of_a_daemon_that_died(house: DriverHouse) -> None:
    guest = make_guest()
    running = await start(house, guest)
    await running.detach()
    await house.again()
    assert await house.driver.stray([guest]) == [f"{guest.id}.1"]
    await house.driver.end_stray(f"{guest.id}.1")
    assert await house.driver.stray([]) == []


async def test_guests_do_not_disturb_each_other(house: DriverHouse) -> None:
    guests = [make_guest(name=f"g{i}", number=i) for i in range(4)]
    running = await asyncio.gather(*(start(house, guest) for guest in guests))
    await running[0].kill()
    assert (await ended(running[0])).reason == "killed"
    assert [await r.state() for r in running[1:]] == [("running", "")] * 3


async def test_unknown_network_is_refused(house: DriverHouse) -> None:
    if house.kind == "fake":
        return  # it has no networks at all
    with pytest.raises(InvalidInput, match="no network 'lan'"):
        await start(house, make_guest(nics=(nic(network="lan"),)))


async def test_unknown_machine_is_refused(house: DriverHouse) -> None:
    if house.kind == "fake":
        return  # it has no machines at all
    with pytest.raises(HostLacks):
        await start(house, make_guest(machine="pc-q35-99.9"))
