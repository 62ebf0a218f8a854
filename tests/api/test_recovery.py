"""The database is lost: what comes back of it, under which names, and what does not."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guesthouse.errors import KeeperUnavailable
from guesthouse.host.settings import Settings
from guesthouse.model.device import Publish
from guesthouse.model.firewall import AddressSet, SecurityGroup
from guesthouse.model.guest import Guest
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job, JobState, Step
from guesthouse.model.network import Lease, Network
from guesthouse.model.reports import (
    DeleteRequest,
    EmptyRequest,
    Finding,
    FindingKind,
    StartRequest,
    StopRequest,
    UndeleteRequest,
)
from guesthouse.model.states import GuestState
from guesthouse.operations.deletion import number_key
from guesthouse.operations.recovery import Recover
from guesthouse.operations.survey import free_name, touched, unknown_copies
from guesthouse.operations.trash import DAY
from guesthouse.storage.collect import CollectParams
from guesthouse.store.contract import Op, Put
from guesthouse.store.documents import GROUPS, GUESTS, LEASES, NETWORKS, SETS
from guesthouse.supervisor.copies import CopyKeeper
from tests.api.api_house import ApiHouse, open_house

S = GuestState


class Street:
    """One house after the other in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.house: ApiHouse

    async def open(self) -> ApiHouse:
        self.house = await open_house(self.folder)
        return self.house

    async def lose(self) -> ApiHouse:
        """The copies are up to date; the database goes with its daemon. Answers the next house."""
        await CopyKeeper(self.house.rooms).flush()
        await self.house.close()
        for path in (self.folder / "state").glob("guesthouse.db*"):
            path.unlink()
        return await self.open()


@pytest.fixture
async def street(folder: Path) -> AsyncIterator[Street]:
    made = Street(folder)
    await made.open()
    yield made
    await made.house.close()


async def recover(house: ApiHouse) -> dict[str, Any]:
    job = await house.ended(await house.recover("test"))
    assert job.state is JobState.DONE, job.problem
    return job.result or {}


async def remove(house: ApiHouse, name: str) -> None:
    await house.ended(await house.delete_guest(name, DeleteRequest(), "test"))


async def findings(house: ApiHouse) -> dict[str, Finding]:
    return {one.id: one for one in (await house.survey()).findings}


async def states(house: ApiHouse) -> dict[str, S]:
    while house.jobs.active():
        await house.jobs.wait(house.jobs.active()[0].id)
    await house.view.wait_for(house.rooms.documents.store.revision)
    return {guest.name: guest.state for guest in house.view.guests.values()}


def copies(street: Street, kind: str = "guests") -> Path:
    return street.house.rooms.pool.documents / kind


async def test_nothing_to_recover(street: Street) -> None:
    await street.house.guest("web")
    assert await findings(street.house) == {}
    assert await recover(street.house) == {
        "guests": 0, "images": 0, "volumes": 0, "networks": 0, "left": 0, "renamed": {},
    }  # fmt: skip


async def test_all_comes_back(street: Street) -> None:
    port = Publish(host_port=25701, guest_port=80)
    before = {
        "runs": await street.house.guest("runs", publish=(port,)),
        "held": await street.house.guest("held"),
        "rests": await street.house.guest("rests", start=False),
        "gone": await street.house.guest("gone", start=False),
    }
    await street.house.ended(await street.house.pause("held", EmptyRequest(), "test"))
    await remove(street.house, "gone")
    images = dict(street.house.view.images)
    house = await street.lose()
    assert house.info().unknown_copies == 5
    found = await findings(house)
    assert {one.name: one.state for one in found.values() if one.kind is FindingKind.GUEST} == {
        "runs": "running", "held": "running", "rests": "stopped", "gone": "trash",
    }  # fmt: skip
    assert not any(one.problem for one in found.values())
    assert await recover(house) == {
        "guests": 4, "images": 1, "volumes": 0, "networks": 0, "left": 0, "renamed": {},
    }  # fmt: skip
    assert await states(house) == {
        "runs": S.RUNNING, "held": S.PAUSED, "rests": S.STOPPED, "gone": S.STOPPED,
    }  # fmt: skip
    for name, guest in before.items():
        back = house.view.guests[guest.id]
        assert (back.spec, back.number, back.uuid) == (guest.spec, guest.number, guest.uuid), name
        assert back.in_trash == (name == "gone")
        assert back.launch == guest.launch
        entry = await house.rooms.documents.store.get(number_key(guest.number))
        assert entry and entry.value.decode() == guest.id
    assert house.view.guest("runs").status.pid == before["runs"].status.pid
    assert house.view.guest("runs").status.started_at == before["runs"].status.started_at
    assert house.view.images == images
    assert house.info().unknown_copies == 0
    # They are followed again: an end is noticed. A removed guest can be brought back.
    house.driver.exit_guest(before["runs"].id, "guest-panic")
    async with asyncio.timeout(30):
        while house.view.guest("runs").state is not S.FAILED:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await house.ended(await house.undelete("gone", UndeleteRequest(), "test"))
    assert house.view.guest("gone").id == before["gone"].id


async def test_a_guest_that_ended_is_settled(street: Street) -> None:
    guest = await street.house.guest("web")
    driver = street.house.driver
    await CopyKeeper(street.house.rooms).flush()
    await street.house.close()
    for path in (street.folder / "state").glob("guesthouse.db*"):
        path.unlink()
    driver.exit_guest(guest.id, "guest-panic", "Its kernel panicked.")
    house = await street.open()
    await recover(house)
    assert await states(house) == {"web": S.FAILED}
    assert house.view.guest("web").status.reason == "guest-panic"


async def test_a_copy_older_than_the_process(street: Street) -> None:
    """It was started after its copy was written: the process itself tells."""
    guest = await street.house.guest("web", start=False)
    await CopyKeeper(street.house.rooms).flush()
    old = (copies(street) / f"{guest.id}.json").read_bytes()
    await street.house.ended(await street.house.start("web", StartRequest(), "test"))
    pid = street.house.view.guest("web").status.pid
    house = await street.lose()
    (copies(street) / f"{guest.id}.json").write_bytes(old)
    assert (await findings(house))[guest.id].state == "running"
    await recover(house)
    assert await states(house) == {"web": S.RUNNING}
    assert house.view.guest("web").status.pid == pid


async def test_names_numbers_and_ports_of_others(street: Street) -> None:
    """A new house was begun before the old one was recovered: what is taken is taken."""
    port = Publish(host_port=25702, guest_port=80)
    rests = await street.house.guest("web", start=False, publish=(port,))
    runs = await street.house.guest("db")
    house = await street.lose()
    new = [await house.guest("web", start=False, publish=(port,)), await house.guest("db")]
    assert [guest.number for guest in new] == [rests.number, runs.number]
    found = await findings(house)
    assert "comes back as web-2" in found[rests.id].problem
    assert (await recover(house))["renamed"] == {"web": "web-2", "db": "db-2"}
    assert house.view.guest("web").id == new[0].id
    assert house.view.guest("web-2").id == rests.id
    assert house.view.guest("web-2").spec.nics[0].ports == ()
    assert house.view.guest("db-2").status.pid == runs.status.pid
    assert sorted(guest.number for guest in house.view.guests.values()) == [0, 1, 2, 3]
    named = await house.rooms.documents.guests.named("db-2")
    assert named and named.id == runs.id


async def test_a_name_of_a_guest_that_cannot_be_read(street: Street) -> None:
    guest = await street.house.guest("web", start=False)
    house = await street.lose()
    store, broken = house.rooms.documents.store, new_id()
    ops = [Put(f"guests/{broken}", b"{}"), GUESTS.claim_op("web", broken)]
    await house.view.wait_for(await store.commit(ops))
    await recover(house)
    assert house.view.guest("web-2").id == guest.id


async def test_the_trash_begins_anew_when_its_time_is_over(street: Street) -> None:
    old, young = [await street.house.guest(name, start=False) for name in ("old", "young")]
    for name, days in (("old", 30), ("young", 1)):
        await remove(street.house, name)
        guest = street.house.view.trashed(name)
        changed = await street.house.rooms.documents.guests.update(
            guest.id,
            lambda g, days=days: msgspec.structs.replace(g, deleted_at=time.time() - days * DAY),
        )
        await street.house.view.wait_for(changed.revision)
    house = await street.lose()
    house.rooms.settings = Settings(trash_days=7)
    await recover(house)
    left = {guest.id: (guest.expires_at or 0) - time.time() for guest in house.trash()}
    assert left[old.id] > 6.9 * DAY
    assert 5.9 * DAY < left[young.id] < 6.1 * DAY


async def test_copies_that_cannot_be_used_are_named_and_left(street: Street) -> None:
    guest = await street.house.guest("web", start=False)
    house = await street.lose()
    newer, rubbish, other = new_id(), new_id(), new_id()
    folder = copies(street)
    texts = {
        newer: msgspec.json.encode({"id": newer, "schema": 99}),
        rubbish: b"\0\xff",
        other: (folder / f"{guest.id}.json").read_bytes(),  # says that it is another
    }
    for id, text in texts.items():
        (folder / f"{id}.json").write_bytes(text)
    house.rooms.pool.copies.load()
    found = await findings(house)
    assert "schema 99" in found[newer].problem
    assert not any(found[id].back for id in texts)
    assert (await recover(house))["left"] == 3
    assert [guest.name for guest in house.view.guests.values()] == ["web"]
    for id, text in texts.items():
        assert (folder / f"{id}.json").read_bytes() == text
    assert house.info().unknown_copies == 3


async def test_recovery_goes_on_where_it_was_interrupted(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        await street.house.guest(name)
    house = await street.lose()
    real, calls = Recover._guest, 0

    async def failing(self: Recover, *args: Any) -> Guest:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeeperUnavailable("The keeper is away.")
        return await real(self, *args)

    monkeypatch.setattr(Recover, "_guest", failing)
    job = await house.ended(await house.recover("test"))
    assert job.state is JobState.FAILED
    assert len(house.view.guests) == 1
    assert (await recover(house))["guests"] == 2
    assert await states(house) == dict.fromkeys("abc", S.RUNNING)


async def test_who_runs_must_be_known(street: Street) -> None:
    await street.house.guest("web")
    house = await street.lose()
    house.driver.fail("find", KeeperUnavailable("The keeper is away."))
    with pytest.raises(KeeperUnavailable):
        await house.survey()
    assert not house.view.guests


async def test_a_guest_that_cannot_be_taken_up_is_unobserved(street: Street) -> None:
    await street.house.guest("web")
    house = await street.lose()
    house.driver.fail("attach", KeeperUnavailable("The keeper is away."))
    await recover(house)
    guest = house.view.guest("web")
    assert (guest.state, guest.status.pid is None) == (S.UNOBSERVED, False)


async def unobserved(street: Street) -> ApiHouse:
    """A house whose guest `web` runs and could not be taken up."""
    await street.house.guest("web")
    house = await street.lose()
    house.driver.fail("attach", KeeperUnavailable("The keeper is away."))
    await recover(house)
    assert house.view.guest("web").state is S.UNOBSERVED
    assert await house.driver.stray([])
    return house


async def test_an_unobserved_guest_is_killed_only_if_that_is_asked(street: Street) -> None:
    house = await unobserved(street)
    job = await house.ended(await house.stop("web", StopRequest(), "test"))
    assert job.problem is not None
    assert "cannot be asked" in job.problem.message
    assert await house.driver.stray([])
    job = await house.ended(await house.stop("web", StopRequest(force=True), "test"))
    assert job.state is JobState.DONE, job.problem
    guest = house.view.guest("web")
    assert (guest.state, guest.status.reason, guest.status.pid) == (S.STOPPED, "killed", None)
    assert await house.driver.stray([]) == []


@pytest.mark.parametrize("now", [True, False])
async def test_an_unobserved_guest_is_removed_with_its_process(street: Street, now: bool) -> None:
    house = await unobserved(street)
    request = DeleteRequest(force=True, now=now)
    job = await house.ended(await house.delete_guest("web", request, "test"))
    assert job.state is JobState.DONE, job.problem
    assert await house.driver.stray([]) == []


async def test_garbage_collection_waits_for_the_recovery(street: Street) -> None:
    await street.house.guest("web", start=False)
    house = await street.lose()
    stray = house.rooms.pool.layers.folder / f"{new_id()}.qcow2"
    stray.write_bytes(b"")
    os.utime(stray, (0, 0))

    async def collected() -> dict[str, Any]:
        job = await house.jobs.submit("storage.collect", CollectParams(grace=0.0))
        return (await house.ended(job)).result or {}

    assert (await collected())["kept"] == 1
    assert stray.exists()
    assert (await findings(house))[stray.stem].kind is FindingKind.LAYER
    await recover(house)
    assert stray.exists()
    assert (await collected())["files"] == 1


async def test_what_a_job_is_about_to_remove_is_not_lost(street: Street) -> None:
    house = street.house
    ids = {name: new_id() for name in ("target", "step", "document", "ended", "other")}

    def job(state: JobState, **more: Any) -> Job:
        return Job(id=new_id(), kind="guest.delete", state=state, created_at=0.0, **more)

    steps = (
        Step(name="delete", creates={"volumes": f"{new_id()},{ids['step']}"}),
        Step(name="remove", creates={"document": f'{{"volume":"{ids["document"]}"}}'}),
    )
    jobs = [
        job(JobState.RUNNING, target=f"guests/{ids['target']}", steps=steps),
        job(JobState.DONE, target=f"guests/{ids['ended']}"),
    ]
    assert touched(jobs) & set(ids.values()) == {ids["target"], ids["step"], ids["document"]}
    guest = await house.guest("web", start=False)
    await CopyKeeper(house.rooms).flush()
    house.jobs._locks.try_acquire("test", [GUESTS.key(guest.id)])
    removal = await house.delete_guest("web", DeleteRequest(now=True), "test")
    await house.view.wait_for(
        await house.rooms.documents.store.commit([GUESTS.delete_op(guest.id)])
    )
    assert house.rooms.pool.copies.unknown(house.view.revisions) == [f"guests/{guest.id}"]
    assert unknown_copies(house.rooms) == []
    house.jobs._locks.release("test")
    await house.jobs.wait(removal.id)


@pytest.mark.parametrize(
    ("name", "taken", "free"),
    [
        ("web", set(), "web"),
        ("web", {"web"}, "web-2"),
        ("web", {"web", "web-2", "web-3"}, "web-4"),
        ("a" * 63, {"a" * 63}, "a" * 61 + "-2"),
        ("a" * 60 + "-bc", {"a" * 60 + "-bc"}, "a" * 60 + "-2"),
    ],
)
def test_free_names(name: str, taken: set[str], free: str) -> None:
    assert free_name(name, taken) == free


def network(name: str, subnet: str) -> Network:
    return Network(id=new_id(), name=name, subnet4=subnet, created_at=time.time())


async def put(house: ApiHouse, *ops: Op) -> None:
    await house.view.wait_for(await house.rooms.documents.store.commit(list(ops)))


def on(guest: Guest, network: Network, fixed: str = "") -> Guest:
    nics = (msgspec.structs.replace(guest.spec.nics[0], network=network.id, address4=fixed),)
    return msgspec.structs.replace(guest, spec=msgspec.structs.replace(guest.spec, nics=nics))


async def test_networks_come_back_with_their_addresses_groups_and_sets(street: Street) -> None:
    house = street.house
    guest = await house.guest("web", start=False)
    lan = network("lan", "10.201.1.0/24")
    lease = Lease(id=new_id(), network=lan.id, guest=guest.id, nic=0, mac=guest.spec.nics[0].mac,
                  address4="10.201.1.25", since=0.0)  # fmt: skip
    stray = msgspec.structs.replace(lease, id=new_id(), guest=new_id(), address4="10.201.1.26")
    group = SecurityGroup(id=new_id(), name="web", created_at=0.0)
    office = AddressSet(id=new_id(), name="office", entries=("192.0.2.0/24",), created_at=0.0)
    await put(house, NETWORKS.put_op(lan), NETWORKS.claim_op("lan", lan.id), LEASES.put_op(lease),
              LEASES.put_op(stray), GROUPS.put_op(group), SETS.put_op(office),
              GUESTS.put_op(on(guest, lan, "10.201.1.25")))  # fmt: skip
    house = await street.lose()
    kinds = {one.id: one.kind for one in (await findings(house)).values()}
    assert kinds[lan.id] is FindingKind.NETWORK and kinds[group.id] is FindingKind.GROUP
    assert (await recover(house))["networks"] == 1
    assert house.view.networks == {lan.id: lan} and house.view.leases == {lease.id: lease}
    assert house.view.groups == {group.id: group} and house.view.sets == {office.id: office}
    [card] = house.view.guest("web").spec.nics
    assert (card.network, card.address4) == (lan.id, "10.201.1.25")
    named = await house.rooms.documents.networks.named("lan")
    assert named is not None and named.id == lan.id
    assert unknown_copies(house.rooms) == [], "what belongs to nobody is gone"


async def test_networks_whose_name_and_subnet_others_have_by_now(street: Street) -> None:
    house = street.house
    guest = await house.guest("web", start=False)
    lan, gone = network("lan", "10.201.1.0/24"), network("gone", "10.201.9.0/24")
    lease = Lease(id=new_id(), network=lan.id, guest=guest.id, nic=0, mac="", since=0.0,
                  address4="10.201.1.25")  # fmt: skip
    other = await house.guest("db", start=False)
    await put(house, NETWORKS.put_op(lan), LEASES.put_op(lease),
              GUESTS.put_op(on(guest, lan, "10.201.1.25")),
              GUESTS.put_op(on(other, gone, "10.201.9.9")))  # fmt: skip
    house = await street.lose()
    taken = network("lan", "10.201.0.0/16")
    await put(house, NETWORKS.put_op(taken), NETWORKS.claim_op("lan", taken.id))
    found = await findings(house)
    assert "lan-2" in found[lan.id].problem and "10.201.0.0/16" in found[lan.id].problem
    assert gone.id in found[other.id].problem
    await recover(house)
    back = house.view.networks[lan.id]
    assert back.name == "lan-2" and back.subnet4 and not back.subnet4.startswith("10.201.")
    assert not house.view.leases, "its address is not of that network"
    [card] = house.view.guest("web").spec.nics
    assert (card.network, card.address4) == (lan.id, ""), "nor is what somebody chose there"
    [card] = house.view.guest("db").spec.nics
    assert (card.network, card.address4) == ("builtin", "")
    assert await findings(house) == {}
