"""What the API needs of the house: one method per verb, no HTTP.

The routes know this protocol alone; `guesthouse.operations.house` keeps it.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from guesthouse.api.firewall_facade import FirewallHouse
    from guesthouse.guestos.ssh_process import RemoteProcess
    from guesthouse.jobs.runner import JobRunner
    from guesthouse.model.capture import CaptureQuery
    from guesthouse.model.checkup import Checkup
    from guesthouse.model.device import PortRequest
    from guesthouse.model.guest import Guest
    from guesthouse.model.host import HostFacts
    from guesthouse.model.image import Image
    from guesthouse.model.impairment import NicImpairment
    from guesthouse.model.imports import ImportImageRequest, Upload, UploadRequest
    from guesthouse.model.job import Job
    from guesthouse.model.network import Network
    from guesthouse.model.networking import NetworkChange, NetworkRequest, NetworkView
    from guesthouse.model.nics import NicChange, NicRequest, NicView
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
    from guesthouse.model.usage import GuestUsage
    from guesthouse.store.view import View


class Nics(Protocol):
    """Network cards of guests. `which` is a card's number or MAC address; else as `House`."""

    def list(self, ref: str) -> list[NicView]: ...

    async def add(self, ref: str, wanted: NicRequest, requester: str) -> Job: ...

    async def change(self, ref: str, which: str, change: NicChange, requester: str) -> Job: ...

    async def remove(self, ref: str, which: str, requester: str) -> Job: ...


class TrafficHouse(Protocol):
    """Of the packets of guests' cards. `which` is a card's number or MAC address."""

    async def impair(self, ref: str, which: str, wanted: NicImpairment, requester: str) -> Job:
        """What is not in `wanted` goes."""
        ...

    async def capture(self, ref: str, which: str, wanted: CaptureQuery) -> AsyncIterator[bytes]:
        """A pcapng file in pieces. Errors are raised by this call, before the first piece."""
        ...


class House(Protocol):
    """Methods that answer a `Job` return as soon as it is durable.

    `ref` is a name, an id or a unique prefix of an id; unknown ones raise `NotFound`.
    `requester` says who asked, for the job's document: `uid:1000`.
    """

    @property
    def view(self) -> View: ...

    @property
    def jobs(self) -> JobRunner: ...

    @property
    def nics(self) -> Nics: ...

    @property
    def traffic(self) -> TrafficHouse: ...

    @property
    def firewall(self) -> FirewallHouse: ...

    @property
    def facts(self) -> HostFacts:
        """As of the last probe."""
        ...

    def info(self) -> HouseInfo: ...

    async def needs_notice(self) -> bool:
        """Whether `info` has something that every user should be told, as of now."""
        ...

    def guest_view(self, guest: Guest) -> GuestView:
        """From memory alone; called a thousand times for one list."""
        ...

    def image_view(self, image: Image) -> ImageView: ...

    def known_images(self) -> list[KnownImage]: ...

    async def launch(self, request: LaunchRequest, requester: str) -> Job: ...

    async def start(self, ref: str, request: StartRequest, requester: str) -> Job: ...

    async def stop(self, ref: str, request: StopRequest, requester: str) -> Job: ...

    async def restart(self, ref: str, request: RestartRequest, requester: str) -> Job: ...

    async def pause(self, ref: str, request: EmptyRequest, requester: str) -> Job: ...

    async def resume(self, ref: str, request: EmptyRequest, requester: str) -> Job: ...

    async def reset(self, ref: str, request: EmptyRequest, requester: str) -> Job: ...

    async def power_button(self, ref: str, request: EmptyRequest, requester: str) -> Job: ...

    async def rename(self, ref: str, request: RenameRequest, requester: str) -> Job: ...

    async def set_guest(self, ref: str, request: SetRequest, requester: str) -> Job: ...

    async def delete_guest(self, ref: str, request: DeleteRequest, requester: str) -> Job: ...

    def trash(self) -> list[GuestView]:
        """What is in the trash, the last one moved there first."""
        ...

    async def undelete(self, ref: str, request: UndeleteRequest, requester: str) -> Job:
        """:param ref: of a guest in the trash; of several of one name the last one moved there."""
        ...

    async def purge(self, ref: str, requester: str) -> Job:
        """Delete a guest of the trash for good; `ref` as for `undelete`."""
        ...

    async def publish(self, ref: str, request: PortRequest, requester: str) -> Job: ...

    async def unpublish(self, ref: str, request: UnpublishRequest, requester: str) -> Job: ...

    async def share(self, ref: str, request: ShareRequest, requester: str) -> Job: ...

    async def unshare(self, ref: str, request: UnshareRequest, requester: str) -> Job: ...

    async def shares(self, ref: str) -> list[ShareView]: ...

    def network_view(self, network: Network) -> NetworkView: ...

    async def create_network(self, request: NetworkRequest, requester: str) -> Job: ...

    async def change_network(self, ref: str, change: NetworkChange, requester: str) -> Job: ...

    async def confirm_network(self, ref: str) -> NetworkView:
        """The host is still reached: its interface stays as it is. :raise Conflict: too late."""
        ...

    async def remove_network(self, ref: str, requester: str) -> Job: ...

    async def build_image(self, request: BuildImageRequest, requester: str) -> Job: ...

    async def create_upload(self, request: UploadRequest) -> Upload:
        """A file that will be sent. :raise TooLarge: larger than any image may be."""
        ...

    async def upload(self, upload: str) -> Upload: ...

    async def write_upload(
        self, upload: str, offset: int, pieces: AsyncIterator[bytes]
    ) -> Upload: ...

    async def discard_upload(self, upload: str) -> None: ...

    async def import_image(self, request: ImportImageRequest, requester: str) -> Job: ...

    async def remove_image(self, ref: str, requester: str) -> Job: ...

    async def usage(self, ref: str) -> GuestUsage:
        """Measured now."""
        ...

    async def usage_of_running(self) -> list[GuestUsage]:
        """All guests that have a process, sorted by name, without their disks."""
        ...

    async def screenshot(self, ref: str) -> bytes:
        """A PNG. :raise InvalidTransition: not running. :raise InvalidInput: no display."""
        ...

    async def log_tail(
        self, ref: str, source: LogSource, tail: int, *, follow: bool = False
    ) -> AsyncIterator[bytes]:
        """The last `tail` bytes, in pieces; with `follow`, what comes after until it is closed.

        Errors are raised by this call, before the first piece.
        """
        ...

    async def open_exec(self, ref: str, request: ExecRequest) -> RemoteProcess:
        """A command that runs in the guest. The caller closes it."""
        ...

    async def open_console(self, ref: str, replay: int) -> socket.socket:
        """Serial bytes both ways, non-blocking, after the last `replay` bytes of the log."""
        ...

    async def open_vnc(self, ref: str) -> socket.socket:
        """A non-blocking stream that speaks RFB."""
        ...

    async def probe(self) -> HostFacts:
        """Look at the host afresh."""
        ...

    async def check_up(self) -> Checkup:
        """Look at the house itself."""
        ...

    async def survey(self) -> RecoverySurvey:
        """What lies beside the disks and is not in the database."""
        ...

    async def recover(self, requester: str) -> Job:
        """Bring all of that back."""
        ...

    async def support_bundle(self) -> AsyncIterator[bytes]:
        """A .tar.gz in pieces. Errors are raised by this call."""
        ...

    async def collect(self, requester: str) -> Job:
        """Start a garbage collection of the storage."""
        ...

    async def stop_guests(self, request: StopGuestsRequest, requester: str) -> Job:
        """Stop all guests, as for a shutdown of the host."""
        ...

    def request_stop(self) -> None:
        """Ask the daemon to stop; returns at once. Guests live on."""
        ...
