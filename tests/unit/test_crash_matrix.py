"""The judge of the crash tests judges: every kind of damage that is planted is told."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from guesthouse.model.device import Disk, Nic, Publish
from guesthouse.model.document import encode
from guesthouse.model.guest import BootPath, Guest, GuestSpec, GuestStatus, LaunchRecord
from guesthouse.model.image import BootFiles, Image
from guesthouse.model.job import Job, JobState, Problem
from guesthouse.model.states import GuestState
from guesthouse.model.volume import Volume
from tests.crash.matrix import (
    Bystander,
    Case,
    Fault,
    Point,
    Row,
    Snapshot,
    cases_of,
    disturbed,
    judge,
    sample,
    table,
    violations,
)

PID, PORT, SIZE = 100, 8080, 1 << 20


def guest() -> Guest:
    spec = GuestSpec(
        image="debian/12",
        image_id="I1",
        disks=(Disk(name="root", volume="V2", size=SIZE),),
        nics=(Nic(mac="52:67:68:00:00:01", ports=(Publish(host_port=PORT, guest_port=80),)),),
    )
    launch = LaunchRecord(
        incarnation=1,
        argv=(),
        machine="q35",
        cpu="max",
        accelerator="tcg",
        engine="QEMU",
        boot=BootPath.DISK,
        spec=spec,
        pid=PID,
        pid_start=7,
        boot_id="b",
        launched_at=1.0,
    )
    status = GuestStatus(state=GuestState.RUNNING, since=1.0, pid=PID, started_at=1.0)
    return Guest(
        id="G1",
        name="web",
        uuid="u",
        number=0,
        created_at=1.0,
        spec=spec,
        status=status,
        launch=launch,
    )


def house() -> Snapshot:
    """One guest that runs, on one image."""
    base = Volume(id="V1", immutable=True, size=SIZE, created_at=1.0)
    top = Volume(id="V2", parent="V1", size=SIZE, created_at=1.0)
    files = BootFiles(
        kernel="kernel", initrd="initrd", kernel_digest="", initrd_digest="", cmdline=""
    )
    image = Image(
        id="I1",
        name="debian/12",
        digest="d",
        build_key="k",
        volume="V1",
        size=1,
        virtual_size=SIZE,
        boot_files=files,
        os={},
        facts={},
        created_at=1.0,
        source="built",
    )
    now = Snapshot(
        guests={"G1": guest()},
        volumes={"V1": base, "V2": top},
        images={"I1": image},
        jobs={"J1": Job(id="J1", kind="guest.start", state=JobState.DONE, created_at=1.0)},
        names={"guests/web": "G1", "images/debian/12": "I1"},
        numbers={0: "G1"},
        engines={"G1": [PID]},
        halted={"G1": False},
        listening={PID: {PORT}},
        layers={"V1.qcow2": SIZE, "V2.qcow2": SIZE},
        secrets={"ssh-G1"},
        boot_folders={"I1"},
        guest_folders={"G1"},
    )
    now.copies = {
        "guests": {"G1": encode(now.guests["G1"])},
        "volumes": {id: encode(volume) for id, volume in now.volumes.items()},
        "images": {"I1": encode(image)},
    }
    return now


def status(now: Snapshot, **fields: object) -> None:
    old = now.guests["G1"]
    new = msgspec.structs.replace(old.status, **fields)
    now.guests["G1"] = msgspec.structs.replace(old, status=new)


def failed_defect(now: Snapshot) -> None:
    problem = Problem(code="internal", title="", status=500, message="KeyError")
    now.jobs["J1"] = msgspec.structs.replace(now.jobs["J1"], state=JobState.FAILED, problem=problem)


DAMAGE: dict[str, Callable[[Snapshot], object]] = {
    "a job that never ends": lambda now: now.jobs.update(
        J2=Job(id="J2", kind="guest.stop", created_at=1.0)
    ),
    "a defect": failed_defect,
    "a process of nobody": lambda now: now.engines.update(G9=[5]),
    "a second process": lambda now: now.engines.update(G1=[PID, 5]),
    "no process": lambda now: now.engines.clear(),
    "a stopped guest with a process": lambda now: status(now, state=GuestState.STOPPED, pid=None),
    "a stopped guest with a pid": lambda now: (
        status(now, state=GuestState.STOPPED),
        now.engines.clear(),
    ),
    "a guest on its way for ever": lambda now: status(now, state=GuestState.STOPPING),
    "a running guest whose CPUs stand": lambda now: now.halted.update(G1=True),
    "a port not held": lambda now: now.listening.clear(),
    "a port of nobody": lambda now: now.listening.update({PID: {PORT, 9}}),
    "a name of nobody": lambda now: now.names.update({"guests/old": "G0"}),
    "a guest without its name": lambda now: now.names.pop("guests/web"),
    "a number of nobody": lambda now: now.numbers.update({5: "G0"}),
    "a file without a document": lambda now: now.layers.update({"V9.qcow2": SIZE}),
    "a document without its file": lambda now: now.layers.pop("V2.qcow2"),
    "a damaged layer": lambda now: now.layers.update({"V2.qcow2": "corrupt"}),
    "a layer that is too small": lambda now: now.layers.update({"V2.qcow2": SIZE // 2}),
    "a volume that nobody uses": lambda now: (
        now.volumes.update(V3=Volume(id="V3", size=SIZE, created_at=1.0)),
        now.layers.update({"V3.qcow2": SIZE}),
    ),
    "a copy that is missing": lambda now: now.copies["guests"].clear(),
    "a copy that is out of date": lambda now: now.copies["guests"].update(
        G1=encode(msgspec.structs.replace(guest(), name="old"))
    ),
    "a copy of nothing": lambda now: now.copies["volumes"].update(V9=b"{}"),
    "a key of nobody": lambda now: now.secrets.add("ssh-G9"),
    "a key that is missing": lambda now: now.secrets.clear(),
    "boot files of nothing": lambda now: now.boot_folders.add("I9"),
    "a folder of nobody": lambda now: now.guest_folders.add("G9"),
    "a temporary file": lambda now: now.left.append("/x/.disk.tmp"),
}


def test_a_sound_house_has_nothing_wrong() -> None:
    assert violations(house()) == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told(damage: str) -> None:
    now = house()
    DAMAGE[damage](now)
    assert violations(now)


def test_a_disturbed_bystander_is_told() -> None:
    now = house()
    bystander = Bystander("G1", PID, 7, 1.0)
    assert disturbed(bystander, now, 7) == []
    assert disturbed(bystander, now, 8)  # another process under the same number
    status(now, started_at=2.0)
    assert disturbed(bystander, now, 7)
    now.guests.clear()
    assert disturbed(bystander, now, 7)


def ended(state: JobState) -> Job:
    return Job(id="J", kind="guest.stop", state=state, created_at=1.0)


def said(
    fault: Fault, job: Job | None, *, complete: bool = False, untouched: bool = False, **more: bool
) -> bool:
    flags = {"dead": False, "sure": False} | more
    return bool(judge(fault, job, complete=complete, untouched=untouched, **flags))


def test_all_or_nothing() -> None:
    done, failed = ended(JobState.DONE), ended(JobState.FAILED)
    assert not said(Fault.DAEMON, done, complete=True)
    assert said(Fault.DAEMON, done, untouched=True)
    assert not said(Fault.DAEMON, failed, untouched=True)
    assert said(Fault.DAEMON, failed, complete=True)
    assert said(Fault.FULL, failed)
    assert not said(Fault.DAEMON, None, untouched=True)
    assert said(Fault.DAEMON, None, complete=True)
    assert said(Fault.DAEMON, None, untouched=True, sure=True)
    assert not said(Fault.ENGINE, done, dead=True)
    assert said(Fault.KEEPER, done, dead=True)


POINTS = {
    Point("guest.stop", what, when): what == "done"
    for what in ("accepted", "step:stop", "done")
    for when in ("before", "after")
}


def test_the_matrix_has_every_fault_that_can_be_at_every_point() -> None:
    cases = cases_of("stop", POINTS, root=True)
    assert len(cases) == len(set(map(str, cases))) == 6 * 3 + 2
    assert {case.fault for case in cases} == set(Fault)
    assert Fault.FULL not in {case.fault for case in cases_of("stop", POINTS, root=False)}


def test_a_sample_is_spread_and_chosen_by_its_seed() -> None:
    cases = [case for verb in "abcde" for case in cases_of(verb, POINTS, root=True)]
    chosen = sample(cases, 10, 7)
    assert chosen == sample(list(cases), 10, 7)
    assert chosen != sample(cases, 10, 8)
    verbs = [case.verb for case in chosen]
    assert all(verbs.count(verb) == 2 for verb in "abcde")
    assert {case.fault for case in chosen} == set(Fault)


def test_the_table_has_a_line_for_each_result() -> None:
    case = Case("stop", Point("guest.stop", "step:stop", "after"), Fault.FULL)
    head, line = table([Row(case, "done, attempt 2")])
    assert head.split() == ["operation", "job", "step", "when", "fault", "result"]
    assert line.split(maxsplit=5) == [
        "stop",
        "guest.stop",
        "step:stop",
        "after",
        "full",
        "done, attempt 2",
    ]
