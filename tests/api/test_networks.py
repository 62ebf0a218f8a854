"""Networks by the API: made, changed, refused by name, and which of them a guest comes to be on."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from guesthouse.errors import EngineError
from guesthouse.host.capabilities import NETWORKS, of_networks
from guesthouse.model.host import Capability, HostFacts
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job, JobState
from guesthouse.model.network import Lease
from guesthouse.model.networking import BUILTIN
from guesthouse.store.documents import LEASES
from tests.api.api_house import ApiHouse
from tests.api.documented import Documented
from tests.api.sse import events
from tests.api.test_writes import WAIT, job_of

ROUTE = "/v1/networks"
NEEDS = ("house-namespace", "tun", "network-tools", "nft", "dnsmasq", "slirp4netns")


def able(house: ApiHouse, *, lacks: str = "") -> None:
    """A host that lets the house have networks, but for what it lacks."""
    found = tuple(
        Capability(name=name, available=name != lacks, reason=f"{name} was tried.", cure="cure it")
        for name in NEEDS
    )
    facts = house.rooms.facts()

    def answer() -> HostFacts:
        return msgspec.structs.replace(facts, capabilities=(*facts.capabilities, *found))

    house.rooms.facts = answer


@pytest.fixture
def refreshed(house: ApiHouse) -> list[str]:
    """Routes of the host are none; each time the network is told of a change stands here."""
    told: list[str] = []

    async def refresh() -> None:
        told.append("told")

    async def no_routes() -> tuple[str, ...]:
        return ("default", "10.128.0.0/16", "192.0.2.0/24")

    house.rooms.refresh_networks = refresh
    house.rooms.host_routes = no_routes
    return told


async def create(api: httpx.AsyncClient, name: str = "lan", **more: Any) -> Job:
    return job_of(await api.post(ROUTE, json={"name": name, **more}, params=WAIT))


async def shown(api: httpx.AsyncClient, name: str = "lan") -> dict[str, Any]:
    answer = await api.get(f"{ROUTE}/{name}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def launch(api: httpx.AsyncClient, name: str, **more: Any) -> Job:
    body = {"image": "micro", "name": name, "start": False, **more}
    return job_of(await api.post("/v1/guests", json=body, params=WAIT))


def networks(house: ApiHouse, name: str) -> list[str]:
    return [nic.network for nic in house.view.guest(name).spec.nics]


@pytest.mark.usefixtures("refreshed")
async def test_a_network_is_made_with_subnets_that_are_free(api: httpx.AsyncClient) -> None:
    assert (await create(api)).state is JobState.DONE
    assert (await create(api, "lab", kind="isolated", subnet6="")).state is JobState.DONE
    lan, lab = await shown(api), await shown(api, "lab")
    assert lan["kind"] == "nat" and lab["kind"] == "isolated"
    assert lan["subnet4"] != lab["subnet4"] and not lab["subnet6"]
    assert not lan["subnet4"].startswith("10.128.")
    assert lan["own_address4"] == lan["subnet4"].replace(".0/24", ".1")
    assert lan["dhcp"]["last"].endswith(".254")
    assert [one["name"] for one in (await api.get(ROUTE)).json()] == ["lab", "lan"]
    assert await shown(api, lan["id"][:12]) == lan


@pytest.mark.usefixtures("refreshed")
async def test_the_same_network_made_again_is_where_it_was(api: httpx.AsyncClient) -> None:
    await create(api)
    before = await shown(api)
    assert job_of(await api.delete(f"{ROUTE}/lan", params=WAIT)).state is JobState.DONE
    assert (await api.get(f"{ROUTE}/lan")).status_code == 404
    await create(api)
    after = await shown(api)
    assert (after["subnet4"], after["subnet6"]) == (before["subnet4"], before["subnet6"])
    assert after["id"] != before["id"]


@pytest.mark.usefixtures("refreshed")
@pytest.mark.parametrize(
    ("body", "code", "word"),
    [
        ({"name": "up", "kind": "bridged"}, "invalid-input", "bridged"),
        ({"name": "builtin"}, "invalid-input", "own network"),
        ({"name": "UP"}, "invalid-input", "cannot be a name"),
        ({"name": "lan"}, "name-taken", "already a network"),
        ({"name": "up", "subnet4": "10.1.2.3/24"}, "invalid-input", "10.1.2.0/24"),
        ({"name": "up", "subnet4": "", "subnet6": ""}, "invalid-input", "neither"),
        ({"name": "up", "subnet4": "192.0.2.0/25"}, "conflict", "192.0.2.0/24"),
        ({"name": "up", "uplink": "eth0"}, "invalid-input", "Only a bridged"),
        ({"name": "up", "kind": "bridged", "uplink": "no way"}, "invalid-input", "--bridge-host"),
        (
            {"name": "up", "kind": "bridged", "uplink": "e0", "subnet4": "10.1.2.0/24"},
            "invalid-input",
            "Leave subnet4 away",
        ),
        (
            {"name": "up", "kind": "bridged", "uplink": "e0", "lan_access": False},
            "invalid-input",
            "neighbours",
        ),
        ({"name": "up", "kind": "bridged", "uplink": "e0", "vlan": 4095}, "invalid-input", "vlan"),
    ],
)
async def test_what_cannot_be_made(
    api: httpx.AsyncClient, body: dict[str, Any], code: str, word: str
) -> None:
    await create(api)
    answer = await api.post(ROUTE, json=body, params=WAIT)
    problem = answer.json() if answer.status_code >= 400 else answer.json()["problem"]
    assert problem["code"] == code and word in str(problem), answer.text
    assert len((await api.get(ROUTE)).json()) == 1


async def test_several_at_once_get_subnets_of_their_own(
    api: httpx.AsyncClient, refreshed: list[str]
) -> None:
    jobs = await asyncio.gather(*(create(api, f"n{number}") for number in range(6)))
    assert {job.state for job in jobs} == {JobState.DONE}
    found = (await api.get(ROUTE)).json()
    assert len({one["subnet4"] for one in found}) == 6 == len({one["subnet6"] for one in found})
    jobs = await asyncio.gather(*(create(api, "same") for _ in range(3)), return_exceptions=True)
    assert sum(isinstance(job, Job) and job.state is JobState.DONE for job in jobs) == 1


async def test_a_change_is_told_to_the_network_or_taken_back(
    api: httpx.AsyncClient, house: ApiHouse, refreshed: list[str]
) -> None:
    await create(api)
    body = {"name": "dmz", "mtu": 1400, "lan_access": False}
    job = job_of(await api.patch(f"{ROUTE}/lan", json=body, params=WAIT))
    assert job.state is JobState.DONE and refreshed == ["told"]
    dmz = await shown(api, "dmz")
    assert dmz["mtu"] == 1400 and not dmz["lan_access"]
    assert (await api.get(f"{ROUTE}/lan")).status_code == 404
    assert (await create(api)).state is JobState.DONE, "the old name is free"
    job = job_of(await api.patch(f"{ROUTE}/dmz", json={"name": "lan"}, params=WAIT))
    assert job.problem is not None and job.problem.code == "name-taken"

    async def broken() -> None:
        raise EngineError("nft says no.")

    house.rooms.refresh_networks = broken
    body = {"name": "other", "mtu": 1300}
    job = job_of(await api.patch(f"{ROUTE}/dmz", json=body, params=WAIT))
    assert job.state is JobState.FAILED
    assert await shown(api, "dmz") == dmz
    answer = await api.patch(f"{ROUTE}/dmz", json={"mtu": 600}, params=WAIT)
    assert answer.status_code == 400, "too small for IPv6"


@pytest.mark.usefixtures("refreshed")
async def test_guests_that_name_none_are_on_the_default_network(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    able(house)
    jobs = await asyncio.gather(*(launch(api, name) for name in ("a", "b", "c")))
    assert {job.state for job in jobs} == {JobState.DONE}
    [default] = (await api.get(ROUTE)).json()
    assert default["name"] == "default" and default["kind"] == "nat"
    assert [one["guest"] for one in default["members"]] == ["a", "b", "c"]
    assert networks(house, "a") == [default["id"]]


@pytest.mark.parametrize("lacks", [*NEEDS, "all"])
async def test_without_networks_a_guest_has_one_of_its_own_and_the_reason_is_told(
    api: httpx.AsyncClient, house: ApiHouse, lacks: str
) -> None:
    if lacks != "all":
        able(house, lacks=lacks)
    job = await launch(api, "web")
    assert job.state is JobState.DONE and networks(house, "web") == [BUILTIN]
    assert (await api.get(ROUTE)).json() == []
    told = (await api.get(f"/v1/jobs/{job.id}/log")).text
    assert "a network of its own" in told and (lacks == "all" or f"{lacks} was tried" in told)
    summary = of_networks(house.rooms.facts().capabilities)
    assert summary.name == NETWORKS and not summary.available and summary.cure


async def test_no_free_subnet_is_no_reason_to_launch_nothing(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    able(house)

    async def all_routes() -> tuple[str, ...]:
        return ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")

    house.rooms.host_routes = all_routes
    job = await launch(api, "web")
    assert job.state is JobState.DONE and networks(house, "web") == [BUILTIN]
    assert "subnet is free" in (await api.get(f"/v1/jobs/{job.id}/log")).text


@pytest.mark.usefixtures("refreshed")
async def test_cards_on_the_networks_that_were_named(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    able(house, lacks="slirp4netns")
    await create(api, "lab", kind="isolated")
    await create(api, "out")
    lab = (await shown(api, "lab"))["id"]
    port = {"host_port": 0, "guest_port": 80}
    job = await launch(api, "web", networks=["lab", "builtin"], publish=[port])
    assert job.state is JobState.DONE, job.problem
    first, second = house.view.guest("web").spec.nics
    assert (first.network, second.network) == (lab, BUILTIN) and first.mac != second.mac
    assert not first.ports and second.ports[0].guest_port == 80, (
        "nothing leads into an isolated one"
    )
    port = {"host_port": 0, "guest_port": 81}
    job = job_of(await api.post("/v1/guests/web/ports", json=port, params=WAIT))
    assert job.state is JobState.DONE
    first, second = house.view.guest("web").spec.nics
    assert not first.ports and len(second.ports) == 2
    for one in second.ports:
        where = f"/v1/guests/web/ports/tcp/{one.host_ip}/{one.host_port}"
        assert job_of(await api.delete(where, params=WAIT)).state is JobState.DONE
    assert not any(nic.ports for nic in house.view.guest("web").spec.nics)
    for wanted, code in (
        ({"networks": ["nowhere"]}, "not-found"),
        ({"networks": ["out"]}, "host-lacks"),
        ({"networks": ["lab"], "publish": [port]}, "invalid-input"),
        ({"networks": ["lab"] * 9}, "invalid-input"),
    ):
        body = {"image": "micro", "name": "db", **wanted}
        assert (await api.post("/v1/guests", json=body)).json()["code"] == code
    await launch(api, "alone", networks=["lab"])
    job = job_of(await api.post("/v1/guests/alone/ports", json=port, params=WAIT))
    assert job.problem is not None and "isolated" in job.problem.message


@pytest.mark.usefixtures("refreshed")
async def test_a_network_stays_while_a_guest_is_on_it(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    able(house)
    await create(api)
    await launch(api, "web", networks=["lan"])

    async def refused() -> str:
        job = job_of(await api.delete(f"{ROUTE}/lan", params=WAIT))
        assert job.problem is not None and job.problem.code == "in-use"
        return f"{job.problem.message} {job.problem.hint}"

    assert "guest rm web" in await refused()
    job_of(await api.delete("/v1/guests/web", params=WAIT))
    assert "web in the trash" in await refused()
    assert (await shown(api))["members"][0]["trashed"]
    job_of(await api.delete("/v1/trash/web", params=WAIT))
    network = await shown(api)
    lease = Lease(id=new_id(), network=network["id"], guest=new_id(), nic=0, mac="", since=0.0)
    documents = house.rooms.documents
    await house.view.wait_for(await documents.store.commit([LEASES.put_op(lease)]))
    await house.rooms.pool.write_copy("leases", lease)
    assert job_of(await api.delete(f"{ROUTE}/lan", params=WAIT)).state is JobState.DONE
    await house.view.wait_for(documents.store.revision)
    assert not house.view.networks and not house.view.leases
    kept = house.rooms.pool.copies.keys
    assert not [key for key in kept if key.startswith(("networks/", "leases/"))]


async def test_a_network_that_goes_while_a_guest_comes(
    api: httpx.AsyncClient, house: ApiHouse, refreshed: list[str]
) -> None:
    """Whichever is first wins, and no guest is on a network that is not there."""
    able(house)
    for attempt in range(5):
        await create(api)
        launched, removed = await asyncio.gather(
            launch(api, f"g{attempt}", networks=["lan"]),
            api.delete(f"{ROUTE}/lan", params=WAIT),
        )
        assert (launched.state is JobState.DONE) is (removed.json().get("problem") is not None)
        if launched.state is JobState.DONE:
            await api.delete(f"/v1/guests/g{attempt}", params={**WAIT, "now": "true"})
            await api.delete(f"{ROUTE}/lan", params=WAIT)


@pytest.mark.usefixtures("refreshed")
async def test_events_tell_of_networks(api: httpx.AsyncClient, documented: Documented) -> None:
    async with (
        asyncio.timeout(60),
        api.stream("GET", "/v1/events?kinds=network,address-set") as response,
    ):
        stream = events(response)
        await anext(stream)
        await create(api)
        kind, data = await anext(stream)
    documented.schema("HouseEvent", data)
    assert kind == "network" and data["document"]["name"] == "lan"
    assert (await api.get("/v1/events?kinds=networks")).status_code == 400


async def test_a_subnet_that_the_host_comes_to_route_elsewhere_is_shown(
    api: httpx.AsyncClient, house: ApiHouse, refreshed: list[str]
) -> None:
    await create(api)
    lan = await shown(api)
    assert lan["clashes"] == []

    async def vpn() -> tuple[str, ...]:
        return (lan["subnet4"],)

    house.rooms.host_routes = vpn
    await house.rooms.clashes.look()
    assert (await shown(api))["clashes"] == [lan["subnet4"]]
    found = (await api.get("/v1/checkup")).json()["checks"]
    [check] = [one for one in found if one["name"] == "subnets"]
    assert check["health"] == "notice" and "network lan" in check["message"]
