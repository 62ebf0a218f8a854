"""What guests take of their host, over the API."""

from __future__ import annotations

import os

import httpx
from msgspec import structs

from guesthouse.host.process import start_ticks
from guesthouse.model.document import decode_strict
from guesthouse.model.guest import Guest
from guesthouse.model.states import GuestState
from guesthouse.model.usage import GuestUsage
from tests.api.api_house import ApiHouse, guest_document


async def _running(house: ApiHouse, name: str, pid: int, began: int) -> Guest:
    """A guest whose process is the one of that number."""
    launched = await house.guest(name)
    assert launched.launch is not None
    record = structs.replace(launched.launch, pid=pid, pid_start=began)
    changed = structs.replace(
        launched, launch=record, status=structs.replace(launched.status, pid=pid)
    )
    await house.rooms.documents.guests.update(launched.id, lambda _: changed)
    await house.view.wait_for(house.rooms.documents.store.revision)
    return changed


async def test_usage_of_a_running_guest(api: httpx.AsyncClient, house: ApiHouse) -> None:
    own = os.getpid()
    await _running(house, "web", own, start_ticks(own))
    answer = await api.get("/v1/guests/web/usage")
    found = decode_strict(answer.content, GuestUsage)
    assert found.process is not None
    assert found.process.pid == own
    assert found.process.cpu_seconds > 0
    assert found.process.resident > 1 << 20
    assert (found.name, found.state) == ("web", GuestState.RUNNING)
    for disk in found.disks:
        assert disk.used is not None
    listed = decode_strict((await api.get("/v1/usage")).content, list[GuestUsage])
    assert [(one.name, one.disks) for one in listed] == [("web", ())]


async def test_usage_of_a_guest_that_is_off(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.add(guest_document("off"))
    assert (await api.get("/v1/guests/off/usage")).json()["process"] is None
    assert (await api.get("/v1/usage")).json() == []
    assert (await api.get("/v1/guests/nobody/usage")).status_code == 404


async def test_a_number_that_changed_hands_counts_as_none(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    own = os.getpid()
    await _running(house, "web", own, start_ticks(own) + 1)
    assert (await api.get("/v1/guests/web/usage")).json()["process"] is None
    assert (await api.get("/v1/usage")).json() == []


async def test_a_disk_whose_file_is_missing(api: httpx.AsyncClient, house: ApiHouse) -> None:
    from guesthouse.model.device import Disk

    disk = Disk(name="root", volume="01JDF600000000000000000000", size=1 << 30)
    await house.add(guest_document("web", disks=(disk,)))
    found = (await api.get("/v1/guests/web/usage")).json()
    assert found["disks"] == [{"name": "root", "size": 1 << 30, "used": None}]
