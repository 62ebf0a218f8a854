"""Network cards by the API: they come, change and go, stopped and live, or are refused by name."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from guesthouse.drivers.fake import FakeRunning
from guesthouse.errors import EngineError
from guesthouse.model.device import Link
from guesthouse.model.guest import Guest
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job, JobState
from guesthouse.model.network import Lease
from guesthouse.model.networking import BUILTIN
from guesthouse.store.documents import LEASES
from tests.api.api_house import ApiHouse
from tests.api.test_networks import able, create, shown
from tests.api.test_writes import WAIT, job_of

ROUTE = "/v1/guests/web/nics"
MAC = "52:67:68:00:00:07"
SUBNET = {"subnet4": "10.77.0.0/24", "subnet6": "fd77::/64"}


@pytest.fixture(autouse=True)
async def lan(house: ApiHouse, api: httpx.AsyncClient) -> str:
    """A host that has networks, one of them `lan`; answers its id."""

    async def no_routes() -> tuple[str, ...]:
        return ()

    house.rooms.host_routes = no_routes
    able(house)
    assert (await create(api, **SUBNET)).state is JobState.DONE
    assert (await create(api, "lab", kind="isolated", subnet6="")).state is JobState.DONE
    return str((await shown(api))["id"])


@pytest.fixture
def left(house: ApiHouse) -> list[tuple[str, int]]:
    """Cards whose place on the network was given up."""
    found: list[tuple[str, int]] = []

    async def leave(guest: str, index: int) -> None:
        found.append((house.view.guests[guest].name, index))

    house.rooms.leave_card = leave
    return found


async def add(api: httpx.AsyncClient, network: str = "lan", **more: Any) -> Job:
    return job_of(await api.post(ROUTE, json={"network": network, **more}, params=WAIT))


async def change(api: httpx.AsyncClient, which: str | int, **what: Any) -> Job:
    return job_of(await api.patch(f"{ROUTE}/{which}", json=what, params=WAIT))


async def remove(api: httpx.AsyncClient, which: str | int) -> Job:
    return job_of(await api.delete(f"{ROUTE}/{which}", params=WAIT))


async def listed(api: httpx.AsyncClient) -> list[dict[str, Any]]:
    answer = await api.get(ROUTE)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def cards(house: ApiHouse) -> dict[int, str]:
    """What the running guest has: networks by number."""
    nics = running(house).cards.nics
    return {index: nic.network for index, nic in nics.items()}


def running(house: ApiHouse) -> FakeRunning:
    live = house.rooms.live.get(house.view.guest("web").id)
    assert live is not None and isinstance(live.running, FakeRunning)
    return live.running


async def leased(house: ApiHouse, guest: Guest, index: int, network: str, address: str) -> None:
    lease = Lease(
        id=new_id(), network=network, guest=guest.id, nic=index, mac=MAC, address4=address, since=0
    )
    store = house.rooms.documents.store
    await house.view.wait_for(await store.commit([LEASES.put_op(lease)]))


async def test_a_stopped_guest(
    api: httpx.AsyncClient, house: ApiHouse, lan: str, left: list[tuple[str, int]]
) -> None:
    await house.guest("web", start=False)
    job = await add(api, address4="10.77.0.9", mac=MAC.upper())
    assert job.state is JobState.DONE and job.result == {"index": 1, "mac": MAC}
    assert (await add(api, "builtin")).result["index"] == 2  # type: ignore[index]  # it is there
    first, second, third = await listed(api)
    assert first["plug"] is None and (second["plug"], third["plug"]) == (0, 1)
    assert (second["network"], second["network_name"], second["has4"]) == (lan, "lan", "10.77.0.9")
    assert not second["has6"] and all(one["removable"] for one in (first, second, third))
    assert (await remove(api, first["mac"])).state is JobState.DONE
    assert [one["index"] for one in await listed(api)] == [1, 2], "numbers stay"
    assert (await add(api)).result["index"] == 0  # type: ignore[index]  # it is there
    assert [one["plug"] for one in await listed(api)] == [2, 0, 1], "and so do places"
    assert left == [("web", 0)]
    left.clear()
    assert (await change(api, 1, link="down", mac="52:67:68:00:00:08")).state is JobState.DONE
    assert not left, "it keeps its addresses"
    assert (await change(api, "52-67-68-00-00-08", network="lab")).state is JobState.DONE
    assert left == [("web", 1)]
    moved = (await listed(api))[1]
    assert (moved["network_name"], moved["has4"], moved["link"]) == ("lab", "", "down")
    [member] = (await shown(api, "lab"))["members"]
    assert (member["guest"], member["nic"], member["mac"]) == ("web", 1, "52:67:68:00:00:08")


async def test_a_running_guest_has_it_at_once(
    api: httpx.AsyncClient, house: ApiHouse, lan: str, left: list[tuple[str, int]]
) -> None:
    await house.guest("web", networks=("lab",))
    lab = str((await shown(api, "lab"))["id"])
    assert (await add(api, link="down")).state is JobState.DONE
    assert cards(house) == {0: lab, 1: lan}
    assert running(house).cards.nics[1].link is Link.DOWN
    assert [one["removable"] for one in await listed(api)] == [False, True]
    assert (await change(api, 1, link="up")).state is JobState.DONE
    assert running(house).cards.nics[1].link is Link.UP
    assert (await change(api, 0, network="lan", address4="10.77.0.20")).state is JobState.DONE
    assert running(house).cards.nics[0].address4 == "10.77.0.20"
    assert cards(house) == {0: lan, 1: lan} and not left, "the running network moves it"
    for what, word in (({"mac": MAC}, "MAC"), ({"network": "builtin"}, "of the guest's own")):
        answer = await api.patch(f"{ROUTE}/1", json=what)
        assert answer.status_code == 409 and word in answer.json()["detail"]
        assert "guest stop web" in answer.json()["hint"]
    refused = await remove(api, 0)
    assert refused.problem is not None and "soldered" in refused.problem.message
    assert "link=down" in refused.problem.hint
    job_of(await api.post("/v1/guests/web/pause", json={}, params=WAIT))
    refused = await remove(api, 1)
    assert refused.problem is not None and "guest resume web" in refused.problem.hint
    job_of(await api.post("/v1/guests/web/resume", json={}, params=WAIT))
    assert (await remove(api, 1)).state is JobState.DONE
    assert cards(house) == {0: lan} and left == [("web", 1)]
    job_of(await api.post("/v1/guests/web/restart", json={"force": True}, params=WAIT))
    assert cards(house) == {0: lan}


async def test_what_fails_in_the_guest_is_undone(
    api: httpx.AsyncClient, house: ApiHouse, lan: str
) -> None:
    await house.guest("web", networks=("lan",))
    before = await listed(api)
    house.driver.fail("plug_nic", EngineError("no room"))
    assert (await add(api)).state is JobState.FAILED
    assert await listed(api) == before and cards(house) == {0: lan}
    house.driver.fail("move_nic", EngineError("no bridge"))
    assert (await change(api, 0, network="lab")).state is JobState.FAILED
    assert await listed(api) == before and cards(house) == {0: lan}
    house.driver.fail("set_link", EngineError("no cable"))
    assert (await change(api, 0, link="down")).state is JobState.FAILED
    assert await listed(api) == before
    await add(api)
    before = await listed(api)
    running(house).cards.stubborn.add(1)
    refused = await remove(api, 1)
    assert refused.problem is not None and refused.problem.code == "deadline-exceeded"
    assert await listed(api) == before and set(cards(house)) == {0, 1}


async def test_taken_addresses_are_refused_with_their_owner(
    api: httpx.AsyncClient, house: ApiHouse, lan: str
) -> None:
    await house.guest("web", start=False)
    db = await house.guest("db", start=False, networks=("lan", "lan"))
    await leased(house, db, 1, lan, "10.77.0.30")
    spare = {"image": "micro", "name": "spare", "start": False}
    fixed = [{"network": "lan", "address4": "10.77.0.40", "mac": MAC}]
    job = job_of(await api.post("/v1/guests", json={**spare, "nics": fixed}, params=WAIT))
    assert job.state is JobState.DONE, job.problem
    job_of(await api.delete("/v1/guests/spare", params=WAIT))
    for wanted, code, word in (
        ({"address4": "10.77.0.30"}, "conflict", "card 1 of guest 'db'"),
        ({"address4": "10.77.0.40"}, "conflict", "card 0 of guest 'spare', in the trash"),
        ({"mac": MAC}, "conflict", "card 0 of guest 'spare', in the trash"),
        ({"address4": "10.77.0.1"}, "invalid-input", "not an address for a guest of network lan"),
        ({"address4": "10.78.0.5"}, "invalid-input", "10.77.0.0/24"),
        ({"address4": "fd77::5"}, "invalid-input", "not an IPv4 address"),
        ({"address6": "fd78::5"}, "invalid-input", "fd77::/64"),
        ({"address6": "x"}, "invalid-input", "not an IP address"),
        ({"mac": "01:00:5e:00:00:01"}, "invalid-input", "group"),
        ({"network": "builtin", "address4": "10.77.0.5"}, "invalid-input", "own network"),
        ({"network": "nowhere"}, "not-found", "nowhere"),
        ({"speed": 9}, "unknown-field", "speed"),
    ):
        answer = await api.post(ROUTE, json={"network": "lan", **wanted})
        assert answer.json()["code"] == code and word in answer.text, answer.text
    assert (await add(api, address4="10.77.0.31", address6="fd77::31")).state is JobState.DONE
    answer = await api.patch(f"{ROUTE}/1", json={"address4": "10.77.0.30"})
    assert answer.status_code == 409 and answer.json()["context"]["guest"] == "db"
    assert (await change(api, 1, address4="10.77.0.31", address6="auto")).state is JobState.DONE
    both = [{"network": "lan", "address4": "10.77.0.50"}] * 2
    answer = await api.post("/v1/guests", json={**spare, "nics": both})
    assert answer.status_code == 409 and "Two cards" in answer.text
    answer = await api.post("/v1/guests", json={**spare, "nics": both[:1], "networks": ["lan"]})
    assert answer.status_code == 400


async def test_one_address_for_two_at_once(api: httpx.AsyncClient, house: ApiHouse) -> None:
    for name in ("web", "db"):
        await house.guest(name, start=False)
    body = {"network": "lan", "address4": "10.77.0.60"}
    answers = await asyncio.gather(
        *(api.post(f"/v1/guests/{name}/nics", json=body, params=WAIT) for name in ("web", "db"))
    )
    done = [
        answer.status_code < 300 and job_of(answer).state is JobState.DONE for answer in answers
    ]
    assert sorted(done) == [False, True]


async def test_cards_with_published_ports(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web", start=False, networks=("lan",))
    port = {"host_port": 0, "guest_port": 80}
    job_of(await api.post("/v1/guests/web/ports", json=port, params=WAIT))
    refused = await remove(api, 0)
    assert refused.problem is not None and refused.problem.code == "in-use"
    assert "guest unpublish web 127.0.0.1:" in refused.problem.hint
    answer = await api.patch(f"{ROUTE}/0", json={"network": "lab"})
    assert answer.status_code == 400 and "isolated" in answer.json()["detail"]
    assert (await change(api, 0, address4="10.77.0.8")).state is JobState.DONE
    [card] = await listed(api)
    assert len(card["ports"]) == 1


async def test_as_many_as_can_be(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web", start=False)
    for _ in range(7):
        assert (await add(api, BUILTIN)).state is JobState.DONE
    answer = await api.post(ROUTE, json={"network": "lan"})
    assert answer.status_code == 409 and "8 network cards" in answer.text
    for method, what in ((api.patch, {"json": {}}), (api.delete, {})):
        answer = await method(f"{ROUTE}/9", **what)  # type: ignore[operator]  # both take a path
        assert answer.status_code == 404 and "Its cards: 0 (" in answer.json()["hint"]


async def test_cards_at_launch(api: httpx.AsyncClient, house: ApiHouse, lan: str) -> None:
    nics = [
        {"network": "lan", "address4": "10.77.0.70", "link": "down"},
        {"network": lan, "mac": MAC},
        {"network": "builtin"},
    ]
    body = {"image": "micro", "name": "web", "start": False, "nics": nics}
    job = job_of(await api.post("/v1/guests", json=body, params=WAIT))
    assert job.state is JobState.DONE, job.problem
    found = house.view.guest("web").spec.nics
    assert [one.network for one in found] == [lan, lan, BUILTIN]
    assert [(one.index, one.plug) for one in found] == [(0, None), (1, 0), (2, 1)]
    assert (found[0].address4, found[0].link, found[1].mac) == ("10.77.0.70", Link.DOWN, MAC)
    assert msgspec.structs.replace(found[0], link=Link.UP).mac.startswith("52:67:68:")
