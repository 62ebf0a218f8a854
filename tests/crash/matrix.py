"""The crash matrix: which faults are tried where, and what must hold afterwards. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec

from guesthouse.model.firewall import AddressSet, SecurityGroup
from guesthouse.model.guest import Guest
from guesthouse.model.image import Image
from guesthouse.model.job import Job, JobState
from guesthouse.model.network import Network
from guesthouse.model.states import LIVE
from guesthouse.model.volume import Volume


class Fault(StrEnum):
    """`daemon`, `keeper`, `engine` (the target's QEMU): kill -9. `full`: the state folder's file
    system has not a byte left, for a while."""

    DAEMON = "daemon"
    KEEPER = "keeper"
    ENGINE = "engine"
    FULL = "full"


class Point(NamedTuple):
    """A moment of a job. :ivar what: what is written. :ivar when: `before` or `after` that."""

    kind: str
    what: str
    when: str


class Case(NamedTuple):
    """:ivar verb: the operation as the matrix calls it, such as `launch-disk`."""

    verb: str
    point: Point
    fault: Fault

    def __str__(self) -> str:
        return f"{self.verb}-{self.point.what}-{self.point.when}-{self.fault}"


class Row(NamedTuple):
    """A line of the table of results."""

    case: Case
    result: str


def cases_of(verb: str, points: Mapping[Point, bool], *, root: bool) -> list[Case]:
    """Every fault at every point that makes sense there.

    :param points: with whether the guest has a process then. :param root: we may mount small disks.
    """
    return [
        Case(verb, point, fault)
        for point, running in points.items()
        for fault in Fault
        if (running or fault is not Fault.ENGINE) and (root or fault is not Fault.FULL)
    ]


def sample(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """`count` of them; every verb and every fault has its turn before one has its second."""
    chance = random.Random(seed)
    left = list(cases)
    chance.shuffle(left)
    chosen: list[Case] = []
    while left and len(chosen) < count:
        verbs = [case.verb for case in chosen]
        faults = [(case.fault, case.point.what) for case in chosen]
        best = min(left, key=lambda c: (verbs.count(c.verb), faults.count((c.fault, c.point.what))))
        left.remove(best)
        chosen.append(best)
    return sorted(chosen)


def table(rows: Iterable[Row]) -> list[str]:
    """Lines of text: job, step, when, fault, result."""
    cells = [("operation", "job", "step", "when", "fault", "result")]
    cells += [
        (c.verb, c.point.kind, c.point.what, c.point.when, c.fault.value, result)
        for c, result in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[5]])
        for row in cells
    ]


@dataclass(kw_only=True)
class Snapshot:
    """A house as it is on disk and in /proc.

    :ivar names: from the index, by `guests/web`. :ivar numbers: from the index of guests' numbers.
    :ivar engines: pids of QEMU by guest. :ivar listening: host ports by pid.
    :ivar layers: names of files in the pool, with what `qemu-img` says: virtual size, or why not.
    :ivar copies: of documents beside the layers, by kind and id.
    :ivar left: temporary files and other things that nobody should find.
    :ivar halted: what the keeper knows of the engines: whether its CPUs stand still.
    """

    guests: dict[str, Guest] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    groups: dict[str, SecurityGroup] = field(default_factory=dict)
    sets: dict[str, AddressSet] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    numbers: dict[int, str] = field(default_factory=dict)
    engines: dict[str, list[int]] = field(default_factory=dict)
    halted: dict[str, bool] = field(default_factory=dict)
    listening: dict[int, set[int]] = field(default_factory=dict)
    layers: dict[str, int | str] = field(default_factory=dict)
    copies: dict[str, dict[str, bytes]] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    boot_folders: set[str] = field(default_factory=set)
    guest_folders: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)

    def named(self, name: str) -> Guest | None:
        return next((guest for guest in self.guests.values() if guest.name == name), None)


def violations(now: Snapshot) -> list[str]:
    """What is wrong with a house in which no job is active and a collection has just run."""
    return [
        *_jobs(now),
        *_processes(now),
        *_ports(now),
        *_indexes(now),
        *_layers(now),
        *_copies(now),
        *_folders(now),
        *(f"left behind: {name}" for name in now.left),
    ]


def _jobs(now: Snapshot) -> Iterator[str]:
    for job in now.jobs.values():
        if not job.ended:
            yield f"job {job.kind} is {job.state}"
        if job.problem is not None and job.problem.code == "internal":
            yield f"job {job.kind} met a defect: {job.problem.message}"


def _processes(now: Snapshot) -> Iterator[str]:
    for guest in now.guests.values():
        pids = now.engines.get(guest.id, [])
        running = [guest.status.pid] if guest.state in LIVE else []
        if pids != running:
            yield f"guest {guest.name} is {guest.state} as {running}; processes: {pids}"
        if guest.state not in LIVE and guest.status.pid is not None:
            yield f"guest {guest.name} is {guest.state} and has pid {guest.status.pid}"
        if guest.state.value not in {"stopped", "failed", "running", "paused"}:
            yield f"guest {guest.name} stays {guest.state}"
        halted = now.halted.get(guest.id)
        if guest.state in LIVE and halted not in {None, guest.state.value == "paused"}:
            yield f"guest {guest.name} is {guest.state}; its CPUs {'stand' if halted else 'run'}"
    for guest_id in now.engines.keys() - now.guests.keys():
        yield f"processes {now.engines[guest_id]} of a guest that is not there"


def _ports(now: Snapshot) -> Iterator[str]:
    for guest in now.guests.values():
        ports = {port.host_port for nic in guest.spec.nics for port in nic.ports}
        for pid in now.engines.get(guest.id, []):
            if (held := now.listening.get(pid, set())) != ports:
                yield f"guest {guest.name} publishes {ports} and holds {held}"


def _indexes(now: Snapshot) -> Iterator[str]:
    named = (guest for guest in now.guests.values() if not guest.in_trash)
    names = {f"guests/{guest.name}": guest.id for guest in named}
    newest: dict[str, str] = {}
    for image in now.images.values():
        key = f"images/{image.name}"
        newest[key] = max(image.id, newest.get(key, ""))
    newest |= {f"networks/{network.name}": network.id for network in now.networks.values()}
    newest |= {f"security-groups/{group.name}": group.id for group in now.groups.values()}
    newest |= {f"address-sets/{one.name}": one.id for one in now.sets.values()}
    if now.names != names | newest:
        yield f"index of names {now.names}, documents {names | newest}"
    numbers = {guest.number: guest.id for guest in now.guests.values()}
    if now.numbers != numbers:
        yield f"index of numbers {now.numbers}, documents {numbers}"


def _layers(now: Snapshot) -> Iterator[str]:
    wanted = {volume.filename: volume for volume in now.volumes.values()}
    for name in now.layers.keys() - wanted.keys():
        yield f"layer {name} has no document"
    for name, volume in wanted.items():
        found = now.layers.get(name, "missing")
        if isinstance(found, str):
            yield f"layer {name}: {found}"
        elif found < volume.size:
            yield f"layer {name} has {found} bytes, its document {volume.size}"
        if volume.parent and volume.parent not in now.volumes:
            yield f"layer {name} lies on {volume.parent}, which has no document"
    held = {disk.volume for guest in now.guests.values() for disk in guest.spec.disks}
    held |= {image.volume for image in now.images.values() if image.volume}
    held |= {volume.parent for volume in now.volumes.values() if volume.parent}
    if held != now.volumes.keys():
        yield f"disks used {held}, disks there {set(now.volumes)}"
    for guest in now.guests.values():
        for disk in guest.spec.disks:
            if disk.volume in now.volumes and disk.size != now.volumes[disk.volume].size:
                yield f"guest {guest.name}: disk {disk.size}, its volume another size"


def _copies(now: Snapshot) -> Iterator[str]:
    """`guest recover` lives on them: each must be there and say what the document says."""
    for kind, documents in (
        ("guests", now.guests),
        ("volumes", now.volumes),
        ("images", now.images),
        ("networks", now.networks),
        ("security-groups", now.groups),
        ("address-sets", now.sets),
    ):
        copies = now.copies.get(kind, {})
        if copies.keys() != documents.keys():
            yield f"copies of {kind}: {set(copies)}, documents {set(documents)}"
    for id, guest in now.guests.items():
        copy = now.copies.get("guests", {}).get(id)
        if copy is None:
            continue
        old = msgspec.json.decode(copy, type=Guest)
        if (old.name, old.spec) != (guest.name, guest.spec):
            yield f"the copy of guest {guest.name} is out of date"
    for id, volume in now.volumes.items():
        copy = now.copies.get("volumes", {}).get(id)
        if copy is not None and msgspec.json.decode(copy, type=Volume).size != volume.size:
            yield f"the copy of disk {id} is out of date"


def _folders(now: Snapshot) -> Iterator[str]:
    keys = {f"ssh-{id}" for id in now.guests}
    if now.secrets != keys:
        yield f"secrets {now.secrets}, guests' keys {keys}"
    bootable = {image.id for image in now.images.values() if image.boot_files}
    if now.boot_folders != bootable:
        yield f"boot files of {now.boot_folders}, images {bootable}"
    if strange := now.guest_folders - now.guests.keys():
        yield f"folders of guests that are not there: {strange}"


class Bystander(NamedTuple):
    """A guest that has nothing to do with it all."""

    id: str
    pid: int
    start_ticks: int
    started_at: float | None


def disturbed(bystander: Bystander, now: Snapshot, start_ticks: int) -> list[str]:
    """What happened to the bystander, which should be nothing."""
    guest = now.guests.get(bystander.id)
    if guest is None:
        return ["the bystander is gone"]
    then = (bystander.pid, bystander.start_ticks, bystander.started_at, "running")
    found = (guest.status.pid, start_ticks, guest.status.started_at, guest.state.value)
    return [] if then == found else [f"the bystander was {then} and is {found}"]


def judge(
    fault: Fault, job: Job | None, *, complete: bool, untouched: bool, dead: bool, sure: bool
) -> str:
    """Whether an operation happened completely or not at all, in accord with its job.

    :param job: None when it was never accepted. :param complete: what it is for, holds.
    :param untouched: all is as if it had never been asked for.
    :param dead: its guest is there without a process, as after a kill of that alone.
    :param sure: it happens anyway: nobody asks for it, and it is tried until it is done.
    :return: why not, or an empty text.
    """
    state = job.state if job is not None else None
    said = f"its job is {state.value}" if state else "it was never accepted"
    if fault is Fault.ENGINE and dead:
        return ""
    if state is JobState.DONE or (sure and state is None):
        return "" if complete else f"{said}, but it is not complete"
    if fault is Fault.ENGINE and complete:
        return ""
    why = f" ({job.problem.message})" if job is not None and job.problem else ""
    return "" if untouched else f"{said}{why}, but it left traces"


def result_of(job: Job | None) -> str:
    """What became of the operation, for the table."""
    if job is None:
        return "never accepted"
    if job.state is not JobState.DONE and job.problem is not None:
        return f"{job.state.value}: {job.problem.code}"
    return job.state.value + (f", attempt {job.attempts}" if job.attempts > 1 else "")


def is_ours(path: Path) -> bool:
    """Whether a path below the state folder is a file that may stay."""
    return not path.name.startswith(".") or path.name.endswith(".lock")
