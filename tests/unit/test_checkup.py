"""Findings about guests and room."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from guesthouse.model.checkup import Check, Health
from guesthouse.model.guest import BootPath, Guest, GuestSpec, GuestStatus, LaunchRecord
from guesthouse.model.host import HostFacts, QemuBinary
from guesthouse.model.ids import new_id
from guesthouse.model.states import GuestState
from guesthouse.operations.checkup import check_guest, check_space
from guesthouse.storage.durable import Space

GIB = 1 << 30
QEMU = QemuBinary(
    path="/q", version=(7, 2, 22), machine="pc-q35-7.2", machines=("pc-q35-7.2", "pc-q35-7.1")
)


def facts(qemu: QemuBinary | None = QEMU) -> HostFacts:
    return HostFacts(
        boot_id="b", kernel="6.1", os="Debian", cpus=2, memory=1 << 36, cgroups="v2", root=False,
        accelerator="tcg", accelerator_reason="", qemu=qemu, capabilities=(), probed_at=0.0,
    )  # fmt: skip


def guest(
    state: GuestState, *, engine: str = "QEMU 7.2.22", machine: str = "", **status: Any
) -> Guest:
    spec = GuestSpec(image="micro", image_id="I", machine=machine)
    runs = state in {GuestState.RUNNING, GuestState.PAUSED}
    launch = LaunchRecord(
        incarnation=1, argv=(), machine="q35", cpu="max", accelerator="tcg", engine=engine,
        boot=BootPath.DISK, spec=spec, pid=77, pid_start=5, boot_id="b", launched_at=0.0,
    )  # fmt: skip
    return Guest(
        id=new_id(), name="web", uuid="u", number=1, created_at=0.0, spec=spec,
        status=GuestStatus(state=state, since=time.time(), pid=77 if runs else None, **status),
        launch=launch,
    )  # fmt: skip


def findings(one: Guest, *, alive: bool = True, host: HostFacts | None = None) -> list[Check]:
    def runs(pid: int, began: int | None) -> bool:
        assert (pid, began) == (77, 5)
        return alive

    return list(check_guest(one, host or facts(), alive=runs))


@pytest.mark.parametrize("state", [GuestState.RUNNING, GuestState.STOPPED, GuestState.SUSPENDED])
def test_nothing_to_say(state: GuestState) -> None:
    assert findings(guest(state)) == []
    assert findings(guest(state, machine="pc-q35-7.1")) == []
    assert findings(guest(state), host=facts(None)) == []


def test_a_process_that_has_gone() -> None:
    (found,) = findings(guest(GuestState.RUNNING), alive=False)
    assert (found.health, "web is said to be running" in found.message) == (Health.TROUBLE, True)
    assert "guest daemon restart" in found.cure
    assert findings(guest(GuestState.STOPPED), alive=False) == []


def test_a_disk_that_could_not_be_written() -> None:
    (found,) = findings(guest(GuestState.PAUSED, reason="io-error"))
    assert (found.health, found.cure) == (Health.TROUBLE, "Make room, then: guest resume web")
    assert findings(guest(GuestState.PAUSED, reason="user")) == []


def test_a_guest_that_failed() -> None:
    (found,) = findings(guest(GuestState.FAILED, message="The engine crashed."))
    assert (found.health, found.message) == (Health.NOTICE, "web failed: The engine crashed.")
    assert "guest logs web" in found.cure


def test_a_guest_on_an_older_engine() -> None:
    (found,) = findings(guest(GuestState.RUNNING, engine="QEMU 7.2.1"))
    assert (found.health, found.cure) == (Health.NOTICE, "guest restart web")
    assert "QEMU 7.2.22 is installed" in found.message
    assert findings(guest(GuestState.STOPPED, engine="QEMU 7.2.1")) == []


def test_a_machine_type_that_is_no_more() -> None:
    (found,) = findings(guest(GuestState.STOPPED, machine="pc-q35-2.4"))
    assert (found.health, "pc-q35-2.4" in found.message) == (Health.TROUBLE, True)
    blind = msgspec.structs.replace(QEMU, machines=())
    assert findings(guest(GuestState.STOPPED, machine="pc-q35-2.4"), host=facts(blind)) == []


@pytest.mark.parametrize(
    ("free", "total", "health"),
    [
        (100 * GIB, 1000 * GIB, Health.FINE),
        (6 * GIB, 1000 * GIB, Health.FINE),  # enough, though a small share
        (4 * GIB, 1000 * GIB, Health.NOTICE),
        (2 * GIB, 10 * GIB, Health.FINE),  # a small file system with a fair share
        (300 << 20, 1000 * GIB, Health.TROUBLE),
        (0, 10 * GIB, Health.TROUBLE),
    ],
)
def test_room(free: int, total: int, health: Health) -> None:
    found = check_space(Space(total, free), "/pool")
    assert found.health is health
    assert bool(found.cure) == (health is not Health.FINE)
    assert "/pool" in found.message
