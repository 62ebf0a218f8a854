"""The real house on the fake driver; commands in its guests are processes of this host."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from guesthouse import __version__
from guesthouse.drivers.base import SERIAL_LOG, VNC_SOCKET, Resources
from guesthouse.drivers.fake import FakeDriver, FakeRunning
from guesthouse.errors import HostLacks, InvalidInput, KeeperUnavailable
from guesthouse.guestos.ssh_process import RemoteProcess
from guesthouse.host.folders import prepare
from guesthouse.host.secrets import Secrets
from guesthouse.host.settings import Settings
from guesthouse.images.building import BuildImage
from guesthouse.images.cache import BuildCache
from guesthouse.images.catalogue import Catalogue, Known
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.device import Nic, new_mac
from guesthouse.model.folders import Folders
from guesthouse.model.guest import Guest, GuestSpec, GuestStatus
from guesthouse.model.host import Capability, HostFacts
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image
from guesthouse.model.job import Job, JobState
from guesthouse.model.network import Network
from guesthouse.model.reports import ExecRequest, HouseInfo, HouseMode, LaunchRequest
from guesthouse.model.states import GuestState
from guesthouse.network.bridged.hostlink import HostLink
from guesthouse.operations.all import all_operations
from guesthouse.operations.checkup import KeeperFacts
from guesthouse.operations.house import House
from guesthouse.operations.rooms import Rooms
from guesthouse.storage.pool import DirectoryPool
from guesthouse.store.documents import GUESTS, IMAGES, Documents
from guesthouse.store.sqlite import SqliteStore
from guesthouse.store.view import View
from guesthouse.supervisor.following import Supervisor
from guesthouse.supervisor.reattaching import take_up_found
from tests.api.commands import Command
from tests.api.fake_traffic import FakeTraffic
from tests.image_house import QuickBuilder


def guest_document(name: str, state: GuestState = GuestState.STOPPED, **spec: Any) -> Guest:
    """A guest that nobody launched."""
    wanted = {"image": "micro", "image_id": new_id(), "nics": (Nic(mac=new_mac()),), **spec}
    return Guest(
        id=new_id(),
        name=name,
        uuid="6e4b1a7e-7d0c-4a53-9d51-0c2d5f1a9b10",
        number=1,
        created_at=time.time(),
        spec=GuestSpec(**wanted),
        status=GuestStatus(state=state, since=time.time()),
    )


def image_document(name: str) -> Image:
    return Image(id=new_id(), name=name, digest="0" * 64, size=1 << 20, created_at=time.time())


class GatedDriver(FakeDriver):
    """:ivar gate: while it is clear, no guest starts. :ivar arrived: one waits there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()

    async def launch(
        self, guest: Guest, resources: Resources, *, incarnation: int, paused: bool = False
    ) -> FakeRunning:
        self.arrived.set()
        await self.gate.wait()
        return await super().launch(guest, resources, incarnation=incarnation, paused=paused)


@dataclass(kw_only=True)
class ApiHouse(House):
    """:ivar commands: every command opened. :ivar stop_asked: set by `request_stop`.

    :ivar consoles: the guest's ends of every console opened.
    :ivar keeper_trouble: why the keeper does not answer.
    :ivar by_ssh: commands go to the fake guest's ssh instead of this host.
    """

    driver: GatedDriver
    supervisor: Supervisor
    stop_asked: asyncio.Event
    consoles: list[socket.socket] = field(default_factory=list)
    console_opened: asyncio.Event = field(default_factory=asyncio.Event)
    commands: list[Command] = field(default_factory=list)
    past: bytes = b"".join(b"line %d\n" % number for number in range(1000))
    by_ssh: bool = False
    keeper_trouble: str = ""

    @property
    def traffic_of_cards(self) -> FakeTraffic:
        assert isinstance(self.rooms.traffic, FakeTraffic)
        return self.rooms.traffic

    async def add(self, *documents: Guest | Image) -> None:
        """Put documents there as they are, a transaction for each."""
        for document in documents:
            if isinstance(document, Guest):
                ops = [GUESTS.put_op(document), GUESTS.claim_op(document.name, document.id)]
            else:
                ops = [IMAGES.put_op(document)]
            await self.view.wait_for(await self.rooms.documents.store.commit(ops))

    async def guest(self, name: str, *, start: bool = True, **wanted: Any) -> Guest:
        """A guest that was launched."""
        request = LaunchRequest(image="micro", name=name, start=start, wait_ready=False, **wanted)
        job = await self.ended(await self.launch(request, "test"))
        assert job.state is JobState.DONE, job.problem
        return self.view.guest(name)

    async def ended(self, job: Job) -> Job:
        """`job` when it has ended and everybody sees it."""
        ended = await self.jobs.wait(job.id, 60)
        await self.view.wait_for(self.rooms.documents.store.revision)
        return ended

    def serial_log(self, ref: str) -> Path:
        path = self.rooms.folders.guest_state(self.view.guest(ref).id) / SERIAL_LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    async def open_exec(self, ref: str, request: ExecRequest) -> RemoteProcess:
        if self.by_ssh:
            return await super().open_exec(ref, request)
        self.rooms.live.require_ssh(self.view.guest(ref), verb="run a command in it")
        if request.user != "root":
            raise InvalidInput(f"There is no user {request.user!r}.", field="user")
        argv = request.argv or ("/bin/sh",)
        command = await Command.start(argv, env=request.env, cwd=request.cwd)
        self.commands.append(command)
        return command.process

    def open_end(self, replay: int) -> socket.socket:
        """A console: answers its near end and keeps the far one."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        if replay:
            theirs.send(self.past[-replay:])
        self.consoles.append(theirs)
        self.console_opened.set()
        return ours

    async def serve_screen(self, ref: str) -> None:
        """Listen where the guest's VNC server does."""
        path = self.rooms.folders.guest_runtime(self.view.guest(ref).id) / VNC_SOCKET
        listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(1)

        async def accept() -> None:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            connection.setblocking(False)
            connection.send(b"RFB 003.008\n")
            self.consoles.append(connection)
            listener.close()

        self.accepting = asyncio.create_task(accept())

    async def close(self) -> None:
        """As the daemon does at its end."""
        self.driver.gate.set()
        for command in self.commands:
            await command.process.close()
        for console in self.consoles:
            console.close()
        await self.jobs.close()
        await self.supervisor.close()
        for live in self.rooms.live:
            await live.running.detach()
            await live.close()
        await self.view.close()
        await self.rooms.documents.store.close()


def _facts() -> HostFacts:
    kvm = Capability(name="kvm", available=False, reason="No /dev/kvm.", cure="modprobe kvm")
    return HostFacts(
        boot_id="b",
        kernel="6.1",
        os="Debian",
        cpus=2,
        memory=1 << 36,
        cgroups="v2",
        root=False,
        accelerator="tcg",
        accelerator_reason="No KVM here.",
        qemu=None,
        capabilities=(kvm,),
        probed_at=time.time(),
    )


async def open_house(folder: Path) -> ApiHouse:
    """A house whose state, sockets and all else lie in `folder`."""
    folders = Folders(
        state=folder / "state",
        runtime=folder / "run",
        cache=folder / "cache",
        config=folder / "config",
        socket=folder / "socket",
        mode="personal",
    )
    prepare(folders)
    store = await SqliteStore.open(folders.database)
    view, documents = await View.open(store), Documents(store)
    pool = await DirectoryPool.open(folders.pool)
    driver = GatedDriver(folders.state / "fake")
    rooms = Rooms(
        documents=documents,
        view=view,
        driver=driver,
        pool=pool,
        catalogue=Catalogue(
            documents, view, pool, folders.images, known=lambda: [Known("micro", "A tiny Linux.")]
        ),
        secrets=Secrets(folders.secrets),
        folders=folders,
        settings=Settings(),
        facts=_facts,
        traffic=FakeTraffic(),
    )
    rooms.bridges.check = no_bridges
    registry = all_operations(rooms, BuildCache(folders.build_cache))
    build = registry.get("image.build")
    assert isinstance(build, BuildImage)
    build.builder, build.space = QuickBuilder(), 0
    jobs = JobRunner(documents, registry, folders.jobs)
    supervisor = Supervisor(rooms, jobs)
    rooms.live.on_added = supervisor.add
    rooms.live.on_found = partial(take_up_found, rooms, supervisor)
    await jobs.recover()
    return _assemble(rooms, jobs, supervisor, driver)


async def no_bridges(network: Network) -> HostLink:
    """Whatever is asked for, nothing is done to the interfaces of this machine."""
    raise HostLacks("Tests do not bridge.", capability="bridging")


def _assemble(
    rooms: Rooms, jobs: JobRunner, supervisor: Supervisor, driver: GatedDriver
) -> ApiHouse:
    async def console(key: str, replay: int) -> socket.socket:
        return house.open_end(replay)

    async def keeping() -> KeeperFacts:
        if house.keeper_trouble:
            raise KeeperUnavailable(house.keeper_trouble)
        return KeeperFacts(4711, len(list(rooms.live)))

    async def reprobe() -> HostFacts:
        return _facts()

    stop_asked = asyncio.Event()
    house = ApiHouse(
        rooms=rooms,
        jobs=jobs,
        console=console,
        keeping=keeping,
        reprobe=reprobe,
        stop_daemon=stop_asked.set,
        identity=HouseInfo(
            version=__version__,
            mode=HouseMode.PERSONAL,
            node="here",
            pid=os.getpid(),
            started_at=time.time(),
            socket=str(rooms.folders.socket),
            state_folder=str(rooms.folders.state),
        ),
        driver=driver,
        supervisor=supervisor,
        stop_asked=stop_asked,
    )
    return house
