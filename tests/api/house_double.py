"""A house whose guests are documents alone: real store, view and jobs, no processes."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from guesthouse.errors import HostLacks, InUse, InvalidInput, NameTaken, UnknownImage
from guesthouse.guestos.ssh_process import RemoteProcess
from guesthouse.jobs.context import JobContext
from guesthouse.jobs.registry import Operation, Registry
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.device import Nic, Publish, check_publish, new_mac
from guesthouse.model.document import Noun
from guesthouse.model.guest import Guest, GuestSpec, GuestStatus, check_spec
from guesthouse.model.host import Capability, HostFacts
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image
from guesthouse.model.job import Job
from guesthouse.model.names import check_image_name, check_name
from guesthouse.model.reports import (
    BuildImageRequest,
    DeleteRequest,
    EmptyRequest,
    ExecRequest,
    GuestView,
    HouseInfo,
    HouseMode,
    ImageView,
    KnownImage,
    LaunchRequest,
    LogSource,
    RenameRequest,
    RestartRequest,
    SetRequest,
    StartRequest,
    StopRequest,
    UnpublishRequest,
)
from guesthouse.model.states import GuestState, require_state
from guesthouse.store.contract import ABSENT
from guesthouse.store.documents import GUESTS, IMAGES, Documents
from guesthouse.store.sqlite import SqliteStore
from guesthouse.store.view import View
from tests.api.commands import Command

S = GuestState

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


def guest_document(name: str, state: S = S.STOPPED, **spec: Any) -> Guest:
    """A guest that nobody launched."""
    return Guest(
        id=new_id(),
        name=name,
        uuid="6e4b1a7e-7d0c-4a53-9d51-0c2d5f1a9b10",
        number=1,
        created_at=time.time(),
        spec=GuestSpec(image="micro", image_id=new_id(), nics=(Nic(mac=new_mac()),), **spec),
        status=GuestStatus(state=state, since=time.time()),
    )


def image_document(name: str) -> Image:
    return Image(id=new_id(), name=name, digest="0" * 64, size=1 << 20, created_at=time.time())


class ActParams(Noun, kw_only=True, frozen=True):
    """:ivar seconds: how long it takes, in steps."""

    guest: str = ""
    name: str = ""
    seconds: float = 0.0
    changes: dict[str, Any] = {}


class Act(Operation[ActParams]):
    """One verb on documents. `change` of a guest is given by `kind`."""

    Params = ActParams
    kind: ClassVar[str]
    state: ClassVar[S | None] = None

    def __init__(self, documents: Documents) -> None:
        self.documents = documents

    def locks(self, params: ActParams) -> Sequence[str]:
        return [GUESTS.key(params.guest)] if params.guest else []

    async def run(self, ctx: JobContext, params: ActParams) -> dict[str, object] | None:
        await ctx.step("act")
        ctx.log(f"{self.kind} begins")
        ctx.progress(0.5, "half of it")
        if params.seconds:
            await asyncio.sleep(params.seconds)
        await self.act(params)
        return {"kind": self.kind}

    async def act(self, params: ActParams) -> None:
        def change(guest: Guest) -> Guest:
            state = self.state or guest.state
            status = GuestStatus(state=state, reason="user", since=time.time())
            spec = msgspec.structs.replace(guest.spec, **params.changes)
            return msgspec.structs.replace(
                guest, status=status, spec=spec, name=params.name or guest.name
            )

        if params.guest:
            await self.documents.guests.update(params.guest, change)


class Launch(Act):
    kind = "guest.launch"

    async def act(self, params: ActParams) -> None:
        guest = msgspec.convert(params.changes["guest"], Guest)
        claim = GUESTS.claim_op(guest.name, guest.id)
        await self.documents.store.commit([GUESTS.put_op(guest, ABSENT), claim])


class Delete(Act):
    kind = "guest.delete"

    async def act(self, params: ActParams) -> None:
        await self.documents.store.commit(
            [GUESTS.delete_op(params.guest), GUESTS.release_op(params.name)]
        )


class RemoveImage(Act):
    kind = "image.remove"

    async def act(self, params: ActParams) -> None:
        await self.documents.store.commit([IMAGES.delete_op(params.name)])


class BuildImage(Act):
    kind = "image.build"

    async def act(self, params: ActParams) -> None:
        await self.documents.store.commit([IMAGES.put_op(image_document(params.name))])


def _act(kind: str, state: S | None = None, *, may_cancel: bool = True) -> type[Act]:
    return type(kind, (Act,), {"kind": kind, "state": state, "may_cancel": may_cancel})


ACTS: list[type[Act]] = [
    Launch,
    Delete,
    RemoveImage,
    BuildImage,
    _act("guest.start", S.RUNNING),
    _act("guest.stop", S.STOPPED),
    _act("guest.restart", S.RUNNING),
    _act("guest.pause", S.PAUSED),
    _act("guest.resume", S.RUNNING),
    _act("guest.reset"),
    _act("guest.power-button"),
    _act("guest.rename"),
    _act("guest.set"),
    _act("guest.publish"),
    _act("guest.unpublish"),
    _act("storage.collect", may_cancel=False),
]


class HouseDouble:
    """Keeps `guesthouse.api.facade.House`.

    :ivar slow: seconds that each job takes. :ivar commands: every command opened.
    :ivar consoles: the guest's ends of every console opened.
    """

    def __init__(self, documents: Documents, view: View, jobs: JobRunner) -> None:
        self.documents = documents
        self.view = view
        self.jobs = jobs
        self.slow = 0.0
        self.stop_asked = asyncio.Event()
        self.commands: list[Command] = []
        self.consoles: list[socket.socket] = []
        self.console_opened = asyncio.Event()
        self.log = b"".join(b"line %d\n" % number for number in range(1000))
        self.log_closed = asyncio.Event()

    @classmethod
    async def open(cls, folder: Path) -> HouseDouble:
        store = await SqliteStore.open(folder / "guesthouse.db")
        documents = Documents(store)
        registry = Registry()
        for act in ACTS:
            registry.register(act(documents))
        view = await View.open(store)
        jobs = JobRunner(documents, registry, folder / "jobs")
        await jobs.recover()
        return cls(documents, view, jobs)

    async def close(self) -> None:
        for command in self.commands:
            await command.process.close()
        for console in self.consoles:
            console.close()
        await self.jobs.close()
        await self.view.close()
        await self.documents.store.close()

    async def add(self, *documents: Guest | Image) -> None:
        """Put documents there at once, a transaction for each."""
        for document in documents:
            if isinstance(document, Guest):
                ops = [GUESTS.put_op(document), GUESTS.claim_op(document.name, document.id)]
            else:
                ops = [IMAGES.put_op(document)]
            await self.view.wait_for(await self.documents.store.commit(ops))

    # --- Reads ---

    @property
    def facts(self) -> HostFacts:
        kvm = Capability(name="kvm", available=False, reason="No /dev/kvm.", cure="modprobe kvm")
        return HostFacts(
            boot_id="b",
            kernel="6.1",
            os="Debian",
            cpus=2,
            memory=1 << 33,
            cgroups="v2",
            root=False,
            accelerator="tcg",
            accelerator_reason="No KVM here.",
            qemu=None,
            capabilities=(kvm,),
            probed_at=time.time(),
        )

    def info(self) -> HouseInfo:
        return HouseInfo(
            version="0.1.0",
            mode=HouseMode.PERSONAL,
            node="",
            pid=os.getpid(),
            started_at=time.time(),
            socket="/run/guesthouse.sock",
            state_folder="/var/lib/guesthouse",
            quarantined=dict(self.view.quarantined),
        )

    def guest_view(self, guest: Guest) -> GuestView:
        return GuestView.of(guest, job=self.jobs.holder(GUESTS.key(guest.id)))

    def image_view(self, image: Image) -> ImageView:
        return ImageView.of(image, in_use_by=tuple(self._users(image)))

    def _users(self, image: Image) -> list[str]:
        guests = self.view.guests.values()
        return [guest.name for guest in guests if guest.spec.image_id == image.id]

    def known_images(self) -> list[KnownImage]:
        built = any(image.name == "micro" for image in self.view.images.values())
        return [KnownImage(name="micro", description="A tiny Linux.", built=built)]

    # --- Verbs ---

    async def launch(self, request: LaunchRequest, requester: str) -> Job:
        name = check_name(
            request.name if request.name is not None else f"g-{new_id()[-6:].lower()}"
        )
        if any(guest.name == name for guest in self.view.guests.values()):
            raise NameTaken(f"There is already a guest {name!r}.", name=name)
        if check_image_name(request.image) != "micro":
            raise UnknownImage(f"There is no image {request.image!r}.")
        for port in request.publish:
            check_publish(port)
        state = S.RUNNING if request.start else S.STOPPED
        guest = guest_document(name, state, cpus=request.cpus, memory=request.memory)
        check_spec(guest.spec)
        params = ActParams(
            guest=guest.id, seconds=self.slow, changes={"guest": msgspec.to_builtins(guest)}
        )
        return await self._submit("guest.launch", params, guest, requester)

    async def start(self, ref: str, request: StartRequest, requester: str) -> Job:
        return await self._verb("start", ref, requester, allowed={S.STOPPED, S.FAILED})

    async def stop(self, ref: str, request: StopRequest, requester: str) -> Job:
        return await self._verb("stop", ref, requester, allowed={S.RUNNING, S.PAUSED})

    async def restart(self, ref: str, request: RestartRequest, requester: str) -> Job:
        return await self._verb("restart", ref, requester)

    async def pause(self, ref: str, request: EmptyRequest, requester: str) -> Job:
        return await self._verb("pause", ref, requester, allowed={S.RUNNING})

    async def resume(self, ref: str, request: EmptyRequest, requester: str) -> Job:
        return await self._verb("resume", ref, requester, allowed={S.PAUSED})

    async def reset(self, ref: str, request: EmptyRequest, requester: str) -> Job:
        return await self._verb("reset", ref, requester, allowed={S.RUNNING})

    async def power_button(self, ref: str, request: EmptyRequest, requester: str) -> Job:
        return await self._verb("power-button", ref, requester, allowed={S.RUNNING})

    async def rename(self, ref: str, request: RenameRequest, requester: str) -> Job:
        return await self._verb("rename", ref, requester, name=check_name(request.name))

    async def set_guest(self, ref: str, request: SetRequest, requester: str) -> Job:
        wanted = msgspec.to_builtins(request)
        kept = {key: wanted[key] for key in ("cpus", "memory", "description", "display")}
        changes = {key: value for key, value in kept.items() if value is not None}
        check_spec(msgspec.structs.replace(self.view.guest(ref).spec, **changes))
        return await self._verb("set", ref, requester, changes=changes)

    async def delete_guest(self, ref: str, request: DeleteRequest, requester: str) -> Job:
        guest = self.view.guest(ref)
        allowed = set(S) if request.force else {S.STOPPED, S.FAILED}
        return await self._verb("delete", ref, requester, allowed=allowed, name=guest.name)

    async def publish(self, ref: str, request: Publish, requester: str) -> Job:
        check_publish(request)
        return await self._verb("publish", ref, requester)

    async def unpublish(self, ref: str, request: UnpublishRequest, requester: str) -> Job:
        return await self._verb("unpublish", ref, requester)

    async def _verb(
        self,
        verb: str,
        ref: str,
        requester: str,
        *,
        allowed: set[S] | None = None,
        name: str = "",
        changes: dict[str, Any] | None = None,
    ) -> Job:
        guest = self.view.guest(ref)
        require_state(guest.name, guest.state, frozenset(allowed or set(S)), verb=verb)
        params = ActParams(guest=guest.id, name=name, seconds=self.slow, changes=changes or {})
        return await self._submit(f"guest.{verb}", params, guest, requester)

    async def _submit(self, kind: str, params: ActParams, guest: Guest, requester: str) -> Job:
        return await self.jobs.submit(
            kind,
            params,
            target=GUESTS.key(guest.id),
            target_name=guest.name,
            requester=requester,
        )

    async def build_image(self, request: BuildImageRequest, requester: str) -> Job:
        if check_image_name(request.name) != "micro":
            raise UnknownImage(f"Nobody knows how to build {request.name!r}.")
        params = ActParams(name=request.name, seconds=self.slow)
        return await self.jobs.submit("image.build", params, requester=requester)

    async def remove_image(self, ref: str, requester: str) -> Job:
        image = self.view.image(ref)
        if users := self._users(image):
            raise InUse(f"Image {image.name} is in use.", hint="Remove them first.", guests=users)
        params = ActParams(name=image.id, seconds=self.slow)
        return await self.jobs.submit("image.remove", params, requester=requester)

    async def collect(self, requester: str) -> Job:
        params = ActParams(seconds=self.slow)
        return await self.jobs.submit("storage.collect", params, requester=requester)

    # --- Channels ---

    async def screenshot(self, ref: str) -> bytes:
        guest = self._running(ref, "take a screenshot")
        if not guest.spec.display:
            raise InvalidInput(f"Guest {guest.name!r} has no display.")
        return PNG

    async def log_tail(
        self, ref: str, source: LogSource, tail: int, *, follow: bool = False
    ) -> AsyncIterator[bytes]:
        self.view.guest(ref)
        return self._log(tail, follow=follow)

    async def _log(self, tail: int, *, follow: bool) -> AsyncIterator[bytes]:
        try:
            yield self.log[-tail:] if tail else b""
            while follow:
                await asyncio.sleep(0.01)
                yield b"tick\n"
        finally:
            self.log_closed.set()

    async def open_exec(self, ref: str, request: ExecRequest) -> RemoteProcess:
        self._running(ref, "run a command")
        argv = request.argv or ("/bin/sh",)
        if request.user != "root":
            raise InvalidInput(f"There is no user {request.user!r}.", field="user")
        command = await Command.start(argv, env=request.env, cwd=request.cwd)
        self.commands.append(command)
        return command.process

    async def open_console(self, ref: str, replay: int) -> socket.socket:
        self._running(ref, "open its console")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.consoles.append(theirs)
        self.console_opened.set()
        if replay:
            theirs.send(self.log[-replay:])
        return ours

    async def open_vnc(self, ref: str) -> socket.socket:
        if not self._running(ref, "open its screen").spec.display:
            raise InvalidInput("It has no display.", hint="Give it one.")
        ours = await self.open_console(ref, 0)
        self.consoles[-1].send(b"RFB 003.008\n")
        return ours

    def _running(self, ref: str, verb: str) -> Guest:
        guest = self.view.guest(ref)
        require_state(guest.name, guest.state, frozenset({S.RUNNING, S.PAUSED}), verb=verb)
        return guest

    async def probe(self) -> HostFacts:
        if self.slow:
            raise HostLacks("This host cannot be looked at.", hint="Wait.", capability="eyes")
        return self.facts

    def request_stop(self) -> None:
        self.stop_asked.set()
