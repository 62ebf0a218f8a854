"""The HTTP side of the house for tests (see `fake_house`)."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
from websockets.utils import accept_key

from guesthouse.errors import Cancelled, Conflict, GuesthouseError, NotFound
from guesthouse.model.checkup import Checkup
from guesthouse.model.device import PortRequest, named_port
from guesthouse.model.document import encode
from guesthouse.model.guest import Guest
from guesthouse.model.host import HostFacts
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image, ImageKind, Seed, SourceFormat
from guesthouse.model.imports import Upload
from guesthouse.model.job import Job, JobProgress
from guesthouse.model.network import Network, NetworkKind
from guesthouse.model.reports import (
    HouseInfo,
    HouseMode,
    ImageView,
    KnownImage,
    ProblemDetails,
    RecoverySurvey,
)
from guesthouse.model.sharing import ShareState, ShareView

from .fake_api_firewall import route_firewall
from .fake_api_nics import route_nics
from .fake_streams import ServerLink, run_command, serve_console

if TYPE_CHECKING:
    from .fake_house import FakeHouse


def problem(error: GuesthouseError) -> dict[str, Any]:
    details = ProblemDetails(
        type=f"urn:guesthouse:error:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.message,
        code=error.code,
        hint=error.hint,
        context=error.detail,
    )
    built: dict[str, Any] = msgspec.to_builtins(details)
    return built


class ApiServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str, house: FakeHouse) -> None:
        self.house = house
        super().__init__(path, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (BrokenPipeError, ConnectionResetError)):
            super().handle_error(request, client_address)


def imported(request: dict[str, Any], size: int) -> Image:
    """The image that comes of an upload of `size` bytes."""
    disc = request["format"] == "iso"
    return Image(
        id=new_id(),
        name=request["name"],
        digest="0" * 64,
        size=size,
        virtual_size=size,
        created_at=time.time(),
        source="imported",
        kind=ImageKind.ISO if disc else ImageKind.DISK,
        format=SourceFormat(request["format"] or "raw"),
        facts={"left out": "2 snapshots"} if request["description"] == "with snapshots" else {},
        seed=Seed(request["seed"]),
        agent=request["agent"],
        ssh_port=False,
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ApiServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    @property
    def house(self) -> FakeHouse:
        return self.server.house

    def _any(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_json = self.headers.get("Content-Type") == "application/json"
        parsed = json.loads(body) if body and is_json else body or None
        self.house.seen.append((self.command, self.path, parsed))
        parts = [unquote(part) for part in url.path.split("/")[2:]]
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        try:
            self._route(parts, query, parsed)
        except GuesthouseError as error:
            self._send(
                error.status, json.dumps(problem(error)).encode(), "application/problem+json"
            )

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _any

    def _route(self, parts: list[str], query: dict[str, str], body: Any) -> None:
        if route_nics(self, parts, query, body) or route_firewall(self, parts, query, body):
            return
        for route in (
            self._route_house,
            self._route_guests,
            self._route_guest,
            self._route_images,
            self._route_jobs,
        ):
            if route(parts, query, body):
                return
        raise NotFound(f"There is nothing at {self.path}.")

    def _route_house(self, parts: list[str], query: dict[str, str], body: Any) -> bool:
        """Whether it was about the house as a whole, and answered; as the others below."""
        house = self.house
        match [self.command, *parts]:
            case ["GET"]:
                self._json(
                    HouseInfo(
                        version=house.version,
                        mode=HouseMode.PERSONAL,
                        node="here",
                        pid=os.getpid(),
                        started_at=time.time(),
                        socket=str(house.path),
                        state_folder=str(house.root),
                        trash_days=house.trash_days,
                        unknown_copies=len(house.lost),
                        **house.notices,
                    )
                )
            case ["GET", "recovery"]:
                self._json(RecoverySurvey(findings=tuple(house.lost)))
            case ["POST", "recovery"]:
                house.lost = []
                self._job("house.recover", None)
            case ["GET", "support-bundle"]:
                self._streamed("application/gzip")
                for piece in house.bundle:
                    self._chunk(piece)
                if house.bundle_breaks:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return True
                self._chunk(b"")
            case ["GET", "checkup"]:
                self._json(Checkup(checks=house.checks))
            case ["GET", "host"] | ["POST", "host", "probe"]:
                self._json(
                    HostFacts(
                        boot_id="b",
                        kernel="6.1",
                        os="Debian 12",
                        cpus=2,
                        memory=8 << 30,
                        cgroups="v2",
                        root=False,
                        accelerator="tcg",
                        accelerator_reason="no /dev/kvm",
                        qemu=None,
                        capabilities=house.capabilities,
                        probed_at=time.time(),
                    )
                )
            case ["POST", "daemon", "stop"]:
                self._send(202, b"{}")
                house.stopped.set()
            case _:
                return False
        return True

    def _route_guests(self, parts: list[str], query: dict[str, str], body: Any) -> bool:
        house = self.house
        match [self.command, *parts]:
            case ["GET", "guests"]:
                found = [house.view(guest) for guest in house.guests.values()]
                self._send(200, encode(found), notice=bool(house.notices))
            case ["GET", "guests", ref]:
                self._json(house.view(house.guest(ref)))
            case ["POST", "guests"]:
                guest = house.add(body.get("name") or "merry-pilgrim")
                self._job("guest.launch", guest)
            case ["DELETE", "guests", ref]:
                guest = house.guest(ref)
                house.remove(guest, now="now" in query)
                self._job("guest.delete", guest)
            case ["GET", "trash"]:
                self._json([house.view(guest) for guest in house.trash])
            case ["POST", "trash", ref, "undelete"]:
                self._job("guest.undelete", house.undelete(ref, body["name"]))
            case ["DELETE", "trash", ref]:
                guest = house.trashed(ref)
                house.trash.remove(guest)
                self._job("guest.purge", guest)
            case ["PATCH", "guests", ref]:
                self._job("guest.set", house.guest(ref))
            case ["GET", "usage"]:
                running = [one for one in house.guests.values() if one.status.pid]
                self._json(sorted(map(house.usage, running), key=lambda one: one.name))
            case _:
                return False
        return True

    def _route_guest(self, parts: list[str], query: dict[str, str], body: Any) -> bool:
        house = self.house
        match [self.command, *parts]:
            case ["GET", "guests", ref, "usage"]:
                self._json(house.usage(house.guest(ref)))
            case ["GET", "guests", ref, "screenshot"]:
                house.guest(ref)
                self._send(200, b"\x89PNG picture", "image/png")
            case ["GET", "guests", ref, "logs"]:
                house.guest(ref)
                self._logs(query)
            case ["GET", "guests", ref, "exec"]:
                self._websocket(lambda link: run_command(link, house, ref))
            case ["GET", "guests", ref, "console"]:
                self._websocket(lambda link: serve_console(link, house))
            case ["POST", "guests", ref, "rename"]:
                guest = house.guest(ref)
                renamed = msgspec.structs.replace(guest, name=body["name"])
                house.guests[guest.id] = renamed
                self._job("guest.rename", renamed)
            case ["POST", "guests", ref, "ports"]:
                guest = house.guest(ref)
                nic = guest.spec.nics[0]
                port = named_port(msgspec.convert(body, PortRequest), must_name=False)
                if not port.host_port:
                    port = msgspec.structs.replace(port, host_port=40123)
                nics = (msgspec.structs.replace(nic, ports=(*nic.ports, port)),)
                spec = msgspec.structs.replace(guest.spec, nics=nics)
                house.guests[guest.id] = msgspec.structs.replace(guest, spec=spec)
                self._job("guest.publish", guest)
            case ["DELETE", "guests", ref, "ports", _, _, _]:
                self._job("guest.unpublish", house.guest(ref))
            case ["GET", "guests", ref, "shares"]:
                fields = map(msgspec.structs.asdict, house.guest(ref).spec.shares)
                self._json([ShareView(**one, state=ShareState.MOUNTED) for one in fields])
            case ["POST", "guests", ref, "shares"]:
                self._job("guest.share", house.guest(ref))
            case ["DELETE", "guests", ref, "shares", _]:
                self._job("guest.unshare", house.guest(ref))
            case ["GET", "networks"]:
                self._json(house.network_views())
            case ["GET", "networks", ref]:
                self._json(house.network(ref))
            case ["POST", "networks"]:
                kind = NetworkKind(body["kind"])
                house.add_network(body["name"], kind, uplink=body["uplink"], vlan=body["vlan"])
                self._job("network.create", None, of=body["name"])
            case ["POST", "networks", ref, "confirm"]:
                house.confirm_by.pop(house.network(ref).id, None)
                self._json(house.network(ref))
            case ["PATCH", "networks", ref]:
                known = house.networks[house.network(ref).id]
                named = {key: value for key, value in body.items() if value is not None}
                changed = msgspec.convert(msgspec.to_builtins(known) | named, Network)
                house.networks[known.id] = changed
                self._job("network.set", None, of=ref)
            case ["DELETE", "networks", ref]:
                del house.networks[house.network(ref).id]
                self._job("network.remove", None, of=ref)
            case ["POST", "guests", ref, verb]:
                self._job(f"guest.{verb}", house.guest(ref))
            case _:
                return False
        return True

    def _route_images(self, parts: list[str], query: dict[str, str], body: Any) -> bool:
        house = self.house
        match [self.command, *parts]:
            case ["GET", "images"]:
                self._json([house.image_view(one) for one in house.images])
            case ["GET", "images-known"]:
                self._json([KnownImage(name="micro", description="tiny", built=False)])
            case ["POST", "uploads"]:
                upload = new_id()
                house.uploads[upload] = bytearray(body["size"])
                self._json(self._upload(upload), 201)
            case ["PUT", "uploads", upload]:
                if "upload" in house.fail:
                    raise house.fail["upload"]
                at = int(query["offset"])
                house.uploads[upload][at : at + len(body)] = body
                self._json(self._upload(upload))
            case ["DELETE", "uploads", upload]:
                del house.uploads[upload]
                self._send(204, b"")
            case ["POST", "images-import"]:
                if not house.fail.keys() & {"image.import", "image.import:later"}:
                    house.images.append(imported(body, len(house.uploads.pop(body["upload"]))))
                self._job("image.import", None)
            case ["POST", "images"]:
                self._job("image.build", None)
            case ["GET", "images", *name]:
                found = [one for one in house.images if one.name == "/".join(name)]
                if not found:
                    raise NotFound(f"There is no image {'/'.join(name)!r}.")
                self._json(ImageView.of(found[0]))
            case ["DELETE", "images", *name]:
                self._job("image.remove", None, of="/".join(name))
            case _:
                return False
        return True

    def _route_jobs(self, parts: list[str], query: dict[str, str], body: Any) -> bool:
        house = self.house
        match [self.command, *parts]:
            case ["GET", "jobs"]:
                self._json(list(house.jobs.values()))
            case ["GET", "jobs", ref]:
                self._json(self._find(ref))
            case ["GET", "jobs", ref, "log"]:
                self._send(200, f"log of {self._find(ref).kind}\n".encode(), "text/plain")
            case ["GET", "jobs", ref, "events"]:
                self._events(self._find(ref))
            case ["POST", "jobs", ref, "cancel"]:
                job = self._find(ref)
                if not job.may_cancel:
                    raise Conflict("It may not be cancelled.")
                self._json(house.finish(job.id, Cancelled("The job was cancelled.")), 202)
            case _:
                return False
        return True

    def _upload(self, upload: str) -> Upload:
        size = len(self.house.uploads[upload])
        return Upload(
            id=upload, size=size, stored=0, expires_at=time.time() + 3600, room=self.house.room
        )

    def _find(self, ref: str) -> Job:
        for job in self.house.jobs.values():
            if job.id.startswith(ref):
                return job
        raise NotFound(f"There is no job {ref!r}.", hint="See what there is: guest job ls")

    def _job(self, kind: str, guest: Guest | None, *, of: str = "") -> None:
        if kind in self.house.fail:
            raise self.house.fail[kind]
        job = self.house.submit(
            kind, guest, **({"of": of} if of else {}) | self.house.results.get(kind, {})
        )
        if not self.house.hold:
            one = f"{kind}:{guest.name}" if guest else ""
            failure = self.house.fail.get(f"{kind}:later") or self.house.fail.get(one)
            self.house.finish(job.id, failure)
        self._json(job, 202)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, encode(value))

    def _send(
        self, status: int, body: bytes, kind: str = "application/json", *, notice: bool = False
    ) -> None:
        self.send_response(status)
        if notice:
            self.send_header("Guesthouse-Notice", "/v1")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _streamed(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _logs(self, query: dict[str, str]) -> None:
        data = self.house.logs[-int(query["tail"]) :] if int(query["tail"]) else b""
        self._streamed("text/plain")
        if data:
            self._chunk(data)
        if query["follow"] == "true":
            self.house.log_more.wait(30)
            self._chunk(b"fourth\n")
        self._chunk(b"")

    def _events(self, job: Job) -> None:
        house = self.house
        if house.cut_events:  # as a daemon that dies in the middle
            house.cut_events -= 1
            self._streamed("text/event-stream")
            self._chunk(b": open\n\n")
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._streamed("text/event-stream")
        self._chunk(b": open\n\n")
        said = 0
        while True:
            with house.changed:
                while not (
                    house.stopped.is_set()
                    or house.jobs[job.id].ended
                    or len(house.ticks[job.id]) > said
                ):
                    house.changed.wait()
                fresh = house.ticks[job.id][said:]
                said += len(fresh)
                now = house.jobs[job.id]
            for tick in fresh:
                name = "progress" if isinstance(tick, JobProgress) else "log"
                self._chunk(b"event: %b\ndata: %b\n\n" % (name.encode(), encode(tick)))
            if now.ended:
                self._chunk(b"event: job\ndata: %b\n\n" % encode(now))
            if now.ended or house.stopped.is_set():
                self._chunk(b"")
                return

    def _websocket(self, serve: Callable[[ServerLink], None]) -> None:
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.send_header("Sec-WebSocket-Accept", accept_key(self.headers["Sec-WebSocket-Key"]))
        self.end_headers()
        link = ServerLink(self.connection)
        try:
            serve(link)
        except GuesthouseError as error:
            link.send(json.dumps({"problem": problem(error)}))
        link.close()
        self.close_connection = True
