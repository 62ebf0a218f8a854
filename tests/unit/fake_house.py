"""A small house behind an API socket, for tests of the client and the command line.

It keeps the contract of the API with stdlib means: documents are the model's own, jobs end when the
test says so or at once, and `exec` runs commands on this host in a folder that stands for the
guest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from guesthouse import __version__
from guesthouse.errors import GuesthouseError, NotFound
from guesthouse.model.checkup import Check, Health
from guesthouse.model.device import Disk, Nic, Publish
from guesthouse.model.guest import Guest, GuestSpec, GuestStatus
from guesthouse.model.host import Capability
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image
from guesthouse.model.job import Job, JobProgress, JobState, Problem
from guesthouse.model.network import Lease, Network, NetworkKind
from guesthouse.model.networking import NetworkView
from guesthouse.model.reports import Finding, GuestView, ImageView, LogLine
from guesthouse.model.states import GuestState
from guesthouse.model.usage import DiskUsage, GuestUsage, ProcessUsage

from .fake_api import ApiServer
from .fake_api_firewall import FakeFirewalls


def make_guest(name: str, state: GuestState = GuestState.RUNNING, **spec: Any) -> Guest:
    port = Publish(host_port=8080, guest_port=80)
    return Guest(
        id=new_id(),
        name=name,
        uuid="0" * 32,
        number=1,
        created_at=time.time(),
        spec=GuestSpec(
            **{
                "image": "debian/12",
                "image_id": "I",
                "cpus": 2,
                "memory": 2 << 30,
                "disks": (Disk(name="root", volume="V", size=20 << 30),),
                "nics": (Nic(mac="52:67:68:00:00:01", ports=(port,)),),
                **spec,
            }
        ),
        status=GuestStatus(
            state=state,
            since=time.time() - 4000,
            pid=4242 if state is GuestState.RUNNING else None,
            ready=("process", "kernel", "agent", "network", "ssh"),
        ),
    )


class FakeHouse:
    """:ivar root: the folder that stands for the file system of every guest.

    :ivar hold: jobs stay running until `finish`. :ivar seen: (method, path, body) of each request.
    :ivar notices: of the `HouseInfo`, what users should know.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.root = root
        self.guests: dict[str, Guest] = {}
        self.images: list[Image] = []
        self.networks: dict[str, Network] = {}
        self.confirm_by: dict[str, float] = {}
        self.clashes: dict[str, tuple[str, ...]] = {}
        self.fire = FakeFirewalls()
        self.uploads: dict[str, bytearray] = {}
        self.room = 1 << 40
        self.trash: list[Guest] = []
        self.trash_days = 7
        self.lost: list[Finding] = []
        self.bundle = (b"first ", b"second")
        self.bundle_breaks = False
        self.lost_packets = 0
        self.results: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, Job] = {}
        self.ticks: dict[str, list[JobProgress | LogLine]] = {}
        self.pending: tuple[str, ...] = ()
        self.wrong_clock = ""
        self.clock = 0.0
        self.busy: dict[str, float] = {}
        self.proportional: int | None = 256 << 20
        self.hold = False
        self.notices: dict[str, Any] = {}
        self.fail: dict[str, GuesthouseError] = {}
        self.cut_events = 0
        self.version = __version__
        self.logs = b"first\nsecond\nthird\n"
        self.log_more = threading.Event()
        self.seen: list[tuple[str, str, Any]] = []
        self.commands: list[dict[str, Any]] = []
        self.console_received = bytearray()
        self.stopped = threading.Event()
        self.capabilities = (Capability(name="qemu", available=True, reason="QEMU 7.2."),)
        self.checks = (Check(name="keeper", health=Health.FINE, message="It is there."),)
        self.changed = threading.Condition()
        self._server = ApiServer(str(path), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.stopped.set()
        with self.changed:
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def add(self, name: str, state: GuestState = GuestState.RUNNING, **spec: Any) -> Guest:
        guest = make_guest(name, state, **spec)
        self.guests[guest.id] = guest
        return guest

    def add_network(self, name: str, kind: NetworkKind = NetworkKind.NAT, **more: Any) -> Network:
        bridged = kind is NetworkKind.BRIDGED
        made = Network(
            id=new_id(),
            name=name,
            kind=kind,
            subnet4="" if bridged else f"10.{150 + len(self.networks)}.0.0/24",
            subnet6="" if bridged else "fd12:3456:789a:1::/64",
            created_at=time.time(),
            **more,
        )
        if bridged:
            self.confirm_by[made.id] = time.time() + 30
        self.networks[made.id] = made
        return made

    def network_views(self) -> list[NetworkView]:
        """Each card has its address by the order of guests."""
        guests = list(self.guests.values())
        return [
            NetworkView.of(
                one,
                guests,
                [
                    Lease(
                        id=new_id(),
                        network=one.id,
                        guest=guest.id,
                        nic=0,
                        mac="",
                        address4=f"{one.subnet4.removesuffix('0/24')}{25 + at}"
                        if one.subnet4
                        else "",
                        since=0.0,
                    )
                    for at, guest in enumerate(guests)
                ],
                self.clashes.get(one.id, ()),
                self.confirm_by.get(one.id),
            )
            for one in self.networks.values()
        ]

    def network(self, ref: str) -> NetworkView:
        for one in self.network_views():
            if ref in {one.name, one.id}:
                return one
        raise NotFound(f"There is no network {ref!r}.", hint="See what there is: guest network ls")

    def guest(self, ref: str) -> Guest:
        for guest in self.guests.values():
            if ref in {guest.name, guest.id}:
                return guest
        raise NotFound(f"There is no guest {ref!r}.", hint="See what there is: guest ls")

    def view(self, guest: Guest) -> GuestView:
        end = guest.deleted_at and guest.deleted_at + self.trash_days * 86400
        return GuestView.of(
            guest,
            pending=self.pending,
            clock=self.wrong_clock,
            addresses=("10.0.2.15",),
            expires_at=end,
        )

    def usage(self, guest: Guest) -> GuestUsage:
        """Each time it is asked for, a second has passed and `busy` CPUs were at work in it."""
        self.clock += 1.0
        process = ProcessUsage(
            pid=guest.status.pid or 0,
            cpu_seconds=100.0 + self.clock * self.busy.get(guest.name, 0.0),
            resident=300 << 20,
            proportional=self.proportional,
            measured_at=self.clock,
        )
        return GuestUsage(
            id=guest.id,
            name=guest.name,
            state=guest.state,
            cpus=guest.spec.cpus,
            memory=guest.spec.memory,
            process=process if guest.status.pid else None,
            disks=(DiskUsage(name="root", size=20 << 30, used=412 << 20),),
        )

    def image_view(self, image: Image) -> ImageView:
        return ImageView.of(image, users=[make_guest("web"), *self.trash])

    def remove(self, guest: Guest, *, now: bool) -> None:
        del self.guests[guest.id]
        if not now and self.trash_days:
            self.trash.insert(0, msgspec.structs.replace(guest, deleted_at=time.time()))

    def trashed(self, ref: str) -> Guest:
        for guest in self.trash:
            if ref in {guest.name, guest.id}:
                return guest
        raise NotFound(f"The trash holds no guest {ref!r}.", hint="guest trash ls")

    def undelete(self, ref: str, name: str | None) -> Guest:
        guest = self.trashed(ref)
        self.trash.remove(guest)
        back = msgspec.structs.replace(guest, deleted_at=None, name=name or guest.name)
        self.guests[guest.id] = back
        return back

    def submit(self, kind: str, guest: Guest | None, *, of: str = "", **rest: Any) -> Job:
        job = Job(
            id=new_id(),
            kind=kind,
            target=f"guests/{guest.id}" if guest else "",
            target_name=guest.name if guest else of,
            state=JobState.RUNNING,
            created_at=time.time(),
            started_at=time.time(),
            requester="uid:0",
            **rest,
        )
        with self.changed:
            self.jobs[job.id] = job
            self.ticks[job.id] = [JobProgress(job=job.id, fraction=0.5, message="half way")]
            self.changed.notify_all()
        return job

    def tick(self, job: str, fraction: float | None, message: str) -> None:
        with self.changed:
            self.ticks[job].append(JobProgress(job=job, fraction=fraction, message=message))
            self.changed.notify_all()

    def finish(self, job: str, error: GuesthouseError | None = None) -> Job:
        found = self.jobs[job]
        state, why = JobState.DONE, None
        if error is not None:
            state = JobState.CANCELLED if error.code == "cancelled" else JobState.FAILED
            why = Problem(
                code=error.code,
                title=error.title,
                status=error.status,
                message=error.message,
                hint=error.hint,
                detail=error.detail,
            )
        ended = msgspec.structs.replace(found, state=state, problem=why, ended_at=time.time())
        with self.changed:
            self.jobs[job] = ended
            self.changed.notify_all()
        return ended

    def only_job(self, *, seconds: float = 30) -> Job:
        """The job, as soon as there is one."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.jobs, seconds), "no job was submitted"
        return next(iter(self.jobs.values()))


@contextmanager
def fake_house(folder: Path) -> Iterator[FakeHouse]:
    root = folder / "guest"
    root.mkdir(exist_ok=True)
    house = FakeHouse(folder / "api.sock", root)
    try:
        yield house
    finally:
        house.close()
