"""Guests come up after their host and go down before it: the real house on the fake driver."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from guesthouse.errors import NoMemory, QmpFailed
from guesthouse.model.guest import Autostart, Guest, ShutdownAction
from guesthouse.model.job import Job, JobState
from guesthouse.operations import hosting
from guesthouse.operations.hosting import (
    HOSTS,
    THIS_HOST,
    StartGuestsParams,
    StopGuestsParams,
)
from guesthouse.store.documents import Collection
from guesthouse.supervisor.booting import Boot
from tests.api.api_house import ApiHouse, open_house

WAIT = {"wait": "60"}
BOOT = "b"
"""As the facts of the house have it."""


async def add(house: ApiHouse, name: str, *, start: bool = True, **spec: Any) -> Guest:
    guest = await house.guest(name, start=start)
    await house.rooms.documents.guests.update(
        guest.id, lambda g: msgspec.structs.replace(g, spec=msgspec.structs.replace(g.spec, **spec))
    )
    await house.view.wait_for(house.rooms.documents.store.revision)
    return house.view.guest(name)


def jobs_of(house: ApiHouse, kind: str) -> dict[str, Job]:
    """By the name of the guest."""
    return {job.target_name: job for job in house.view.jobs.values() if job.kind == kind}


def state(house: ApiHouse, name: str) -> tuple[str, str]:
    status = house.view.guest(name).status
    return status.state.value, status.reason


async def reaches(house: ApiHouse, name: str, wanted: str) -> None:
    with house.view.subscribe(kinds=("guest",)) as changes:
        if state(house, name)[0] == wanted:
            return
        async with asyncio.timeout(30):
            async for _ in changes:
                if state(house, name)[0] == wanted:
                    return


async def start_guests(house: ApiHouse, *ran: str, boot: str = BOOT) -> Job:
    params = StartGuestsParams(boot_id=boot, ran=ran)
    return await house.ended(await house.jobs.submit("host.start-guests", params))


def reboot(house: ApiHouse, boot: str) -> None:
    facts = msgspec.structs.replace(house.facts, boot_id=boot)
    house.rooms.facts = lambda: facts
    house.driver.boot = boot


# --- going down -----------------------------------------------------------------------------------


async def test_they_stop_in_reverse_order(api: httpx.AsyncClient, house: ApiHouse) -> None:
    for name, order in [("db", 10), ("app", 100), ("web", 100), ("late", 200)]:
        await add(house, name, autostart_order=order)
    await add(house, "idle", start=False)
    answer = await api.post("/v1/host/stop-guests", json={}, params=WAIT)
    job = msgspec.json.decode(answer.content, type=Job)
    assert (job.kind, job.state) == ("host.stop-guests", JobState.DONE)
    assert job.result is not None
    assert set(job.result["stopped"]) == {"db", "app", "web", "late"}
    assert (job.result["failed"], job.result["left"]) == ({}, [])
    await house.view.wait_for(house.rooms.documents.store.revision)
    stops = jobs_of(house, "guest.stop")
    ended = {name: stop.ended_at or 0 for name, stop in stops.items()}
    assert ended["late"] <= min(stops["app"].created_at, stops["web"].created_at)
    assert max(ended["app"], ended["web"]) <= stops["db"].created_at
    assert stops["app"].created_at < ended["web"] and stops["web"].created_at < ended["app"]
    assert {state(house, name) for name in stops} == {("stopped", "host-shutdown")}
    assert "with its host" in house.view.guest("db").status.message


async def test_each_as_its_settings_say(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await add(house, "polite")
    await add(house, "quick", shutdown_action=ShutdownAction.KILL)
    await add(house, "alone", shutdown_action=ShutdownAction.LEAVE)
    job = (await api.post("/v1/host/stop-guests", params=WAIT)).json()
    assert job["result"]["left"] == ["alone"]
    assert job["result"]["stopped"]["quick"] == "killed as asked"
    assert (
        "agent" in job["result"]["stopped"]["polite"]
        or "power" in (job["result"]["stopped"]["polite"])
    )
    assert state(house, "alone")[0] == "running"
    job = (await api.post("/v1/host/stop-guests", json={"action": "kill"}, params=WAIT)).json()
    assert job["result"] == {"stopped": {"alone": "killed as asked"}, "failed": {}, "left": []}


async def test_one_that_cannot_be_stopped_keeps_no_other_from_it(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await add(house, "stubborn", autostart_order=200)
    await add(house, "web")
    house.driver.fail("kill", QmpFailed("It clings to life."))
    job = (await api.post("/v1/host/stop-guests", json={"action": "kill"}, params=WAIT)).json()
    assert job["state"] == "done"
    assert job["result"]["failed"] == {"stubborn": "It clings to life."}
    assert list(job["result"]["stopped"]) == ["web"]


@pytest.mark.parametrize("action", ["stop", "kill"])
async def test_what_is_at_work_on_a_guest_does_not_hold_the_host_up(
    api: httpx.AsyncClient, house: ApiHouse, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(hosting, "PATIENCE", 0.2)
    guest = await add(house, "web", start=False)
    house.driver.gate.clear()
    starting = (await api.post("/v1/guests/web/start")).json()
    await house.driver.arrived.wait()
    await house.view.wait_for(house.rooms.documents.store.revision)
    assert house.view.guests[guest.id].state.value == "starting"
    job = (await api.post("/v1/host/stop-guests", json={"action": action}, params=WAIT)).json()
    assert job["result"]["failed"] == {}
    assert (await house.jobs.get(starting["id"])).state is JobState.CANCELLED
    assert state(house, "web")[0] == "stopped"


async def test_a_stop_that_the_host_s_end_cut_short_is_not_taken_up(house: ApiHouse) -> None:
    await add(house, "web")
    job = await house.ended(
        await house.jobs.submit("host.stop-guests", StopGuestsParams(boot_id="an earlier one"))
    )
    assert (job.state, job.result) == (
        JobState.DONE,
        {"skipped": "the host was restarted meanwhile"},
    )
    assert state(house, "web")[0] == "running"


# --- coming up ------------------------------------------------------------------------------------


async def test_they_start_in_order_each_after_the_delay(
    house: ApiHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def at_once(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    for name, order in [("web", 100), ("db", 10), ("app", 50)]:
        await add(
            house,
            name,
            start=False,
            autostart=Autostart.ON,
            autostart_order=order,
            autostart_delay=float(order),
        )
    await add(house, "off", start=False)
    monkeypatch.setattr(hosting.asyncio, "sleep", at_once)
    job = await start_guests(house)
    assert job.result == {"started": ["db", "app", "web"], "failed": {}}
    assert [round(seconds) for seconds in slept if seconds > 5] == [10, 50]
    starts = jobs_of(house, "guest.start")
    assert set(starts) == {"db", "app", "web"}
    assert (starts["db"].ended_at or 0) <= starts["app"].created_at
    assert (starts["app"].ended_at or 0) <= starts["web"].created_at


async def test_one_that_does_not_start_keeps_no_other_from_it(house: ApiHouse) -> None:
    await add(house, "first", start=False, autostart=Autostart.ON, autostart_order=1)
    await add(house, "second", start=False, autostart=Autostart.ON)
    await add(house, "there", start=False, autostart=Autostart.ON, autostart_order=0)
    house.driver.boot = BOOT
    await house.ended(await house.start("there", _start(), "test"))
    house.driver.fail("launch", NoMemory("There is no room for it."))
    job = await start_guests(house)
    assert job.state is JobState.DONE
    assert job.result == {"started": ["second"], "failed": {"first": "There is no room for it."}}
    assert state(house, "first")[0] == "stopped"


def _start() -> Any:
    from guesthouse.model.reports import StartRequest

    return StartRequest()


async def test_last_starts_what_ran(house: ApiHouse) -> None:
    ran = await add(house, "ran", start=False, autostart=Autostart.LAST)
    await add(house, "idle", start=False, autostart=Autostart.LAST)
    job = await start_guests(house, ran.id)
    assert job.result == {"started": ["ran"], "failed": {}}


async def test_the_end_of_the_host_calls_its_start_off(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await add(house, "db", start=False, autostart=Autostart.ON, autostart_delay=600.0)
    await add(house, "web", start=False, autostart=Autostart.ON)
    starting = await house.jobs.submit("host.start-guests", StartGuestsParams(boot_id=BOOT))
    await reaches(house, "db", "running")
    job = (await api.post("/v1/host/stop-guests", params=WAIT)).json()
    assert list(job["result"]["stopped"]) == ["db"]
    assert (await house.ended(starting)).state is JobState.CANCELLED
    assert state(house, "web")[0] == "stopped"


async def test_a_daemon_that_dies_in_between_goes_on_and_starts_nothing_twice(folder: Path) -> None:
    house = await open_house(folder)
    await add(house, "db", start=False, autostart=Autostart.ON, autostart_delay=3.0)
    await add(house, "web", start=False, autostart=Autostart.ON)
    starting = await house.jobs.submit("host.start-guests", StartGuestsParams(boot_id=BOOT))
    await reaches(house, "db", "running")
    await house.close()
    again = await open_house(folder)  # it takes its jobs up
    try:
        ended = await again.ended(starting)
        assert ended.result == {"started": ["db", "web"], "failed": {}}
        starts = [job for job in again.view.jobs.values() if job.kind == "guest.start"]
        assert sorted(job.target_name for job in starts) == ["db", "web"]
    finally:
        await again.close()


# --- noticing a boot ------------------------------------------------------------------------------


async def noticed(house: ApiHouse) -> list[Job]:
    """What a daemon that starts now submits."""
    before = set(house.view.jobs)
    boot = Boot(house.rooms, house.jobs)
    await boot.notice()
    boot.start_guests([])
    if boot._task is not None:
        await boot._task
    await boot.close()
    await house.view.wait_for(house.rooms.documents.store.revision)
    found = [job for job in house.view.jobs.values() if job.id not in before]
    return [job for job in found if job.kind == "host.start-guests"]


async def test_a_restart_of_the_daemon_starts_nothing(house: ApiHouse) -> None:
    await add(house, "web", start=False, autostart=Autostart.ON)
    assert await noticed(house) == []  # the first daemon ever: nothing is known of the host
    assert await noticed(house) == []
    assert state(house, "web")[0] == "stopped"


async def test_a_boot_of_the_host_starts_guests_once(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    house.driver.boot = BOOT
    await add(house, "on", autostart=Autostart.ON)
    await add(house, "last", autostart=Autostart.LAST)
    await add(house, "was-off", start=False, autostart=Autostart.LAST)
    await add(house, "off")
    assert await noticed(house) == []
    await api.post("/v1/host/stop-guests", params=WAIT)
    reboot(house, "c")
    (job,) = await noticed(house)
    assert job.requester == "autostart"
    ended = await house.ended(job)
    assert ended.result == {"started": ["last", "on"], "failed": {}}
    assert await noticed(house) == []
    # What the user stops now stays so for this daemon and the next.
    await api.post("/v1/guests/on/stop", params=WAIT)
    assert await noticed(house) == []
    assert state(house, "on")[0] == "stopped"


async def test_a_daemon_that_dies_before_it_submits_forgets_nothing(house: ApiHouse) -> None:
    web = await add(house, "web", start=False, autostart=Autostart.ON)
    assert await noticed(house) == []
    reboot(house, "c")
    await Boot(house.rooms, house.jobs).notice()  # and no more
    (job,) = await noticed(house)
    assert (await house.ended(job)).result == {"started": ["web"], "failed": {}}
    record = await Collection(HOSTS, house.rooms.documents.store).require(THIS_HOST)
    assert (record.doc.boot_id, record.doc.autostart) == ("c", None)
    assert house.view.guests[web.id].state.value == "running"


async def test_two_boots_in_a_row_forget_nobody_who_ran(house: ApiHouse) -> None:
    """The host goes down again while guests are being started."""
    house.driver.boot = BOOT
    waiting = await add(house, "waiting", autostart=Autostart.LAST)
    assert await noticed(house) == []
    await house.ended(await house.jobs.submit("host.stop-guests", StopGuestsParams(boot_id=BOOT)))
    held = await add(house, "held", start=False, autostart=Autostart.ON, autostart_order=1)
    reboot(house, "c")
    house.driver.gate.clear()  # its turn does not come
    (first,) = await noticed(house)
    await reaches(house, "held", "starting")
    reboot(house, "d")
    boot = Boot(house.rooms, house.jobs)
    await boot.notice()
    assert boot._pending is not None
    assert waiting.id in boot._pending.ran
    assert held.id not in boot._pending.ran
    house.driver.gate.set()
    await house.ended(first)


async def test_a_full_store_keeps_no_daemon_from_starting(
    house: ApiHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(house, "web", start=False, autostart=Autostart.ON)
    assert await noticed(house) == []
    reboot(house, "c")
    with monkeypatch.context() as patched:

        async def full(ops: object) -> int:
            raise NoMemory("no")

        patched.setattr(house.rooms.documents.store, "commit", full)
        assert await noticed(house) == []
    (job,) = await noticed(house)  # the next daemon notices it
    assert (await house.ended(job)).result == {"started": ["web"], "failed": {}}
