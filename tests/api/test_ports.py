"""Ports that are published while the guest runs, and refusals of that."""

from __future__ import annotations

import logging

import httpx
import msgspec
import pytest

from guesthouse.errors import EngineError, NotFound
from guesthouse.model.job import JobState
from tests.api.api_house import ApiHouse
from tests.api.test_networks import able
from tests.api.test_writes import WAIT, job_of


async def test_nothing_is_left_to_undo_when_the_guest_ended_meanwhile(
    api: httpx.AsyncClient, house: ApiHouse, caplog: pytest.LogCaptureFixture
) -> None:
    await house.guest("web")
    house.driver.fail("publish", EngineError("The monitor's connection broke."))
    house.driver.fail("unpublish", NotFound("The guest's process has ended."))
    with caplog.at_level(logging.WARNING):
        body = {"host_port": 0, "guest_port": 80}
        job = job_of(await api.post("/v1/guests/web/ports", json=body, params=WAIT))
    assert job.state is JobState.FAILED
    assert job.problem is not None
    assert "connection broke" in job.problem.message
    assert "undoing" not in caplog.text
    assert "undoing" not in (await api.get(f"/v1/jobs/{job.id}/log")).text


@pytest.mark.parametrize("start", [True, False])
async def test_an_address_that_no_guest_can_have_is_refused_also_while_it_is_stopped(
    api: httpx.AsyncClient, house: ApiHouse, start: bool
) -> None:
    """Else it could not be started any more."""
    await house.guest("web", start=start)
    able = house.driver.capabilities
    house.driver.capabilities = msgspec.structs.replace(able, ipv6_publish=False)
    body = {"host_ip": "::1", "host_port": 0, "guest_port": 80}
    job = job_of(await api.post("/v1/guests/web/ports", json=body, params=WAIT))
    assert job.problem is not None
    assert job.problem.code == "invalid-input"
    assert "IPv6" in job.problem.message
    guest = (await api.get("/v1/guests/web")).json()
    assert guest["spec"]["nics"][0]["ports"] == []


async def test_the_system_house_opens_no_port_on_an_address_that_nobody_named(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await house.guest("web")
    house.rooms.folders = house.rooms.folders._replace(mode="system")
    port = {"host_port": 0, "guest_port": 80}
    launch = {"image": "micro", "name": "db", "publish": [port]}
    for where, body in (("/v1/guests/web/ports", port), ("/v1/guests", launch)):
        problem = (await api.post(where, json=body)).json()
        assert problem["code"] == "invalid-input" and "127.0.0.1:0:80" in problem["hint"]
    body = {"host_ip": "127.0.0.1", **port}
    job = job_of(await api.post("/v1/guests/web/ports", json=body, params=WAIT))
    assert job.state is JobState.DONE


@pytest.mark.parametrize("root", [pytest.param(True, marks=pytest.mark.root), False])
async def test_privileged_ports_are_for_the_uplink_of_root(
    api: httpx.AsyncClient, house: ApiHouse, monkeypatch: pytest.MonkeyPatch, root: bool
) -> None:
    """A guest of its own, on the builtin network, has a process that is nobody."""
    able(house)
    monkeypatch.setattr("os.geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr("guesthouse.network.ports._can_bind", lambda port: True)
    monkeypatch.setattr("guesthouse.network.ports.unprivileged_port_start", lambda: 1024)
    port = {"host_ip": "127.0.0.1", "host_port": 443, "guest_port": 443}
    for name, networks, allowed in (("a", [], root), ("b", ["builtin"], False)):
        body = {"image": "micro", "name": name, "networks": networks, "publish": [port],
                "start": False}  # fmt: skip
        job = job_of(await api.post("/v1/guests", json=body, params=WAIT))
        assert (job.state is JobState.DONE) is allowed
        if not allowed:
            assert job.problem is not None and job.problem.code == "forbidden"
            assert "ip_unprivileged_port_start=443" in job.problem.hint
        else:
            await api.delete(f"/v1/guests/{name}", params={**WAIT, "now": "true"})
