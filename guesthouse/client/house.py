"""A house as an object: one typed method per call of the API.

Every method raises `DaemonUnreachable` when the connection breaks, and otherwise the error that the
daemon answered, of its own class. Writes return the job as the daemon accepted it; follow it with
`client.follow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from msgspec.structs import asdict

from guesthouse.client.transport import Response, Stream, Transport
from guesthouse.errors import GuesthouseError, Internal, InvalidInput
from guesthouse.model.capture import CaptureQuery
from guesthouse.model.checkup import Checkup
from guesthouse.model.device import PortRequest, Publish
from guesthouse.model.document import Noun, convert_strict, decode_strict, encode
from guesthouse.model.host import HostFacts
from guesthouse.model.impairment import NicImpairment
from guesthouse.model.imports import ImportImageRequest, Upload, UploadRequest
from guesthouse.model.job import Job
from guesthouse.model.networking import NetworkChange, NetworkRequest, NetworkView
from guesthouse.model.nics import NicChange, NicRequest, NicView
from guesthouse.model.reports import (
    BuildImageRequest,
    EmptyRequest,
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
from guesthouse.model.sharing import ShareRequest, ShareView
from guesthouse.model.usage import GuestUsage

T = TypeVar("T")

PROBE_TIMEOUT = 300.0
"""Seconds that a fresh look at the host, or a screenshot, may take."""


class House:
    """The house whose daemon `transport` reaches."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    # --- The house itself ---

    def info(self) -> HouseInfo:
        return self.get("/v1", HouseInfo)

    def facts(self) -> HostFacts:
        """What the host can do, as of the daemon's last look."""
        return self.get("/v1/host", HostFacts)

    def probe(self) -> HostFacts:
        """Have the daemon look afresh."""
        response = self.transport.request("POST", "/v1/host/probe", b"{}", timeout=PROBE_TIMEOUT)
        return decoded(response, HostFacts)

    def check_up(self) -> Checkup:
        """Have the daemon look at the house itself."""
        response = self.transport.request("GET", "/v1/checkup", timeout=PROBE_TIMEOUT)
        return decoded(response, Checkup)

    def stop_daemon(self) -> None:
        """Ask the daemon to stop; it answers first. Guests live on."""
        self.transport.request("POST", "/v1/daemon/stop", b"{}")

    def collect(self) -> Job:
        """Remove layers that nothing refers to any more."""
        return self.write("POST", "/v1/storage/collect", EmptyRequest())

    def stop_guests(self, request: StopGuestsRequest) -> Job:
        """Stop every guest, as for a shutdown of the host."""
        return self.write("POST", "/v1/host/stop-guests", request)

    def survey(self) -> RecoverySurvey:
        """What lies beside the disks and is not in the database."""
        response = self.transport.request("GET", "/v1/recovery", timeout=PROBE_TIMEOUT)
        return decoded(response, RecoverySurvey)

    def recover(self) -> Job:
        """Bring all of that back."""
        return self.write("POST", "/v1/recovery", EmptyRequest())

    @contextmanager
    def support_bundle(self) -> Iterator[Stream]:
        """A .tar.gz for whoever helps, without secrets."""
        with self.transport.stream("GET", "/v1/support-bundle", timeout=PROBE_TIMEOUT) as stream:
            yield stream

    # --- Guests. `ref` is a name, an id, or a unique beginning of an id ---

    def guests(self) -> list[GuestView]:
        return self.get("/v1/guests", list[GuestView])

    def guest(self, ref: str) -> GuestView:
        return self.get(guest_path(ref), GuestView)

    def usage(self, ref: str) -> GuestUsage:
        """What it takes of its host."""
        return self.get(guest_path(ref, "usage"), GuestUsage)

    def usage_of_running(self) -> list[GuestUsage]:
        """The same of all that run, without their disks; sorted by name."""
        return self.get("/v1/usage", list[GuestUsage])

    def launch(self, request: LaunchRequest) -> Job:
        return self.write("POST", "/v1/guests", request)

    def start(self, ref: str, request: StartRequest) -> Job:
        return self.write("POST", guest_path(ref, "start"), request)

    def stop(self, ref: str, request: StopRequest) -> Job:
        return self.write("POST", guest_path(ref, "stop"), request)

    def restart(self, ref: str, request: RestartRequest) -> Job:
        return self.write("POST", guest_path(ref, "restart"), request)

    def pause(self, ref: str) -> Job:
        return self.write("POST", guest_path(ref, "pause"), EmptyRequest())

    def resume(self, ref: str) -> Job:
        return self.write("POST", guest_path(ref, "resume"), EmptyRequest())

    def reset(self, ref: str) -> Job:
        return self.write("POST", guest_path(ref, "reset"), EmptyRequest())

    def power_button(self, ref: str) -> Job:
        return self.write("POST", guest_path(ref, "power-button"), EmptyRequest())

    def rename(self, ref: str, name: str) -> Job:
        return self.write("POST", guest_path(ref, "rename"), RenameRequest(name=name))

    def set_guest(self, ref: str, changes: dict[str, Any]) -> Job:
        """Change fields of `SetRequest`; only those in `changes` travel.

        :raise InvalidInput: a field that cannot be set, or a value of the wrong kind.
        """
        convert_strict(changes, SetRequest, what="change")
        return self.write("PATCH", guest_path(ref), changes)

    def delete_guest(self, ref: str, *, force: bool = False, now: bool = False) -> Job:
        """To the trash. :param now: for good."""
        chosen = {name: "true" for name, on in (("force", force), ("now", now)) if on}
        query = f"?{urlencode(chosen)}" if chosen else ""
        return self.write("DELETE", guest_path(ref) + query, None)

    def publish(self, ref: str, port: PortRequest | Publish) -> Job:
        return self.write("POST", guest_path(ref, "ports"), port)

    def unpublish(self, ref: str, port: UnpublishRequest) -> Job:
        where = "/".join(
            ("ports", port.protocol.value, quote(port.host_ip, safe=""), str(port.host_port))
        )
        return self.write("DELETE", guest_path(ref, where), None)

    def shares(self, ref: str) -> list[ShareView]:
        return self.get(guest_path(ref, "shares"), list[ShareView])

    def share(self, ref: str, request: ShareRequest) -> Job:
        return self.write("POST", guest_path(ref, "shares"), request)

    def unshare(self, ref: str, share: str, *, force: bool = False) -> Job:
        """:param share: its name."""
        query = "?force=true" if force else ""
        where = guest_path(ref, f"shares/{quote(share, safe='')}")
        return self.write("DELETE", where + query, None)

    def nics(self, ref: str) -> list[NicView]:
        return self.get(guest_path(ref, "nics"), list[NicView])

    def add_nic(self, ref: str, request: NicRequest) -> Job:
        return self.write("POST", guest_path(ref, "nics"), request)

    def change_nic(self, ref: str, which: str, change: NicChange) -> Job:
        """:param which: the card's number or MAC address."""
        return self.write("PATCH", nic_path(ref, which), change)

    def remove_nic(self, ref: str, which: str) -> Job:
        return self.write("DELETE", nic_path(ref, which), None)

    def impair(self, ref: str, nic: str, wanted: NicImpairment) -> Job:
        """:param nic: number or MAC address of the card."""
        return self.write("PUT", nic_path(ref, nic, "impairment"), wanted)

    @contextmanager
    def capture(self, ref: str, nic: str, wanted: CaptureQuery) -> Iterator[Stream]:
        """A pcapng file as it comes; for ever, where `wanted` has no bounds."""
        asked = {name: value for name, value in asdict(wanted).items() if value is not None}
        target = f"{nic_path(ref, nic, 'capture')}?{urlencode(asked)}"
        with self.transport.stream("GET", target, timeout=None) as stream:
            yield stream

    def screenshot(self, ref: str) -> bytes:
        """A PNG."""
        return self.transport.request(
            "GET", guest_path(ref, "screenshot"), timeout=PROBE_TIMEOUT
        ).body

    @contextmanager
    def logs(
        self, ref: str, source: LogSource, *, tail: int, follow: bool = False
    ) -> Iterator[Stream]:
        """The last `tail` bytes of a log; with `follow`, also what comes after, for ever."""
        query = urlencode(
            {"source": source.value, "tail": tail, "follow": "true" if follow else "false"}
        )
        timeout = None if follow else PROBE_TIMEOUT
        target = f"{guest_path(ref, 'logs')}?{query}"
        with self.transport.stream("GET", target, timeout=timeout) as stream:
            yield stream

    # --- The trash ---

    def trash(self) -> list[GuestView]:
        return self.get("/v1/trash", list[GuestView])

    def undelete(self, ref: str, *, name: str | None = None) -> Job:
        """:param name: another name than it had."""
        return self.write("POST", trash_path(ref, "undelete"), UndeleteRequest(name=name))

    def purge(self, ref: str) -> Job:
        """Delete a guest of the trash for good."""
        return self.write("DELETE", trash_path(ref), None)

    # --- Images ---

    def images(self) -> list[ImageView]:
        return self.get("/v1/images", list[ImageView])

    def image(self, ref: str) -> ImageView:
        return self.get(image_path(ref), ImageView)

    def known_images(self) -> list[KnownImage]:
        return self.get("/v1/images-known", list[KnownImage])

    def build_image(self, name: str, *, rebuild: bool = False) -> Job:
        return self.write("POST", "/v1/images", BuildImageRequest(name=name, rebuild=rebuild))

    def import_image(self, request: ImportImageRequest) -> Job:
        """Make an image of an upload, which is gone afterwards."""
        return self.write("POST", "/v1/images-import", request)

    def remove_image(self, ref: str) -> Job:
        return self.write("DELETE", image_path(ref), None)

    # --- Networks ---

    def networks(self) -> list[NetworkView]:
        return self.get("/v1/networks", list[NetworkView])

    def network(self, ref: str) -> NetworkView:
        return self.get(network_path(ref), NetworkView)

    def create_network(self, request: NetworkRequest) -> Job:
        return self.write("POST", "/v1/networks", request)

    def change_network(self, ref: str, change: NetworkChange) -> Job:
        return self.write("PATCH", network_path(ref), change)

    def confirm_network(self, ref: str) -> NetworkView:
        """The host is still reached, so its interface stays in the bridge. :raise Conflict:"""
        answer = self.transport.request("POST", f"{network_path(ref)}/confirm")
        return decoded(answer, NetworkView)

    def remove_network(self, ref: str) -> Job:
        return self.write("DELETE", network_path(ref), None)

    # --- Files that are sent ---

    def create_upload(self, size: int) -> Upload:
        """A file of `size` bytes, all zeroes until they are sent."""
        body = encode(UploadRequest(size=size))
        return decoded(self.transport.request("POST", "/v1/uploads", body), Upload)

    def write_upload(
        self, upload: str, offset: int, pieces: Iterable[bytes], length: int
    ) -> Upload:
        """Send `length` bytes that begin at `offset` of the file."""
        target = f"{upload_path(upload)}?offset={offset}"
        return decoded(self.transport.send("PUT", target, pieces, length), Upload)

    def discard_upload(self, upload: str) -> None:
        self.transport.request("DELETE", upload_path(upload))

    # --- Jobs ---

    def jobs(self, *, active: bool = False, guest: str = "", limit: int = 100) -> list[Job]:
        """Newest first. :param guest: only those of that guest."""
        query: dict[str, str] = {"limit": str(limit)}
        if active:
            query["active"] = "true"
        if guest:
            query["guest"] = guest
        return self.get(f"/v1/jobs?{urlencode(query)}", list[Job])

    def job(self, ref: str) -> Job:
        return self.get(job_path(ref), Job)

    def cancel(self, ref: str) -> Job:
        """Ask a job to stop and undo what it did. :raise Conflict: it may not be cancelled."""
        return self.write("POST", job_path(ref, "cancel"), EmptyRequest())

    def job_log(self, ref: str) -> str:
        return self.transport.request("GET", job_path(ref, "log")).body.decode(errors="replace")

    # --- Wire ---

    def raw(self, target: str) -> Any:
        """The JSON that a GET answers, as it is: for programs that read our output."""
        return self.transport.request("GET", target).json()

    def get(self, target: str, kind: type[T]) -> T:
        """What a GET answers."""
        return decoded(self.transport.request("GET", target), kind)

    def write(self, method: str, target: str, body: Noun | dict[str, Any] | None) -> Job:
        """The job that a change becomes."""
        data = None if body is None else encode(body)
        return decoded(self.transport.request(method, target, data), Job)


def guest_path(ref: str, below: str = "") -> str:
    """The path of a guest's resource. :raise InvalidInput: an empty reference."""
    return _path("guests", _checked(ref, "guest"), below)


def trash_path(ref: str, below: str = "") -> str:
    """As `guest_path`, of a guest in the trash."""
    return _path("trash", _checked(ref, "guest"), below)


def nic_path(ref: str, which: str, below: str = "") -> str:
    """Of the card of that number or MAC address."""
    path = guest_path(ref, f"nics/{quote(_checked(which, 'network card'), safe='')}")
    return f"{path}/{below}" if below else path


def network_path(ref: str) -> str:
    """As `guest_path`, of a network."""
    return _path("networks", _checked(ref, "network"), "")


def job_path(ref: str, below: str = "") -> str:
    """As `guest_path`, of a job."""
    return _path("jobs", _checked(ref, "job"), below)


def image_path(ref: str) -> str:
    """As `guest_path`, of an image; names of images contain slashes, which stay."""
    return f"/v1/images/{quote(_checked(ref, 'image', slashes=True))}"


def upload_path(upload: str) -> str:
    """As `guest_path`, of an upload."""
    return _path("uploads", _checked(upload, "upload"), "")


def resource_path(room: str, ref: str, what: str, below: str) -> str:
    """As `guest_path`, of anything. :param what: it is, as in the commands about it."""
    return _path(room, _checked(ref, what), below)


def _path(room: str, ref: str, below: str) -> str:
    path = f"/v1/{room}/{quote(ref, safe='')}"
    return f"{path}/{below}" if below else path


def _checked(ref: str, what: str, *, slashes: bool = False) -> str:
    parts = ref.split("/") if slashes else [ref]
    if any(part in {"", ".", ".."} for part in parts):
        raise InvalidInput(
            f"{ref!r} cannot be the name of {'an' if what == 'image' else 'a'} {what}.",
            hint="Look it up with: guest " + {"guest": "ls"}.get(what, f"{what} ls"),
            field=what,
        )
    return ref


def decoded(response: Response, kind: type[T]) -> T:
    """The body of an answer. :raise Internal: it is none that we know."""
    try:
        return decode_strict(response.body, kind, what="daemon's answer")
    except GuesthouseError as error:
        raise Internal(
            f"The daemon and this program do not understand each other. {error.message}",
            hint="They are of different versions; restart it with: guest daemon restart",
        ) from error
