"""What lies beside the disks and is not in the database, and what can be made of it.

Copies of documents are the source; where the copy of a volume is missing, its file tells the same.
Nothing here changes anything.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from guesthouse.errors import EngineError, GuesthouseError, ReadOnlyStore
from guesthouse.images.boot import BootFolder
from guesthouse.model.document import Document
from guesthouse.model.firewall import AddressSet, SecurityGroup
from guesthouse.model.guest import Guest, LaunchRecord
from guesthouse.model.image import Image
from guesthouse.model.job import Job
from guesthouse.model.network import Lease, Network, clashes
from guesthouse.model.networking import BUILTIN
from guesthouse.model.reports import Finding, FindingKind
from guesthouse.model.volume import Volume
from guesthouse.operations.rooms import Rooms
from guesthouse.storage.usage import lineage, tops_of
from guesthouse.store.documents import (
    GROUPS,
    GUESTS,
    IMAGES,
    LEASES,
    NETWORKS,
    SETS,
    VOLUMES,
)

RECOVER = "house.recover"
_ID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_NOUNS = {
    "guests": FindingKind.GUEST,
    "images": FindingKind.IMAGE,
    "volumes": FindingKind.VOLUME,
    "networks": FindingKind.NETWORK,
    "leases": FindingKind.LEASE,
    "security-groups": FindingKind.GROUP,
    "address-sets": FindingKind.SET,
}


@dataclass(kw_only=True)
class Survey:
    """Documents that can be brought back, by id, and everything that was noticed.

    :ivar problems: what is wrong with some of them, by id.
    :ivar lost: of guests, ids of layers that they need and whose files are missing.
    :ivar running: of guests that have a process, the record of it.
    :ivar unreadable: copies that no document can be made of.
    :ivar layers: ids of files that nothing tells about.
    :ivar stray_leases: ids of those whose guest or network is not there any more.
    """

    volumes: dict[str, Volume] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    stray_leases: list[str] = field(default_factory=list)
    groups: dict[str, SecurityGroup] = field(default_factory=dict)
    sets: dict[str, AddressSet] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    lost: dict[str, list[str]] = field(default_factory=dict)
    running: dict[str, LaunchRecord] = field(default_factory=dict)
    unreadable: list[Finding] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)

    def take(self, key: str, data: bytes) -> None:
        """A copy. :raise InvalidInput: :raise ReadOnlyStore: see `CollectionKind.decode`."""
        kind, _, id = key.partition("/")
        if kind == "guests":
            self.guests[id] = GUESTS.decode(key, data)
        elif kind == "images":
            self.images[id] = IMAGES.decode(key, data)
        elif kind == "volumes":
            self.volumes[id] = VOLUMES.decode(key, data)
        elif kind == "networks":
            self.networks[id] = NETWORKS.decode(key, data)
        elif kind == "leases":
            self.leases[id] = LEASES.decode(key, data)
        elif kind == "security-groups":
            self.groups[id] = GROUPS.decode(key, data)
        else:
            self.sets[id] = SETS.decode(key, data)

    def findings(self) -> list[Finding]:
        """For people, sorted by kind and name."""
        found = [
            Finding(
                kind=FindingKind.GUEST,
                id=guest.id,
                name=guest.name,
                state=self._state(guest),
                problem=self.problems.get(guest.id, ""),
            )
            for guest in self.guests.values()
        ]
        named = ((FindingKind.IMAGE, image.id, image.name) for image in self.images.values())
        networks = ((FindingKind.NETWORK, one.id, one.name) for one in self.networks.values())
        groups = ((FindingKind.GROUP, one.id, one.name) for one in self.groups.values())
        sets = ((FindingKind.SET, one.id, one.name) for one in self.sets.values())
        bare = [(FindingKind.VOLUME, volume, "") for volume in self.volumes]
        bare += [(FindingKind.LEASE, lease, "") for lease in self.leases]
        found += [
            Finding(kind=kind, id=id, name=name, problem=self.problems.get(id, ""))
            for kind, id, name in (*named, *networks, *groups, *sets, *bare)
        ]
        found += self.unreadable
        found += [
            Finding(
                kind=FindingKind.LAYER,
                id=id,
                back=False,
                problem="no document tells what it is; it is left as it is",
            )
            for id in self.layers
        ]
        order = list(FindingKind)
        return sorted(found, key=lambda one: (order.index(one.kind), one.name, one.id))

    def _state(self, guest: Guest) -> str:
        if guest.id in self.running:
            return "running"
        if guest.in_trash:
            return "trash"
        if guest.id in self.lost:
            return "failed"
        return guest.state.value if guest.state.value in {"failed", "suspended"} else "stopped"


def unknown_copies(rooms: Rooms) -> list[str]:
    """Keys of copies whose documents the database does not have, and that no job is about to
    remove."""
    unknown = rooms.pool.copies.unknown(rooms.view.revisions)
    if not unknown:
        return []
    busy = touched(rooms.view.jobs.values())
    return [key for key in unknown if key.partition("/")[2] not in busy]


def touched(jobs: Iterable[Job]) -> set[str]:
    """Ids of all that active jobs are about."""
    return {
        id
        for job in jobs
        if not job.ended
        for text in (job.target, *(text for step in job.steps for text in step.creates.values()))
        for id in _ID.findall(text)
    }


async def survey(rooms: Rooms) -> Survey:
    """Look at everything. :raise KeeperUnavailable: nobody can say which guests run."""
    found = Survey()
    newer = await _read(rooms, found)
    # The view goes on while a thread looks at the files.
    known = dict(rooms.view.volumes)
    aside = newer | touched(rooms.view.jobs.values()) | _quarantined(rooms)
    await asyncio.to_thread(_complete, rooms, found, known, newer, aside)
    for guest in found.guests.values():
        record = await rooms.driver.find(guest)
        if record is not None:
            found.running[guest.id] = record
    _rename(rooms, found)
    _look_at_networks(rooms, found)
    return found


async def _read(rooms: Rooms, found: Survey) -> set[str]:
    """Take in the copies. Answers ids of those that a newer program wrote."""
    newer: set[str] = set()
    for key in unknown_copies(rooms):
        kind, _, id = key.partition("/")
        data = await rooms.pool.copies.read(key)
        if data is None:
            continue  # removed meanwhile
        try:
            found.take(key, data)
        except GuesthouseError as error:
            if isinstance(error, ReadOnlyStore):
                newer.add(id)
            problem = f"its copy cannot be read and is left as it is: {error.message}"
            found.unreadable.append(Finding(kind=_NOUNS[kind], id=id, back=False, problem=problem))
    return newer


def _complete(
    rooms: Rooms, found: Survey, known: Mapping[str, Volume], newer: set[str], aside: set[str]
) -> None:
    """What the files say: missing ones, and those whose documents have no copy. Blocks.

    :param known: volumes of the database. :param aside: ids of layers that need no explanation.
    """
    folder = rooms.pool.layers
    files = set(folder.ids())
    _told_from_files(rooms, found, known, files - newer)
    volumes = {**known, **found.volumes}
    for volume in found.volumes.values():
        if volume.id not in files:
            found.problems[volume.id] = "its file is missing"
    boot = BootFolder(rooms.folders.images)
    for image in found.images.values():
        found.problems |= _image_problem(image, files, boot)
    for guest in found.guests.values():
        needed = [layer for top in tops_of(guest) for layer in lineage(volumes, top)]
        lost = [layer for layer in needed if layer not in files or layer not in volumes]
        if lost:
            found.lost[guest.id] = list(dict.fromkeys(lost))
            found.problems[guest.id] = f"its disk {found.lost[guest.id][0]} is missing"
    found.layers = sorted(files - volumes.keys() - aside)


def _told_from_files(
    rooms: Rooms, found: Survey, known: Mapping[str, Volume], files: set[str]
) -> None:
    """Volumes that something needs, whose copies are missing and whose files are there."""
    wanted = [top for guest in found.guests.values() for top in tops_of(guest)]
    wanted += [image.volume for image in found.images.values() if image.volume]
    wanted += [volume.parent for volume in found.volumes.values() if volume.parent]
    while wanted:
        id = wanted.pop()
        if id in known or id in found.volumes or id not in files:
            continue
        try:
            volume = rooms.pool.layers.volume_of(id)
        except EngineError as error:
            found.problems[id] = error.message
            continue
        if volume is not None:
            found.volumes[id] = volume
            found.problems[id] = "its copy is missing; its file tells the same"
            if volume.parent:
                wanted.append(volume.parent)


def _image_problem(image: Image, files: set[str], boot: BootFolder) -> dict[str, str]:
    problem = ""
    if image.volume and image.volume not in files:
        problem = f"its disk {image.volume} is missing"
    else:
        try:
            boot.located(image)
        except GuesthouseError:
            problem = "a boot file is missing"
    cure = f"; build it again: guest image build --rebuild {image.name}"
    return {image.id: problem + cure} if problem else {}


def _look_at_networks(rooms: Rooms, found: Survey) -> None:
    """Names that another one has by now, subnets that are in use, cards on networks that are lost.

    Leases of guests or networks that are not there any more were left by a daemon that died.
    """
    view = rooms.view
    for kept, back in (
        (view.networks, found.networks),
        (view.groups, found.groups),
        (view.sets, found.sets),
    ):
        _name_anew(found, kept, back)
    taken = [str(one) for network in view.networks.values() for one in network.subnets]
    for network in found.networks.values():
        if crossed := clashes(network, taken):
            note = f"its subnet overlaps {', '.join(crossed)} of another network: it gets a new one"
            _note(found, network.id, note)
    networks = {*view.networks, *found.networks}
    for guest in found.guests.values():
        lost = [nic for nic in guest.spec.nics if nic.network not in {BUILTIN, *networks}]
        if lost and guest.id not in found.running:
            note = f"its network {lost[0].network} is missing: that card gets one of its own"
            _note(found, guest.id, note)
    guests = {*view.guests, *found.guests}
    for id, lease in list(found.leases.items()):
        if lease.guest not in guests or lease.network not in networks:
            del found.leases[id]
            found.stray_leases.append(id)


def _name_anew(found: Survey, kept: Mapping[str, Document], back: Mapping[str, Document]) -> None:
    taken = {str(getattr(one, "name", "")) for one in kept.values()}
    for id, one in sorted(back.items()):
        before = str(getattr(one, "name", ""))
        name = free_name(before, taken)
        taken.add(name)
        if name != before:
            _note(found, id, f"another one is called {before}, so this one comes back as {name}")


def _note(found: Survey, id: str, problem: str) -> None:
    before = found.problems.get(id)
    found.problems[id] = f"{before}; {problem}" if before else problem


def _quarantined(rooms: Rooms) -> set[str]:
    return {key.partition("/")[2] for key in rooms.view.quarantined}


def _rename(rooms: Rooms, found: Survey) -> None:
    """A name that another guest has by now is that one's. The oldest of several keeps it."""
    taken = {guest.name for guest in rooms.view.guests.values() if not guest.in_trash}
    for guest in sorted(found.guests.values(), key=lambda guest: guest.id):
        if guest.in_trash:
            continue
        name = free_name(guest.name, taken)
        taken.add(name)
        if name != guest.name:
            problem = f"another guest is called {guest.name}, so this one comes back as {name}"
            _note(found, guest.id, problem)


def free_name(name: str, taken: set[str]) -> str:
    """`name`, or that with a number behind it."""
    count, free = 1, name
    while free in taken:
        count += 1
        suffix = f"-{count}"
        free = f"{name[: 63 - len(suffix)].rstrip('-')}{suffix}"
    return free
