"""The house: one method per verb. Resolves names, checks what can be checked at once, submits jobs.

It keeps `api.facade.House`. Nothing here changes anything by itself: changes are jobs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from guesthouse.drivers.base import VNC_SOCKET
from guesthouse.errors import InvalidInput, NameTaken, NotFound, TooLarge, UnknownImage
from guesthouse.guestos.nocloud import CloudInit
from guesthouse.guestos.ssh import RemoteProcess
from guesthouse.host.installed import Installed
from guesthouse.images.building import BuildParams, RemoveParams
from guesthouse.images.importing import ImportImage, refuse_taken
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.checkup import Checkup
from guesthouse.model.device import PortRequest, Publish, named_port
from guesthouse.model.document import Noun
from guesthouse.model.guest import Guest, pending_changes
from guesthouse.model.host import HostFacts
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image, Seed
from guesthouse.model.imports import ImportImageRequest, Upload, UploadRequest
from guesthouse.model.job import Job
from guesthouse.model.names import check_image_name, check_name, pleasant_name
from guesthouse.model.network import Network
from guesthouse.model.networking import NetworkChange, NetworkRequest, NetworkView
from guesthouse.model.reports import (
    BuildImageRequest,
    DeleteRequest,
    EmptyRequest,
    ExecRequest,
    GuestView,
    HouseInfo,
    ImageView,
    KnownImage,
    LaunchRequest,
    LogSource,
    Readiness,
    RecoverySurvey,
    RenameRequest,
    RestartRequest,
    SetRequest,
    StartRequest,
    StopGuestsRequest,
    StopRequest,
    UndeleteRequest,
    UnpublishRequest,
)
from guesthouse.model.sharing import ShareRequest, ShareView, UnshareRequest
from guesthouse.model.units import format_size
from guesthouse.model.usage import GuestUsage
from guesthouse.operations.checkup import KeeperFacts, check_up
from guesthouse.operations.creation import LaunchParams
from guesthouse.operations.deletion import DeleteParams
from guesthouse.operations.editing import (
    PublishParams,
    RenameParams,
    SetParams,
    UnpublishParams,
)
from guesthouse.operations.firewall_house import FirewallHouse
from guesthouse.operations.grouping import groups_of
from guesthouse.operations.hosting import HOST_LOCK, StartGuests, StopGuestsParams
from guesthouse.operations.joining import networks_of
from guesthouse.operations.lifecycle import (
    GuestParams,
    RestartParams,
    StartParams,
    StopParams,
)
from guesthouse.operations.logs import read_log
from guesthouse.operations.memory import check_total
from guesthouse.operations.networking import (
    ChangeNetworkParams,
    CreateNetworkParams,
    RemoveNetworkParams,
    check_change,
    check_request,
    network_view,
)
from guesthouse.operations.nics_house import NicsHouse, requested_at_launch
from guesthouse.operations.recovery import RecoverParams
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.seeding import check_seeding, kept_for_launch
from guesthouse.operations.sharing import ShareParams, UnshareParams, share_of, shares_of, views
from guesthouse.operations.support import support_bundle
from guesthouse.operations.survey import RECOVER, survey, unknown_copies
from guesthouse.operations.traffic_house import TrafficHouse
from guesthouse.operations.trash import PurgeParams, UndeleteParams, expires_at
from guesthouse.operations.usage import usage_of, usage_of_running
from guesthouse.storage.collect import CollectParams
from guesthouse.store.documents import GUESTS, IMAGES, NETWORKS
from guesthouse.store.trash import trash_of
from guesthouse.store.view import View

Console = Callable[[str, int], Awaitable[socket.socket]]


@dataclass(kw_only=True)
class House:
    """:ivar console: (run key, bytes to replay) -> the serial console, from the keeper.

    :ivar keeping: how the keeper is.
    :ivar reprobe: look at the host afresh. :ivar stop: ask the daemon to stop.
    """

    rooms: Rooms
    jobs: JobRunner
    console: Console
    keeping: Callable[[], Awaitable[KeeperFacts]]
    reprobe: Callable[[], Awaitable[HostFacts]]
    stop_daemon: Callable[[], None]
    identity: HouseInfo
    installed: Installed = field(default_factory=Installed)

    @property
    def nics(self) -> NicsHouse:
        return NicsHouse(rooms=self.rooms, jobs=self.jobs)

    @property
    def view(self) -> View:
        return self.rooms.view

    @property
    def facts(self) -> HostFacts:
        return self.rooms.facts()

    @cached_property
    def traffic(self) -> TrafficHouse:
        return TrafficHouse(self.rooms, self.jobs)

    @property
    def firewall(self) -> FirewallHouse:
        return FirewallHouse(rooms=self.rooms, jobs=self.jobs)

    def info(self) -> HouseInfo:
        return msgspec.structs.replace(
            self.identity,
            read_only=self.rooms.documents.store.read_only or self.view.newer,
            quarantined=dict(self.view.quarantined),
            unknown_copies=len(unknown_copies(self.rooms)),
            trash_days=self.rooms.settings.trash_days,
            code_changed=self.installed.changed,
        )

    async def needs_notice(self) -> bool:
        await self.installed.look()
        read_only = self.rooms.documents.store.read_only or self.view.newer
        return bool(read_only or self.view.quarantined or self.installed.changed)

    # --- Reads, from memory ----------------------------------------------------------------------

    def guest_view(self, guest: Guest) -> GuestView:
        live = self.rooms.live.get(guest.id)
        readiness = None
        if live is not None:
            if live.unrecorded is not None:
                guest = msgspec.structs.replace(guest, status=live.unrecorded)
            readiness = Readiness(
                passed=live.progress.passed,
                waiting=live.progress.waiting or None,
                hint=live.progress.hint if live.progress.waiting else "",
            )
        return GuestView.of(
            guest,
            pending=pending_changes(guest),
            addresses=live.progress.addresses if live else (),
            readiness=readiness,
            clock=live.clock if live else "",
            job=self.jobs.holder(GUESTS.key(guest.id)),
            expires_at=expires_at(guest, self.rooms.settings.trash_days),
        )

    def trash(self) -> list[GuestView]:
        """What is in the trash, the last one moved there first."""
        return [self.guest_view(guest) for guest in trash_of(self.view.guests.values())]

    def image_view(self, image: Image) -> ImageView:
        return ImageView.of(image, users=self.rooms.catalogue.users(image))

    def network_view(self, network: Network) -> NetworkView:
        return network_view(self.rooms, network)

    def known_images(self) -> list[KnownImage]:
        built = {image.name for image in self.view.images.values()}
        return [
            KnownImage(name=known.name, description=known.description, built=known.name in built)
            for known in self.rooms.catalogue.known()
        ]

    async def usage(self, ref: str) -> GuestUsage:
        return await usage_of(self.rooms, self.view.guest(ref))

    async def usage_of_running(self) -> list[GuestUsage]:
        return await usage_of_running(self.rooms)

    # --- Verbs -----------------------------------------------------------------------------------

    async def launch(self, request: LaunchRequest, requester: str) -> Job:
        names = {guest.name for guest in self.view.guests.values() if not guest.in_trash}
        name = request.name or pleasant_name(names)
        check_name(name)
        if name in names:
            raise NameTaken(
                f"There is already a guest {name!r}.",
                hint=f"Choose another name, or remove that one: guest rm {name}",
                name=name,
            )
        check_total(request.memory, self.facts)
        self._check_image(request.image)
        check_seeding(self.rooms, request)
        ports = tuple(self._named(port) for port in request.publish)
        asked = request.networks or tuple(wish.network for wish in request.nics)
        networks = networks_of(self.rooms, asked, ports)
        fields = msgspec.structs.asdict(request) | {
            "name": name,
            "user": request.user or self.rooms.settings.default_user,
            "accelerator": request.accelerator.value,
            "shares": shares_of(request.shares, requester),
            "publish": ports,
            "networks": networks,
            "groups": groups_of(self.rooms, request.groups, networks),
            "nics": requested_at_launch(self.rooms, request.networks, request.nics),
        }
        # Secret, so it goes another way than into the job's document.
        secret = CloudInit(
            user_data=fields.pop("user_data"), network_config=fields.pop("network_config")
        )
        params = LaunchParams(guest=new_id(), **fields)
        check_name(params.user, field="user")
        async with kept_for_launch(self.rooms, params.guest, secret):
            return await self.jobs.submit(
                "guest.launch",
                params,
                target=GUESTS.key(params.guest),
                target_name=name,
                requester=requester,
            )

    def _check_image(self, name: str) -> None:
        """:raise UnknownImage: neither in the catalogue nor one that can be built."""
        check_image_name(name)
        try:
            self.rooms.catalogue.resolve(name)
        except UnknownImage:
            if name not in {known.name for known in self.rooms.catalogue.known()}:
                raise

    async def start(self, ref: str, request: StartRequest, requester: str) -> Job:
        return await self._submit("guest.start", StartParams, ref, request, requester)

    async def stop(self, ref: str, request: StopRequest, requester: str) -> Job:
        guest = self.view.guest(ref)
        if request.force:  # never waits for a lock: whoever holds the guest is interrupted
            holder = self.jobs.holder(GUESTS.key(guest.id))
            if holder is not None:
                await self.jobs.interrupt(holder, f"interrupted by 'stop --force' of {guest.name}")
        params = StopParams(guest=guest.id, force=request.force, timeout=request.timeout)
        return await self._submit_params(
            "guest.stop", params, guest, requester, urgent=request.force
        )

    async def restart(self, ref: str, request: RestartRequest, requester: str) -> Job:
        return await self._submit("guest.restart", RestartParams, ref, request, requester)

    async def pause(self, ref: str, request: EmptyRequest, requester: str) -> Job:
        return await self._submit("guest.pause", GuestParams, ref, request, requester)

    async def resume(self, ref: str, request: EmptyRequest, requester: str) -> Job:
        return await self._submit("guest.resume", GuestParams, ref, request, requester)

    async def reset(self, ref: str, request: EmptyRequest, requester: str) -> Job:
        return await self._submit("guest.reset", GuestParams, ref, request, requester)

    async def power_button(self, ref: str, request: EmptyRequest, requester: str) -> Job:
        return await self._submit("guest.power-button", GuestParams, ref, request, requester)

    async def rename(self, ref: str, request: RenameRequest, requester: str) -> Job:
        check_name(request.name)
        return await self._submit("guest.rename", RenameParams, ref, request, requester)

    async def set_guest(self, ref: str, request: SetRequest, requester: str) -> Job:
        check_total(request.memory, self.facts)
        return await self._submit("guest.set", SetParams, ref, request, requester)

    async def delete_guest(self, ref: str, request: DeleteRequest, requester: str) -> Job:
        now = request.now or not self.rooms.settings.trash_days
        request = msgspec.structs.replace(request, now=now)
        return await self._submit("guest.delete", DeleteParams, ref, request, requester)

    async def undelete(self, ref: str, request: UndeleteRequest, requester: str) -> Job:
        guest = self.view.trashed(ref)
        params = UndeleteParams(guest=guest.id, name=request.name or "")
        if params.name:
            check_name(params.name)
        return await self._submit_params("guest.undelete", params, guest, requester)

    async def purge(self, ref: str, requester: str) -> Job:
        guest = self.view.trashed(ref)
        assert guest.deleted_at is not None  # it is in the trash
        params = PurgeParams(guest=guest.id, deleted_at=guest.deleted_at)
        return await self._submit_params("guest.purge", params, guest, requester)

    def _named(self, port: PortRequest) -> Publish:
        return named_port(port, must_name=self.rooms.folders.mode == "system")

    async def publish(self, ref: str, request: PortRequest, requester: str) -> Job:
        port, guest = self._named(request), self.view.guest(ref)
        return await self._submit_params(
            "guest.publish", PublishParams(guest=guest.id, port=port), guest, requester
        )

    async def unpublish(self, ref: str, request: UnpublishRequest, requester: str) -> Job:
        return await self._submit("guest.unpublish", UnpublishParams, ref, request, requester)

    async def share(self, ref: str, request: ShareRequest, requester: str) -> Job:
        guest = self.view.guest(ref)
        share = share_of(request, requester, [one.name for one in guest.spec.shares])
        params = ShareParams(guest=guest.id, share=share)
        return await self._submit_params("guest.share", params, guest, requester)

    async def unshare(self, ref: str, request: UnshareRequest, requester: str) -> Job:
        return await self._submit("guest.unshare", UnshareParams, ref, request, requester)

    async def shares(self, ref: str) -> list[ShareView]:
        return await views(self.rooms, self.view.guest(ref))

    async def create_network(self, request: NetworkRequest, requester: str) -> Job:
        check_request(request)
        if any(one.name == request.name for one in self.view.networks.values()):
            raise NameTaken(
                f"There is already a network {request.name!r}.",
                hint=f"Choose another name, or see that one: guest network info {request.name}",
                name=request.name,
            )
        params = CreateNetworkParams(network=new_id(), wanted=request)
        return await self._submit_network("network.create", params, request.name, requester)

    async def change_network(self, ref: str, change: NetworkChange, requester: str) -> Job:
        network = self.view.network(ref)
        check_change(network, change)
        params = ChangeNetworkParams(network=network.id, change=change)
        return await self._submit_network("network.set", params, network.name, requester)

    async def confirm_network(self, ref: str) -> NetworkView:
        network = self.view.network(ref)
        self.rooms.bridges.moves.confirm(network.id)
        return self.network_view(network)

    async def remove_network(self, ref: str, requester: str) -> Job:
        network = self.view.network(ref)
        params = RemoveNetworkParams(network=network.id)
        return await self._submit_network("network.remove", params, network.name, requester)

    async def _submit_network(
        self,
        kind: str,
        params: CreateNetworkParams | ChangeNetworkParams | RemoveNetworkParams,
        name: str,
        requester: str,
    ) -> Job:
        return await self.jobs.submit(
            kind,
            params,
            target=NETWORKS.key(params.network),
            target_name=name,
            requester=requester,
        )

    async def build_image(self, request: BuildImageRequest, requester: str) -> Job:
        check_image_name(request.name)
        if request.name not in {known.name for known in self.rooms.catalogue.known()}:
            raise UnknownImage(
                f"This house does not know how to build {request.name!r}.",
                hint="See what can be built: guest image ls",
            )
        return await self.jobs.submit(
            "image.build",
            BuildParams(name=request.name, rebuild=request.rebuild),
            target_name=request.name,
            requester=requester,
            dedupe=request.name,
        )

    async def create_upload(self, request: UploadRequest) -> Upload:
        most = self.rooms.settings.most_image_bytes
        if request.size > most:
            raise TooLarge(
                f"A file of {format_size(request.size)} is larger than any image may be:"
                f" {format_size(most)}.",
                hint="If you mean it, set max_image_size in the house's settings.toml.",
                field="size",
            )
        return await self.rooms.uploads.create(request.size)

    async def upload(self, upload: str) -> Upload:
        return await self.rooms.uploads.get(upload)

    async def write_upload(self, upload: str, offset: int, pieces: AsyncIterator[bytes]) -> Upload:
        return await self.rooms.uploads.write(upload, offset, pieces)

    async def discard_upload(self, upload: str) -> None:
        await self.rooms.uploads.discard(upload)

    async def import_image(self, request: ImportImageRequest, requester: str) -> Job:
        await refuse_taken(self.rooms.catalogue, request.name)
        await self.rooms.uploads.get(request.upload)
        if request.seed is Seed.HOUSE:
            raise InvalidInput(
                "Only images that this house builds read its own seed.",
                hint="Use nocloud or none.",
                field="seed",
            )
        return await self.jobs.submit(
            ImportImage.kind,
            request,
            target_name=request.name,
            requester=requester,
        )

    async def remove_image(self, ref: str, requester: str) -> Job:
        image = self.rooms.catalogue.resolve(ref)
        return await self.jobs.submit(
            "image.remove",
            RemoveParams(image=image.id),
            target=IMAGES.key(image.id),
            target_name=image.name,
            requester=requester,
        )

    async def check_up(self) -> Checkup:
        return await check_up(self.rooms, self.keeping)

    async def survey(self) -> RecoverySurvey:
        return RecoverySurvey(findings=tuple((await survey(self.rooms)).findings()))

    async def recover(self, requester: str) -> Job:
        return await self.jobs.submit(
            RECOVER, RecoverParams(), requester=requester, dedupe="recover"
        )

    async def support_bundle(self) -> AsyncIterator[bytes]:
        return await support_bundle(self.rooms, self.jobs, self.info())

    async def collect(self, requester: str) -> Job:
        return await self.jobs.submit(
            "storage.collect", CollectParams(), requester=requester, dedupe="storage"
        )

    async def stop_guests(self, request: StopGuestsRequest, requester: str) -> Job:
        holder = self.jobs.holder(HOST_LOCK)
        if holder is not None and (await self.jobs.get(holder)).kind == StartGuests.kind:
            await self.jobs.interrupt(holder, "The host goes down.")
        params = StopGuestsParams(boot_id=self.facts.boot_id, **msgspec.structs.asdict(request))
        return await self.jobs.submit(
            "host.stop-guests",
            params,
            target_name="host",
            requester=requester,
            dedupe=f"{request.action}, {request.timeout}",
        )

    async def _submit(
        self, kind: str, params: type[GuestParams], ref: str, request: Noun, requester: str
    ) -> Job:
        """Requests have the fields of the params that they become, the guest's id apart."""
        guest = self.view.guest(ref)
        fields = msgspec.structs.asdict(request)
        if isinstance(fields.get("accelerator"), str):
            fields["accelerator"] = str(fields["accelerator"])
        return await self._submit_params(kind, params(guest=guest.id, **fields), guest, requester)

    async def _submit_params(
        self, kind: str, params: Noun, guest: Guest, requester: str, *, urgent: bool = False
    ) -> Job:
        return await self.jobs.submit(
            kind,
            params,
            target=GUESTS.key(guest.id),
            target_name=guest.name,
            requester=requester,
            urgent=urgent,
        )

    # --- Streams and channels ----------------------------------------------------------------

    async def screenshot(self, ref: str) -> bytes:
        guest = self.view.guest(ref)
        live = self.rooms.live.require(guest, verb="take a screenshot")
        return await live.running.screenshot()

    async def log_tail(
        self, ref: str, source: LogSource, tail: int, *, follow: bool = False
    ) -> AsyncIterator[bytes]:
        return await read_log(
            self.rooms, self.jobs, self.view.guest(ref), source, tail=tail, follow=follow
        )

    async def open_exec(self, ref: str, request: ExecRequest) -> RemoteProcess:
        guest = self.view.guest(ref)
        ssh = self.rooms.live.require_ssh(guest, verb="run a command in it")
        tty = request.tty
        return await ssh.start(
            request.argv, user=request.user, env=request.env, tty=tty, cwd=request.cwd
        )

    async def open_console(self, ref: str, replay: int) -> socket.socket:
        guest = self.view.guest(ref)
        self.rooms.live.require(guest, verb="open its console")
        return await self.console(guest.run_key, replay)

    async def open_vnc(self, ref: str) -> socket.socket:
        guest = self.view.guest(ref)
        self.rooms.live.require(guest, verb="open its screen")
        if not (guest.launch and guest.launch.spec.display):
            raise InvalidInput(
                f"Guest {guest.name!r} has no screen.",
                hint=f"Give it one and restart it: guest set {guest.name} display=true",
            )
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.setblocking(False)
        path = self.rooms.folders.guest_runtime(guest.id) / VNC_SOCKET
        try:
            await asyncio.get_running_loop().sock_connect(stream, str(path))
        except OSError as error:
            stream.close()
            raise NotFound(f"The screen of {guest.name!r} cannot be reached: {error}.") from None
        return stream

    async def probe(self) -> HostFacts:
        return await self.reprobe()

    def request_stop(self) -> None:
        self.stop_daemon()
