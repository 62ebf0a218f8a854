"""Bridged networks by the API: refused where the house may not, confirmed, or taken back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import msgspec
import pytest

from guesthouse.errors import HostLacks
from guesthouse.model.job import JobState
from guesthouse.model.network import Network
from guesthouse.network.bridged.attaching import FOLDER, HostBridges
from guesthouse.network.bridged.hostlink import HostLink
from guesthouse.network.bridged.moves import Moves
from guesthouse.operations.bridging import resolver_commands
from tests.api.api_house import ApiHouse
from tests.api.test_networks import ROUTE, able, create, launch, shown
from tests.api.test_writes import WAIT, job_of
from tests.unit.keeper_house import until

OFFICE = {"name": "office", "kind": "bridged", "uplink": "eth0"}


class Bridges:
    """In place of a host's: nothing is done to this machine."""

    def __init__(self, folder: Path) -> None:
        self.moves = Moving(folder)
        self.removed: list[str] = []

    async def check(self, network: Network) -> HostLink:
        if network.uplink == "lo":
            raise HostLacks("This house may not.", hint="Be root.", capability="bridging")
        return HostLink(name=network.uplink, kind="bridge" if network.uplink == "br0" else "")

    def moves_address(self, network: Network, link: HostLink) -> bool:
        return link.kind != "bridge"

    async def remove(self, network: str) -> None:
        self.removed.append(network)
        self.moves.begun.pop(network, None)


class Moving(Moves):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.begun: dict[str, str] = {}
        self.lost = ""

    def state(self, network: str) -> str:
        return self.begun.get(network, "")

    def confirm_by(self, network: str) -> float | None:
        return 30.0 if self.state(network) == "moving" else None

    def confirm(self, network: str) -> None:
        if self.state(network) == "moving":
            self.begun[network] = "kept"
            return
        super().confirm(network)

    async def move(self, network: str, link: HostLink, *, unattended: bool = False) -> None:
        self.begun[network] = "moving"

    async def settled(self, network: str) -> str:
        await until(lambda: self.begun.get(network) != "moving" or self.lost)
        return self.lost


@pytest.fixture
def bridges(house: ApiHouse, tmp_path: Path) -> Bridges:
    made = Bridges(tmp_path / "bridged")
    house.rooms.bridges = made
    return made


async def test_made_when_it_is_confirmed(
    api: httpx.AsyncClient, house: ApiHouse, bridges: Bridges
) -> None:
    able(house)
    job = job_of(await api.post(ROUTE, json=OFFICE))
    await until(lambda: "moving" in bridges.moves.begun.values())
    assert (await shown(api, "office"))["confirm_by"] == 30.0
    busy = (await api.post("/v1/guests", json={"image": "micro", "networks": ["office"]})).json()
    assert busy["code"] == "busy" and "guest network confirm office" in busy["hint"]
    answer = await api.post(f"{ROUTE}/office/confirm")
    assert answer.status_code == 200 and answer.json()["confirm_by"] is None
    ended = await house.jobs.wait(job.id)
    assert ended.state is JobState.DONE
    office = await shown(api, "office")
    assert (office["uplink"], office["subnet4"], office["host_access"]) == ("eth0", "", True)
    assert (await launch(api, "web", networks=["office"])).state is JobState.DONE
    port = {"host_port": 0, "guest_port": 80}
    body = {"image": "micro", "name": "db", "networks": ["office"], "publish": [port]}
    assert (await api.post("/v1/guests", json=body)).json()["code"] == "invalid-input"
    refused = await api.patch(f"{ROUTE}/office", json={"host_access": False})
    assert refused.status_code == 400 and "neighbours" in refused.text
    await api.delete("/v1/guests/web", params={**WAIT, "now": "true"})
    assert job_of(await api.delete(f"{ROUTE}/office", params=WAIT)).state is JobState.DONE
    assert bridges.removed == [office["id"]]


async def test_what_nobody_confirms_is_not_made(
    api: httpx.AsyncClient, house: ApiHouse, bridges: Bridges
) -> None:
    bridges.moves.lost = "nobody confirmed it within 30 seconds"
    job = await create(api, **OFFICE)
    assert job.state is JobState.FAILED and job.problem is not None
    assert job.problem.code == "conflict" and "eth0 is as it was: nobody" in job.problem.message
    assert (await api.get(f"{ROUTE}/office")).status_code == 404
    assert not house.view.networks and len(bridges.removed) == 1
    assert (await api.post(f"{ROUTE}/office/confirm")).status_code == 404
    bridges.moves.lost = ""
    cancelled = job_of(await api.post(ROUTE, json=OFFICE))
    await asyncio.sleep(0.2)
    await api.post(f"/v1/jobs/{cancelled.id}/cancel")
    assert (await house.jobs.wait(cancelled.id)).state is JobState.CANCELLED
    assert not house.view.networks and len(bridges.removed) == 2


@pytest.mark.usefixtures("bridges")
async def test_refused_by_name_and_joined_without_a_word(api: httpx.AsyncClient) -> None:
    job = await create(api, **{**OFFICE, "uplink": "lo"})
    assert job.problem is not None and job.problem.code == "host-lacks"
    assert (await api.get(ROUTE)).json() == []
    assert (await create(api, **{**OFFICE, "uplink": "br0"})).state is JobState.DONE
    answer = await api.post(f"{ROUTE}/office/confirm")
    assert answer.status_code == 409 and "nothing to confirm" in answer.text


@pytest.fixture
def alone(house: ApiHouse) -> None:
    """The host has no routes."""

    async def no_routes() -> tuple[str, ...]:
        return ()

    house.rooms.host_routes = no_routes


@pytest.fixture
def may(monkeypatch: pytest.MonkeyPatch) -> None:
    """This house may change the host's network; nothing here does."""
    monkeypatch.setattr("guesthouse.operations.bridging.check_may_change", lambda: None)


@pytest.mark.usefixtures("may", "alone")
async def test_routed_and_connected_say_what_is_to_be_done(api: httpx.AsyncClient) -> None:
    job = await create(api, "out", kind="routed")
    assert job.state is JobState.DONE
    log = (await api.get(f"/v1/jobs/{job.id}/log")).text
    assert f"routers of the network outside must send {(await shown(api, 'out'))['subnet4']}" in log
    await create(api, "lan", domain="lan.internal")
    job = job_of(await api.patch(f"{ROUTE}/lan", json={"connected": True}, params=WAIT))
    assert job.state is JobState.DONE and (await shown(api))["connected"]
    log = (await api.get(f"/v1/jobs/{job.id}/log")).text
    assert (await shown(api))["own_address4"] in log
    await create(api, "lab", kind="isolated")
    job = job_of(await api.patch(f"{ROUTE}/lab", json={"connected": True}, params=WAIT))
    assert job.problem is not None and job.problem.code == "invalid-input"
    job = job_of(await api.patch(f"{ROUTE}/lan", json={"connected": False}, params=WAIT))
    assert job.state is JobState.DONE and not (await shown(api))["connected"]


@pytest.mark.usefixtures("alone")
async def test_an_ordinary_house_is_told_why_not(
    api: httpx.AsyncClient, house: ApiHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.rooms.bridges = HostBridges(house.rooms.folders.runtime / FOLDER)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    await create(api)
    changed = await api.patch(f"{ROUTE}/lan", json={"connected": True}, params=WAIT)
    for job, what in (
        (job_of(changed), "A way in from this host"),
        (await create(api, "out", kind="routed"), "A routed network"),
        (await create(api, **OFFICE), "Only the machine's house can bridge"),
    ):
        assert job.problem is not None and job.problem.code == "host-lacks"
        assert what in job.problem.message and "guesthoused --system" in job.problem.hint
    assert not (await shown(api))["connected"]


def test_the_resolver_is_told_of_names_below_the_domain_alone() -> None:
    lan = Network(
        id="lan", name="lan", subnet4="10.9.8.0/24", domain="lan.internal", created_at=0.0
    )
    assert resolver_commands(lan, "ghu-0123abcd") == [
        ["resolvectl", "dns", "ghu-0123abcd", "10.9.8.1"],
        ["resolvectl", "domain", "ghu-0123abcd", "~lan.internal"],
    ]
    assert resolver_commands(msgspec.structs.replace(lan, domain=""), "ghu-0123abcd") == []
