"""Firewalls by the API: rules with names, groups, sets, and what becomes of whom they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from guesthouse.errors import EngineError
from guesthouse.model.firewall import Firewall
from guesthouse.model.firewalling import LoggedPacket
from guesthouse.model.guest import Guest
from guesthouse.model.host import Capability
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job, JobState
from guesthouse.model.network import Lease
from guesthouse.operations.networks import StoreRecords
from guesthouse.store.documents import GUESTS, LEASES
from tests.api.api_house import ApiHouse
from tests.api.test_networks import able, create, launch
from tests.api.test_writes import WAIT, job_of

WEB, DB = "/v1/guests/web/firewall", "/v1/guests/db/firewall"
SSH = {"action": "accept", "protocol": "tcp", "ports": ["22"], "sources": ["db"]}


@pytest.fixture
async def told(house: ApiHouse, api: httpx.AsyncClient) -> list[str]:
    """Guests web and db on a network lan; each time that the kernel is told stands here."""
    able(house)
    calls: list[str] = []

    async def reload(view: object) -> None:
        calls.append("told")

    async def no_routes() -> tuple[str, ...]:
        return ()

    house.rooms.host_routes = no_routes
    house.rooms.rules.reload = reload  # type: ignore[method-assign]  # a stand-in
    await create(api)
    for name in ("web", "db"):
        assert (await launch(api, name, networks=["lan"])).state is JobState.DONE
    return calls


async def done(answer: httpx.Response) -> Job:
    job = job_of(answer)
    assert job.state is JobState.DONE, job.problem
    return job


async def add(api: httpx.AsyncClient, where: str = WEB, **rule: Any) -> str:
    job = await done(await api.post(f"{where}/rules", json=rule, params=WAIT))
    assert job.result
    return str(job.result["rule"])


async def shown(api: httpx.AsyncClient, where: str = WEB) -> dict[str, Any]:
    answer = await api.get(where)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def names(found: dict[str, Any]) -> list[str]:
    return [rule["name"] for rule in found["rules"]]


def stored(house: ApiHouse, name: str = "web") -> Firewall:
    return house.view.guest(name).spec.firewall


async def test_rules_are_added_in_order_and_hold_at_once(
    api: httpx.AsyncClient, house: ApiHouse, told: list[str]
) -> None:
    assert await add(api, **SSH) == "allow-in-tcp-22"
    assert await add(api, **SSH) == "allow-in-tcp-22-2"
    assert await add(api, action="drop", name="last") == "last"
    assert await add(api, name="first", before="1") == "first"
    assert await add(api, name="third", before="allow-in-tcp-22-2") == "third"
    assert told == ["told"] * 5
    found = await shown(api)
    assert names(found) == ["first", "allow-in-tcp-22", "third", "allow-in-tcp-22-2", "last"]
    assert [rule["number"] for rule in found["rules"]] == [1, 2, 3, 4, 5]
    assert found["rules"][1]["sources"] == ["guest:db"]
    assert stored(house).rules[1].sources == (f"guest:{house.view.guest('db').id}",)
    await done(await api.delete(f"{WEB}/rules/third", params=WAIT))
    await done(await api.delete(f"{WEB}/rules/1", params=WAIT))
    body = {"action": "reject", "protocol": "udp", "ports": ["53", "60-70"]}
    await done(await api.put(f"{WEB}/rules/allow-in-tcp-22-2", json=body, params=WAIT))
    found = await shown(api)
    assert names(found) == ["allow-in-tcp-22", "allow-in-tcp-22-2", "last"]
    assert found["rules"][1]["action"] == "reject" and found["rules"][1]["ports"] == body["ports"]
    body = {"incoming": "drop", "outgoing": "reject"}
    await done(await api.patch(WEB, json=body, params=WAIT))
    assert (await shown(api))["policy"] == body
    await done(await api.patch(WEB, json={"outgoing": "default"}, params=WAIT))
    assert (await shown(api))["policy"] == {"incoming": "drop", "outgoing": None}


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("rule", "code", "word"),
    [
        ({"ports": ["22"]}, "invalid-input", "only tcp and udp"),
        ({"protocol": "tcp", "ports": ["0"]}, "invalid-input", "1 to 65535"),
        ({"sources": ["nobody"]}, "not-found", "no guest 'nobody'"),
        ({"sources": ["group:nobody"]}, "not-found", "firewall group ls"),
        ({"sources": ["set:nobody"]}, "not-found", "firewall set ls"),
        ({"sources": ["10.0.0.1/24"]}, "invalid-input", "10.0.0.0/24"),
        ({"sources": ["10.0.0.1"], "destinations": ["fd00::1"]}, "invalid-input", "never match"),
        ({"name": "UP"}, "invalid-input", "cannot be a name"),
        ({"name": "one"}, "conflict", "already a rule"),
        ({"before": "two"}, "not-found", "Its rules: one"),
        ({"before": "2"}, "not-found", "Its rules: one"),
    ],
)
async def test_what_cannot_be_a_rule(
    api: httpx.AsyncClient, rule: dict[str, Any], code: str, word: str
) -> None:
    await add(api, name="one")
    answer = await api.post(f"{WEB}/rules", json=rule, params=WAIT)
    assert answer.json()["code"] == code, answer.text
    assert word.lower() in answer.text.lower()
    assert names(await shown(api)) == ["one"]


@pytest.mark.usefixtures("told")
async def test_a_guest_on_no_network_of_the_house_can_have_no_rules(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await launch(api, "alone", networks=["builtin"])
    where = "/v1/guests/alone/firewall"
    for answer in (
        await api.post(f"{where}/rules", json={}, params=WAIT),
        await api.patch(where, json={"incoming": "drop"}, params=WAIT),
        await api.post(f"{where}/test", json={"port": 80}),
    ):
        assert answer.status_code == 400 and "no network of the house" in answer.text
    await done(await api.patch(where, json={"incoming": "accept"}, params=WAIT))
    found = await shown(api, where)
    assert "card 0" in found["warnings"][0] and not found["active"]


async def test_what_the_kernel_refuses_is_taken_back(
    api: httpx.AsyncClient, house: ApiHouse, told: list[str]
) -> None:
    await add(api, **SSH)
    await done(await api.post("/v1/security-groups", json={"name": "ssh"}, params=WAIT))
    await done(await api.post("/v1/address-sets", json={"name": "office"}, params=WAIT))
    before = [await shown(api, where) for where in (WEB, "/v1/networks/lan/firewall")]

    async def broken(view: object) -> None:
        raise EngineError("nft says no.")

    house.rooms.rules.reload = broken  # type: ignore[method-assign]  # a stand-in
    for answer in (
        await api.post(f"{WEB}/rules", json={"name": "two"}, params=WAIT),
        await api.delete(f"{WEB}/rules/1", params=WAIT),
        await api.put(f"{WEB}/rules/1", json={"name": "other"}, params=WAIT),
        await api.patch(WEB, json={"incoming": "drop", "join": ["ssh"]}, params=WAIT),
        await api.post("/v1/networks/lan/firewall/rules", json={}, params=WAIT),
        await api.patch("/v1/networks/lan/firewall", json={"incoming": "drop"}, params=WAIT),
        await api.post("/v1/security-groups/ssh/rules", json={}, params=WAIT),
        await api.patch("/v1/security-groups/ssh", json={"name": "other"}, params=WAIT),
        await api.patch("/v1/address-sets/office", json={"add": ["10.0.0.1"]}, params=WAIT),
    ):
        job = job_of(answer)
        assert job.state is JobState.FAILED and job.problem, job
        assert job.problem.message == "nft says no."
    assert [await shown(api, where) for where in (WEB, "/v1/networks/lan/firewall")] == before
    assert (await shown(api, "/v1/security-groups/ssh"))["rules"] == []
    assert (await shown(api, "/v1/address-sets/office"))["entries"] == []


@pytest.mark.usefixtures("told")
async def test_a_kernel_that_cannot_log_is_told_of(
    api: httpx.AsyncClient, house: ApiHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(api, name="quiet", log=True)
    lack = Capability(
        name="nft-log", available=False, reason="No NFLOG.", cure="modprobe nfnetlink_log"
    )
    monkeypatch.setattr(house.rooms.rules, "lack", lambda name: lack)
    answer = await api.post(f"{WEB}/rules", json={"log": True}, params=WAIT)
    assert answer.status_code == 501 and answer.json()["hint"] == "modprobe nfnetlink_log"
    assert (await shown(api))["warnings"] == ["Nothing is logged: No NFLOG."]
    await add(api, name="other")


async def test_groups_are_shared_and_stay_while_somebody_needs_them(
    api: httpx.AsyncClient, house: ApiHouse, told: list[str]
) -> None:
    await done(await api.post("/v1/security-groups", json={"name": "ssh"}, params=WAIT))
    again = await api.post("/v1/security-groups", json={"name": "ssh"}, params=WAIT)
    assert again.json()["code"] == "name-taken"
    group = "/v1/security-groups/ssh"
    await add(api, group, **SSH)
    await done(await api.patch(WEB, json={"join": ["ssh"]}, params=WAIT))
    await done(await api.patch("/v1/networks/lan/firewall", json={"join": ["ssh"]}, params=WAIT))
    await add(api, DB, name="friends", sources=["group:ssh"])
    found = await shown(api, group)
    assert found["members"] == ["guest web", "network lan"]
    assert found["named_by"] == ["guest db (rule friends)"]
    applied = (await shown(api))["applied"]
    assert [(rule["owner"], rule["name"]) for rule in applied] == [("group ssh", "allow-in-tcp-22")]
    job = job_of(await api.delete(group, params=WAIT))
    assert job.problem is not None and job.problem.code == "in-use"
    for word in ("guest web", "network lan", "guest db (rule friends)"):
        assert word in job.problem.message
    await done(await api.patch(group, json={"name": "login", "note": "x"}, params=WAIT))
    assert (await shown(api))["groups"] == ["login"]
    await done(await api.patch(WEB, json={"leave": ["login"]}, params=WAIT))
    await done(await api.patch("/v1/networks/lan/firewall", json={"leave": ["login"]}, params=WAIT))
    await done(await api.delete("/v1/guests/db", params=WAIT))
    job = job_of(await api.delete("/v1/security-groups/login", params=WAIT))
    assert job.problem is not None and "db (trash)" in job.problem.message
    await done(await api.delete("/v1/trash/db", params=WAIT))
    await house.rooms.pool.write_copy("security-groups", next(iter(house.view.groups.values())))
    await done(await api.delete("/v1/security-groups/login", params=WAIT))
    assert (await api.get("/v1/security-groups")).json() == []
    assert not [key for key in house.rooms.pool.copies.keys if key.startswith("security")]


async def test_a_guest_is_in_groups_from_its_launch(
    api: httpx.AsyncClient, house: ApiHouse, told: list[str]
) -> None:
    for name in ("shop", "ssh"):
        await done(await api.post("/v1/security-groups", json={"name": name}, params=WAIT))
    ids = {group.name: group.id for group in house.view.groups.values()}
    wanted = ["ssh", ids["shop"], "ssh"]
    job = await launch(api, "new", networks=["lan"], groups=wanted)
    assert job.state is JobState.DONE, job.problem
    assert stored(house, "new").groups == (ids["ssh"], ids["shop"])
    assert (await shown(api, "/v1/guests/new/firewall"))["groups"] == ["ssh", "shop"]
    assert (await shown(api, "/v1/security-groups/shop"))["members"] == ["guest new"]
    assert (await launch(api, "other", groups=["ssh"])).state is JobState.DONE
    assert not stored(house).groups


async def test_groups_at_launch_are_refused_where_they_would_keep_nobody_out(
    api: httpx.AsyncClient, house: ApiHouse, told: list[str]
) -> None:
    await done(await api.post("/v1/security-groups", json={"name": "ssh"}, params=WAIT))
    body = {"image": "micro", "name": "new", "start": False, "groups": ["shh"]}
    unknown = await api.post("/v1/guests", json=body)
    assert unknown.status_code == 404 and "ssh" in unknown.json()["hint"]
    body |= {"groups": ["ssh"], "networks": ["builtin"]}
    alone = await api.post("/v1/guests", json=body)
    assert alone.status_code in (400, 422) and "only there rules hold" in alone.text, alone.text
    able(house, lacks="nft")
    job = await launch(api, "new", groups=["ssh"])
    assert job.problem is not None and job.problem.code == "host-lacks"
    assert "only there rules hold: nft was tried." in job.problem.message
    assert "new" not in {guest.name for guest in house.view.guests.values()}


async def test_a_group_that_goes_while_its_guest_is_launched(
    api: httpx.AsyncClient, house: ApiHouse, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await done(await api.post("/v1/security-groups", json={"name": "ssh"}, params=WAIT))

    async def removed(*_: object) -> tuple[str, ...]:
        await done(await api.delete("/v1/security-groups/ssh", params=WAIT))
        return (next(iter(house.view.networks)),)

    monkeypatch.setattr("guesthouse.operations.creation.chosen", removed)
    job = await launch(api, "new", groups=["ssh"])
    assert job.problem is not None and job.problem.code == "not-found"
    assert "new" not in {guest.name for guest in house.view.guests.values()}


async def test_sets_change_and_stay_while_a_rule_names_them(
    api: httpx.AsyncClient, house: ApiHouse, told: list[str]
) -> None:
    body = {"name": "office", "entries": ["192.0.2.7/32", "2001:DB8::/32"]}
    await done(await api.post("/v1/address-sets", json=body, params=WAIT))
    where = "/v1/address-sets/office"
    assert (await shown(api, where))["entries"] == ["192.0.2.7", "2001:db8::/32"]
    await add(api, sources=["set:office"], name="office")
    change = {"add": ["198.51.100.0/24", "192.0.2.7"], "remove": ["2001:db8::/32"]}
    before = len(told)
    await done(await api.patch(where, json=change, params=WAIT))
    assert len(told) == before + 1
    assert (await shown(api, where))["entries"] == ["192.0.2.7", "198.51.100.0/24"]
    job = job_of(await api.patch(where, json={"remove": ["203.0.113.1"]}, params=WAIT))
    assert job.problem is not None and job.problem.code == "not-found"
    assert (await api.patch(where, json={"add": ["x"]}, params=WAIT)).status_code == 400
    job = job_of(await api.delete(where, params=WAIT))
    assert job.problem is not None and "guest web (rule office)" in job.problem.message
    await done(await api.delete(f"{WEB}/rules/office", params=WAIT))
    await house.rooms.pool.write_copy("address-sets", next(iter(house.view.sets.values())))
    await done(await api.delete(where, params=WAIT))
    assert (await api.get("/v1/address-sets")).json() == []
    assert not [key for key in house.rooms.pool.copies.keys if key.startswith("address")]


@pytest.mark.usefixtures("told")
async def test_a_rule_outlives_whom_it_names_and_is_about_nobody_else(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await add(api, **SSH)
    await done(await api.post("/v1/guests/db/rename", json={"name": "store"}, params=WAIT))
    assert (await shown(api))["rules"][0]["sources"] == ["guest:store"]
    await done(await api.delete("/v1/guests/store", params=WAIT))
    rule = (await shown(api))["rules"][0]
    assert rule["missing"] == {"guest:store": "trash"}
    answer = await api.post(f"{WEB}/rules", json={"sources": ["store"]}, params=WAIT)
    assert answer.status_code == 404 and "trash" in answer.text
    job = await done(await api.delete("/v1/trash/store", params=WAIT))
    told = (await api.get(f"/v1/jobs/{job.id}/log")).text
    assert "guest web (rule allow-in-tcp-22), which is about nobody now" in told
    assert (await launch(api, "store", networks=["lan"])).state is JobState.DONE
    [rule] = (await shown(api))["rules"]
    [end] = rule["sources"]
    assert rule["missing"] == {end: "gone"} and end != "guest:store"


def lease(guest: Guest, host: int) -> Lease:
    network = guest.spec.nics[0].network
    mac = guest.spec.nics[0].mac
    return Lease(
        id=new_id(), network=network, guest=guest.id, nic=0, mac=mac, since=0.0,
        address4=f"10.128.0.{host}",
    )  # fmt: skip


@pytest.mark.usefixtures("told")
async def test_the_dry_run(api: httpx.AsyncClient, house: ApiHouse) -> None:
    rooms = house.rooms
    answer = await api.post(f"{WEB}/test", json={"port": 22, "far": "db"})
    assert answer.status_code == 400, "nobody has an address yet"
    records = StoreRecords(rooms.documents, house.view)

    async def ruleset(view: object) -> Any:
        from guesthouse.network.rules.ruleset import Ruleset

        return Ruleset(
            networks=tuple(house.view.networks.values()),
            cards=tuple(seat.card for seat in records.seats(house.view.guests.values())),
            groups=tuple(records.groups()),
            host=("198.51.100.1",),
        )

    rooms.rules.ruleset = ruleset  # type: ignore[method-assign]  # a stand-in
    leases = [lease(house.view.guest(name), host) for name, host in (("web", 10), ("db", 11))]
    ops = [LEASES.put_op(one) for one in leases]
    await house.view.wait_for(await rooms.documents.store.commit(ops))
    await add(api, **SSH)
    await done(await api.patch(WEB, json={"incoming": "drop"}, params=WAIT))

    async def decided(**packet: Any) -> tuple[str, str]:
        answer = await api.post(f"{WEB}/test", json=packet)
        assert answer.status_code == 200, answer.text
        return answer.json()["action"], answer.json()["label"]

    assert await decided(port=22, far="db") == ("accept", "guest/web/allow-in-tcp-22")
    assert await decided(port=22, far="10.128.0.11") == ("accept", "guest/web/allow-in-tcp-22")
    assert await decided(port=80, far="db") == ("drop", "guest/web/policy-in")
    assert await decided(port=80) == ("drop", "wall/unsolicited")
    assert await decided(port=80, far="host") == ("drop", "wall/unsolicited")
    assert await decided(port=80, direction="out") == ("accept", "house/policy-out")
    assert await decided(port=80, direction="out", far="host") == ("drop", "wall/host")
    found = await decided(protocol="icmp", direction="out", far="house")
    assert found == ("accept", "house/echo")
    for wrong in (
        {"port": 0},
        {"protocol": "icmp", "port": 1},
        {"protocol": "any", "port": 1},
        {"port": 1, "far": "house"},
        {"port": 1, "far": "2001:db8::1"},
        {"port": 1, "far": "224.0.0.1", "direction": "out"},
    ):
        assert (await api.post(f"{WEB}/test", json=wrong)).status_code == 400, wrong


@pytest.mark.usefixtures("told")
async def test_the_log_has_names_and_is_read_by_guest(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    web, db = house.view.guest("web"), house.view.guest("db")
    house.rooms.rules.log = path = house.rooms.folders.state / "firewall.log"
    assert (await api.get("/v1/firewall/log")).content == b""
    packet: Callable[..., LoggedPacket] = lambda **more: LoggedPacket(  # noqa: E731
        **{"time": 1.0, "action": "drop", "protocol": "tcp", "source": "10.0.0.1",
           "destination": "10.0.0.2", **more}
    )  # fmt: skip
    lines = [
        packet(rule=f"guest/{web.id}/ssh", receiver=web.id),
        packet(rule=f"network/{web.spec.nics[0].network}/all", sender=db.id),
    ]
    path.write_bytes(b'half a line"}\n' + b"".join(msgspec.json.encode(x) + b"\n" for x in lines))
    answer = await api.get("/v1/firewall/log")
    assert answer.headers["content-type"].startswith("text/plain")
    first, second = (msgspec.json.decode(line) for line in answer.content.splitlines())
    assert (first["owner"], first["receiver_name"]) == ("guest web", "web")
    assert (second["owner"], second["sender_name"]) == ("network lan", "db")
    only = (await api.get("/v1/firewall/log?guest=db")).content.splitlines()
    assert [msgspec.json.decode(line)["sender"] for line in only] == [db.id]
    assert (await api.get("/v1/firewall/log?guest=nobody")).status_code == 404


async def test_a_group_that_cannot_be_read_lets_nothing_new_in(
    api: httpx.AsyncClient, house: ApiHouse, told: list[str]
) -> None:
    web = house.view.guest("web")
    lost = new_id()
    spec = msgspec.structs.replace(web.spec, firewall=Firewall(groups=(lost,)))
    ops = [GUESTS.put_op(msgspec.structs.replace(web, spec=spec))]
    await house.view.wait_for(await house.rooms.documents.store.commit(ops))
    records = StoreRecords(house.rooms.documents, house.view)
    [stands_in] = [group for group in records.groups() if group.id == lost]
    assert [(rule.direction, rule.action) for rule in stands_in.rules] == [("in", "drop")]
    assert (await shown(api))["groups"] == [lost]
    await done(await api.patch(WEB, json={"leave": [lost]}, params=WAIT))
    assert not stored(house).groups
