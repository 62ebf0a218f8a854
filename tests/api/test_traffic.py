"""Impairing cards and capturing their packets by the API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from guesthouse.errors import HostLacks
from guesthouse.model.capture import whole_blocks
from guesthouse.model.impairment import Impairment, NicImpairment
from guesthouse.model.job import Job, JobState
from guesthouse.model.networking import NetworkRequest
from guesthouse.operations.traffic_house import MOST_CAPTURES
from tests.api.api_house import ApiHouse
from tests.api.conftest import Served
from tests.api.fake_traffic import FakeTraffic
from tests.api.test_networks import able
from tests.api.test_writes import WAIT, job_of

ROUTE = "/v1/guests/web/nics/0"
LOSSY = {"incoming": {"loss": 0.25}, "outgoing": {"latency": 0.08, "rate": 8_000_000}}
AS_NOUN = NicImpairment(
    incoming=Impairment(loss=0.25), outgoing=Impairment(latency=0.08, rate=8_000_000)
)
LACKS = HostLacks("Latency is not possible: this kernel lacks netem.", capability="netem")


@pytest.fixture
async def traffic(house: ApiHouse) -> FakeTraffic:
    """Of a house with two running guests: web on a network, alone on a builtin one."""
    able(house)
    made = await house.create_network(NetworkRequest(name="lan"), "test")
    assert (await house.ended(made)).state is JobState.DONE
    await house.guest("web", networks=("lan",))
    await house.guest("alone", networks=("builtin",))
    return house.traffic_of_cards


async def put(api: httpx.AsyncClient, body: Any, route: str = ROUTE) -> Job:
    return job_of(await api.put(f"{route}/impairment", json=body, params=WAIT))


def stored(house: ApiHouse) -> NicImpairment:
    return house.view.guest("web").spec.nics[0].impairment


async def test_a_card_is_impaired_and_it_is_kept(
    api: httpx.AsyncClient, house: ApiHouse, traffic: FakeTraffic
) -> None:
    job = await put(api, LOSSY)
    assert (job.kind, job.state, job.target_name) == ("nic.impair", JobState.DONE, "web")
    assert traffic.seen == [("web", 0, AS_NOUN)]
    shown = (await api.get("/v1/guests/web")).json()["spec"]["nics"][0]["impairment"]
    assert shown["incoming"]["loss"] == 0.25 and shown["outgoing"]["rate"] == 8_000_000
    assert stored(house) == AS_NOUN
    await put(api, {"incoming": {"loss": 0.5}})
    assert stored(house) == NicImpairment(incoming=Impairment(loss=0.5)), "the rest goes"
    mac = house.view.guest("web").spec.nics[0].mac
    await put(api, {}, f"/v1/guests/web/nics/{mac.upper()}")
    assert stored(house) == NicImpairment() == traffic.seen[-1][2]


async def test_a_stopped_guest_has_it_from_its_next_start(
    api: httpx.AsyncClient, house: ApiHouse, traffic: FakeTraffic
) -> None:
    await house.guest("later", start=False, networks=("lan",))
    await put(api, LOSSY, "/v1/guests/later/nics/0")
    assert house.view.guest("later").spec.nics[0].impairment == AS_NOUN


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"incoming": {"loss": 1.5}}, "incoming.loss"),
        ({"outgoing": {"jitter": 0.1}}, "outgoing.jitter"),
        ({"outgoing": {"latency": 90}}, "outgoing.latency"),
        ({"incoming": {"rate": 5}}, "incoming.rate"),
        ({"incoming": {"lag": 5}}, "incoming.lag"),
    ],
)
async def test_what_cannot_be_is_refused_at_once(
    api: httpx.AsyncClient, traffic: FakeTraffic, body: Any, field: str
) -> None:
    refused = await api.put(f"{ROUTE}/impairment", json=body)
    assert refused.status_code == 400 and refused.json()["context"]["field"] == field
    assert traffic.seen == []


async def test_cards_that_are_not_there_or_on_no_network_of_the_house(
    api: httpx.AsyncClient, traffic: FakeTraffic
) -> None:
    for which in ("7", "-1", "x", "52:67:68:ff:ff:ff"):
        path = f"/v1/guests/web/nics/{which}"
        for answer in (
            await api.put(f"{path}/impairment", json=LOSSY),
            await api.get(f"{path}/capture"),
        ):
            assert answer.status_code == 404 and "Its cards: 0 (" in answer.json()["hint"]
    builtin = "/v1/guests/alone/nics/0"
    refused = await api.put(f"{builtin}/impairment", json=LOSSY)
    assert refused.status_code == 400 and "builtin" in refused.json()["detail"]
    assert "--network default" in refused.json()["hint"]
    assert (await put(api, {}, builtin)).state is JobState.DONE, "nothing is what it has"
    refused = await api.get(f"{builtin}/capture")
    assert refused.status_code == 400 and "tcpdump" in refused.json()["hint"]


async def test_what_the_kernel_lacks_is_named_and_nothing_changes(
    api: httpx.AsyncClient, house: ApiHouse, traffic: FakeTraffic
) -> None:
    traffic.lacks = LACKS
    job = await put(api, LOSSY)
    assert job.problem is not None and job.problem.code == "host-lacks"
    assert job.problem.detail["capability"] == "netem"
    assert stored(house) == NicImpairment() and traffic.seen == []
    # To take it away nothing is needed.
    assert (await put(api, {})).state is JobState.DONE


async def test_what_fails_half_way_is_taken_back(
    api: httpx.AsyncClient, house: ApiHouse, traffic: FakeTraffic
) -> None:
    await put(api, {"incoming": {"loss": 1}})
    traffic.trouble = LACKS
    assert (await put(api, LOSSY)).state is JobState.FAILED
    before = NicImpairment(incoming=Impairment(loss=1.0))
    assert stored(house) == before == traffic.seen[-1][2]


async def test_a_capture_is_a_file(api: httpx.AsyncClient, traffic: FakeTraffic) -> None:
    answer = await api.get(f"{ROUTE}/capture", params={"snaplen": 96})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    blocks = list(whole_blocks([answer.content]))
    assert [block.kind for block in blocks] == [0x0A0D0D0A, 1, 6, 6, 6, 5, 5]
    assert b"web/0" in blocks[1].data and b"card 0 of guest web on network lan" in blocks[1].data
    assert blocks[1].data[12:16] == (96).to_bytes(4, "little")
    assert blocks[-1].lost == 5
    assert traffic.opened[0].closed


async def test_bounds_and_what_cannot_be(api: httpx.AsyncClient, traffic: FakeTraffic) -> None:
    traffic.going = True
    for bound in ({"packets": 20}, {"seconds": 0.05}, {"size": 5000}):
        answer = await api.get(f"{ROUTE}/capture", params=bound)
        blocks = list(whole_blocks([answer.content]))
        assert blocks[-1].kind == 5
        assert "packets" not in bound or sum(b.kind == 6 for b in blocks) == 20
        assert "size" not in bound or 4500 < len(answer.content) <= 5000
    assert all(one.closed for one in traffic.opened)
    for wrong in ({"packets": 0}, {"seconds": -1}, {"size": 1}, {"snaplen": 1}, {"count": 1}):
        refused = await api.get(f"{ROUTE}/capture", params=wrong)
        assert refused.status_code == 400 and next(iter(wrong)) in refused.json()["detail"]


async def test_a_stopped_guest_has_nothing_to_capture(
    api: httpx.AsyncClient, house: ApiHouse, traffic: FakeTraffic
) -> None:
    await house.guest("later", start=False, networks=("lan",))
    refused = await api.get("/v1/guests/later/nics/0/capture")
    assert refused.status_code == 409 and "guest start later" in refused.json()["hint"]


async def until(done: Callable[[], bool]) -> None:
    for _attempt in range(3000):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come")


async def test_a_client_that_goes_ends_it_and_there_are_not_too_many(
    api: httpx.AsyncClient, served: Served, traffic: FakeTraffic
) -> None:
    traffic.going = True
    enough = asyncio.Event()
    transport = httpx.AsyncHTTPTransport(uds=str(served.path), limits=httpx.Limits())

    async def one(client: httpx.AsyncClient) -> None:
        async with client.stream("GET", f"{ROUTE}/capture") as stream:
            assert stream.status_code == 200
            async for _piece in stream.aiter_raw():
                if enough.is_set():
                    break

    async with (
        httpx.AsyncClient(transport=transport, base_url="http://house", timeout=60) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(MOST_CAPTURES):
            group.create_task(one(client))
        await until(lambda: len(traffic.opened) == MOST_CAPTURES)
        refused = await api.get(f"{ROUTE}/capture")
        assert refused.status_code == 409 and refused.json()["code"] == "busy"
        enough.set()
    await until(lambda: all(one.closed for one in traffic.opened))
    traffic.going = False
    assert (await api.get(f"{ROUTE}/capture")).status_code == 200
