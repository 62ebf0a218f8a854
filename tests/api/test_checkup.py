"""The house looks at itself."""

from __future__ import annotations

import os

import httpx

from guesthouse.model.checkup import Check, Checkup, Health
from guesthouse.model.document import decode_strict
from guesthouse.model.volume import Volume
from guesthouse.store.contract import Put
from guesthouse.store.documents import VOLUMES
from tests.api.api_house import ApiHouse, guest_document


async def _checks(api: httpx.AsyncClient) -> dict[str, list[Check]]:
    found: dict[str, list[Check]] = {}
    answer = await api.get("/v1/checkup")
    assert answer.status_code == 200
    for one in decode_strict(answer.content, Checkup).checks:
        found.setdefault(one.name, []).append(one)
    return found


async def test_a_house_that_is_well(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web", start=False)
    found = await _checks(api)
    assert list(found) == ["documents", "database", "keeper", "space", "disks", "guests"]
    for name, (one,) in found.items():
        if name != "space":  # of this machine
            assert one.health is Health.FINE, one
    assert "4711" in found["keeper"][0].message


async def test_a_document_that_cannot_be_read(api: httpx.AsyncClient, house: ApiHouse) -> None:
    revision = await house.rooms.documents.store.commit([Put("guests/broken", b'{"schema":1}')])
    await house.view.wait_for(revision)
    (found,) = (await _checks(api))["documents"]
    assert found.health is Health.TROUBLE
    assert "guests/broken" in found.message


async def test_a_copy_that_the_database_does_not_know(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await house.rooms.pool.write_copy("guests", guest_document("lost"))
    (found,) = (await _checks(api))["database"]
    assert (found.health, found.cure) == (Health.TROUBLE, "guest recover")


async def test_a_keeper_that_does_not_answer(api: httpx.AsyncClient, house: ApiHouse) -> None:
    house.keeper_trouble = "It is deaf."
    (found,) = (await _checks(api))["keeper"]
    assert (found.health, "It is deaf." in found.message) == (Health.TROUBLE, True)


async def test_disks_whose_files_are_gone_or_wrong(api: httpx.AsyncClient, house: ApiHouse) -> None:
    pool, documents = house.rooms.pool, house.rooms.documents
    good, gone, wrong = (
        Volume(id=f"01JDF60000000000000000000{n}", size=1 << 20, created_at=0.0) for n in "ABC"
    )
    for volume in (good, wrong):
        await pool.create_empty(volume)
    pool.path(wrong).write_bytes(b"not a disk at all" * 100)
    ops = [VOLUMES.put_op(volume) for volume in (good, gone, wrong)]
    await house.view.wait_for(await documents.store.commit(ops))
    from guesthouse.model.device import Disk

    disk = Disk(name="root", volume=gone.id, size=1 << 20)
    await house.add(guest_document("web", disks=(disk,)))
    found = (await _checks(api))["disks"]
    assert {one.health for one in found} == {Health.TROUBLE}
    said = {volume.id: [c for c in found if volume.id in c.message] for volume in (gone, wrong)}
    assert "Guests that need it: web." in said[gone.id][0].message
    assert "No guest needs it." in said[wrong.id][0].message
    assert len(found) == 2
    assert all(one.cure for one in found)


async def test_a_guest_whose_process_has_gone_unseen(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    """The fake driver's processes have numbers that no process has."""
    await house.guest("web")
    (found,) = (await _checks(api))["guests"]
    assert found.health is Health.TROUBLE
    assert "its process has gone" in found.message
    assert not os.path.exists(f"/proc/{house.view.guest('web').status.pid}")
