"""The trash: what a guest keeps and gives up there, how it comes back, and how it goes."""

from __future__ import annotations

import asyncio
import time

import httpx
import msgspec
import pytest

from guesthouse.guestos.keys import secret_name
from guesthouse.host.settings import Settings
from guesthouse.model.device import Publish
from guesthouse.model.guest import Guest
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job, JobState
from guesthouse.model.reports import DeleteRequest
from guesthouse.model.states import GuestState
from guesthouse.operations.deletion import number_key
from guesthouse.operations.trash import DAY
from guesthouse.store.contract import Put
from guesthouse.store.documents import GUESTS
from guesthouse.supervisor.copies import CopyKeeper
from guesthouse.supervisor.housekeeping import Housekeeping
from tests.api.api_house import ApiHouse

WAIT = {"wait": "60"}


async def done(api: httpx.AsyncClient, method: str, path: str, **rest: object) -> dict[str, object]:
    """The result of a job that ends well."""
    job = await ended(api, method, path, **rest)
    assert job.state is JobState.DONE, job.problem
    return job.result or {}


async def ended(api: httpx.AsyncClient, method: str, path: str, **rest: object) -> Job:
    params = {**WAIT, **dict(rest.pop("params", {}))}  # type: ignore[call-overload]
    answer = await api.request(method, path, params=params, **rest)  # type: ignore[arg-type]
    assert answer.status_code == 202, answer.text
    return msgspec.json.decode(answer.content, type=Job)


async def names(api: httpx.AsyncClient, path: str) -> list[str]:
    return [one["name"] for one in (await api.get(path)).json()]


async def age(house: ApiHouse, guest: Guest, seconds: float) -> None:
    """Let a guest of the trash have been there for so long."""
    changed = await house.rooms.documents.guests.update(
        guest.id, lambda g: msgspec.structs.replace(g, deleted_at=time.time() - seconds)
    )
    await house.view.wait_for(changed.revision)


async def test_what_is_kept_and_what_is_given_up(api: httpx.AsyncClient, house: ApiHouse) -> None:
    port = Publish(host_port=25678, guest_port=80)
    guest = await house.guest("web", start=False, publish=(port,))
    result = await done(api, "DELETE", "/v1/guests/web")
    assert result["trashed"] is True
    assert await names(api, "/v1/guests") == []
    (found,) = (await api.get("/v1/trash")).json()
    assert (found["id"], found["number"]) == (guest.id, guest.number)
    assert found["expires_at"] == found["deleted_at"] + 7 * DAY
    assert house.rooms.secrets.list() == [secret_name(guest.id)]
    store = house.rooms.documents.store
    assert await store.get(GUESTS.name_key("web")) is None
    entry = await store.get(number_key(guest.number))
    assert entry and entry.value.decode() == guest.id
    # Name and port are free; the number is not.
    other = await house.guest("web", publish=(port,))
    assert other.number != guest.number
    assert house.view.guest("web").id == other.id
    assert await names(api, "/v1/guests") == ["web"]


async def test_nothing_can_be_done_to_it_there(api: httpx.AsyncClient, house: ApiHouse) -> None:
    guest = await house.guest("web", start=False)
    await done(api, "DELETE", "/v1/guests/web")
    for ref in ("web", guest.id, guest.id[:12]):
        for method, path in (("POST", "/start"), ("GET", ""), ("DELETE", ""), ("POST", "/restart")):
            answer = await api.request(method, f"/v1/guests/{ref}{path}")
            assert answer.status_code == 404
            assert "guest undelete" in answer.json()["hint"]


async def test_a_start_that_waited_finds_it_gone(api: httpx.AsyncClient, house: ApiHouse) -> None:
    """Both were accepted; the deletion had the guest first."""
    await house.guest("web", start=False)
    house.driver.gate.clear()
    held = (await api.post("/v1/guests/web/start", json={})).json()["id"]
    await house.driver.arrived.wait()
    removed = (await api.delete("/v1/guests/web", params={"force": "true"})).json()["id"]
    late = (await api.post("/v1/guests/web/start", json={})).json()["id"]
    house.driver.gate.set()
    assert (await house.jobs.wait(held, 60)).state is JobState.DONE
    assert (await house.jobs.wait(removed, 60)).state is JobState.DONE
    job = await house.jobs.wait(late, 60)
    assert job.problem and job.problem.code == "not-found"
    assert "undelete" in job.problem.hint
    await house.view.wait_for(house.rooms.documents.store.revision)
    assert [guest["status"]["state"] for guest in (await api.get("/v1/trash")).json()] == [
        "stopped"
    ]


async def test_undelete(api: httpx.AsyncClient, house: ApiHouse) -> None:
    guest = await house.guest("web", start=False)
    await done(api, "DELETE", "/v1/guests/web")
    result = await done(api, "POST", "/v1/trash/web/undelete", json={})
    assert result == {"name": "web", "unpublished": []}
    assert house.view.guest("web") == msgspec.structs.replace(guest, deleted_at=None)
    assert (await api.get("/v1/trash")).json() == []
    await done(api, "POST", "/v1/guests/web/start", json={})
    assert house.view.guest("web").state is GuestState.RUNNING


async def test_undelete_beside_others_of_its_name(api: httpx.AsyncClient, house: ApiHouse) -> None:
    port = Publish(host_port=25679, guest_port=80)
    ours = await house.guest("web", start=False, publish=(port,))
    await done(api, "DELETE", "/v1/guests/web")
    other = await house.guest("web", publish=(port,))
    job = await ended(api, "POST", "/v1/trash/web/undelete", json={})
    assert job.problem and job.problem.code == "name-taken"
    assert f"guest undelete {ours.id} --name" in job.problem.hint
    assert await names(api, "/v1/trash") == ["web"]
    result = await done(api, "POST", f"/v1/trash/{ours.id}/undelete", json={"name": "old"})
    assert result == {"name": "old", "unpublished": [str(port)]}
    assert house.view.guest("old").spec.nics[0].ports == ()
    assert house.view.guest("web").id == other.id
    await done(api, "POST", "/v1/guests/old/start", json={})  # neither keeps the other out
    refused = await api.post("/v1/trash/web/undelete", json={"name": "Not Good"})
    assert refused.status_code == 404


async def test_of_several_of_one_name_the_last_one_comes_back(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    first = await house.guest("one", start=False)
    second = await house.guest("two", start=False)
    await done(api, "DELETE", "/v1/guests/two")
    await done(api, "POST", "/v1/guests/one/rename", json={"name": "two"})
    await done(api, "DELETE", "/v1/guests/two")
    await done(api, "POST", "/v1/trash/two/undelete", json={})
    assert house.view.guest("two").id == first.id
    assert [one["id"] for one in (await api.get("/v1/trash")).json()] == [second.id]


async def test_purge_leaves_nothing(api: httpx.AsyncClient, house: ApiHouse) -> None:
    keeper = CopyKeeper(house.rooms)
    guest = await house.guest("web", start=False)
    await keeper.flush()
    await done(api, "DELETE", "/v1/guests/web")
    other = await house.guest("web", start=False)
    await keeper.flush()
    await done(api, "DELETE", f"/v1/trash/{guest.id}")
    assert house.rooms.secrets.list() == [secret_name(other.id)]
    assert f"guests/{guest.id}" not in house.rooms.pool.copies.keys
    assert f"guests/{other.id}" in house.rooms.pool.copies.keys
    assert house.view.guest("web").id == other.id
    named = await house.rooms.documents.guests.named("web")
    assert named and named.id == other.id  # a purge must not take the name from its new owner
    assert await house.rooms.documents.store.get(number_key(guest.number)) is None
    assert (await api.delete("/v1/trash/web")).status_code == 404
    await keeper.close()


async def test_for_good_at_once(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web")
    result = await done(api, "DELETE", "/v1/guests/web", params={"force": "true", "now": "true"})
    assert result == {"trashed": False}
    assert not house.view.guests
    house.rooms.settings = Settings(trash_days=0)
    await house.guest("db", start=False)
    assert await done(api, "DELETE", "/v1/guests/db") == {"trashed": False}
    assert not house.view.guests
    assert (await api.get("/v1")).json()["trash_days"] == 0


@pytest.mark.parametrize("params", [{}, {"force": "true"}, {"now": "true", "force": "true"}])
async def test_protected_guests_stay(
    api: httpx.AsyncClient, house: ApiHouse, params: dict[str, str]
) -> None:
    await house.guest("web")
    await done(api, "PATCH", "/v1/guests/web", json={"protected": True})
    job = await ended(api, "DELETE", "/v1/guests/web", params=params)
    assert job.problem and job.problem.code == "conflict"
    assert "guest set web protected=false" in job.problem.hint
    assert house.view.guest("web").state is GuestState.RUNNING  # not even killed
    await done(api, "PATCH", "/v1/guests/web", json={"protected": False})
    await done(api, "DELETE", "/v1/guests/web", params={"force": "true"})


async def test_housekeeping_purges_what_is_old(api: httpx.AsyncClient, house: ApiHouse) -> None:
    old, young = [await house.guest(name, start=False) for name in ("old", "young")]
    for name in ("old", "young"):
        await done(api, "DELETE", f"/v1/guests/{name}")
    await age(house, old, 7 * DAY + 1)
    await age(house, young, 7 * DAY - 60)
    housekeeping = Housekeeping(house.rooms, house.jobs)
    housekeeping.start()
    async with asyncio.timeout(30):
        while old.id in house.view.guests:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await housekeeping.close()
    assert await names(api, "/v1/trash") == ["young"]


async def test_what_was_brought_back_is_not_purged(api: httpx.AsyncClient, house: ApiHouse) -> None:
    """A purge that was asked for waits while its guest comes back, and even goes again."""
    guest = await house.guest("web", start=False)
    await done(api, "DELETE", "/v1/guests/web")
    await age(house, guest, 8 * DAY)
    house.jobs._locks.try_acquire("test", [GUESTS.key(guest.id)])
    back = (await api.post("/v1/trash/web/undelete", json={})).json()["id"]
    await Housekeeping(house.rooms, house.jobs).round(time.time())
    house.jobs._locks.release("test")
    assert (await house.jobs.wait(back, 60)).state is JobState.DONE
    async with asyncio.timeout(30):
        while house.jobs.active():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await house.view.wait_for(house.rooms.documents.store.revision)
    assert house.view.guest("web").id == guest.id


async def test_nothing_is_purged_while_documents_cannot_be_read(house: ApiHouse) -> None:
    guest = await house.guest("web", start=False)
    await house.ended(await house.delete_guest("web", DeleteRequest(), "test"))
    await age(house, guest, 8 * DAY)
    store = house.rooms.documents.store
    await house.view.wait_for(await store.commit([Put(f"guests/{new_id()}", b"{}")]))
    await Housekeeping(house.rooms, house.jobs).round(time.time())
    assert not house.jobs.active()
    assert guest.id in house.view.guests


async def test_an_image_held_by_the_trash_says_so(api: httpx.AsyncClient, house: ApiHouse) -> None:
    guest = await house.guest("web", start=False)
    await done(api, "DELETE", "/v1/guests/web")
    image = (await api.get("/v1/images/micro")).json()
    assert (image["in_use_by"], image["in_use_by_trash"]) == ([], ["web"])
    job = await ended(api, "DELETE", "/v1/images/micro")
    assert job.problem and job.problem.code == "in-use"
    assert "guest web (in the trash)" in job.problem.message
    assert f"guest trash empty {guest.id}" in job.problem.hint
    await done(api, "DELETE", f"/v1/trash/{guest.id}")
    await done(api, "DELETE", "/v1/images/micro")
