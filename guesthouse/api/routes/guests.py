"""Guests: reading them, making them, and the verbs that change them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from litestar import Response, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta

from guesthouse.api.answers import WaitQuery, job_answer, json_answer
from guesthouse.api.decoding import ApiRequest, parse_texts
from guesthouse.api.described import PNG, TEXT, reads, submits
from guesthouse.api.facade import House
from guesthouse.api.http_streams import StreamAnswer
from guesthouse.errors import (
    Busy,
    Conflict,
    Forbidden,
    GuesthouseError,
    HostLacks,
    InUse,
    InvalidTransition,
    NameTaken,
    NoMemory,
    NotFound,
    PortTaken,
    UnknownImage,
)
from guesthouse.model.device import PortRequest
from guesthouse.model.document import Noun
from guesthouse.model.job import Job
from guesthouse.model.reports import (
    DeleteRequest,
    EmptyRequest,
    GuestView,
    LaunchRequest,
    LogSource,
    RenameRequest,
    RestartRequest,
    SetRequest,
    StartRequest,
    StopRequest,
    UnpublishRequest,
)

NOTICE = "Guesthouse-Notice"
"""Header of a list: where to read something that users should know, see `House.needs_notice`.

So the short way of `guest ls` learns it without asking.
"""

R = TypeVar("R", bound=Noun)


class DeleteQuery(WaitQuery, kw_only=True, frozen=True):
    force: Annotated[bool, Meta(description="Kill the guest first if it runs.")] = False
    now: Annotated[bool, Meta(description="For good: do not keep it in the trash.")] = False


class LogQuery(Noun, kw_only=True, frozen=True):
    source: Annotated[LogSource, Meta(description="Which log.")] = LogSource.SERIAL
    tail: Annotated[
        int, Meta(ge=0, le=64 << 20, description="How many bytes of what is there already.")
    ] = 1 << 16
    follow: Annotated[bool, Meta(description="Go on with what is written from now on.")] = False


@get("/v1/guests", opt=reads(list[GuestView], headers={"ETag": "Names exactly this answer."}))
async def list_guests(request: ApiRequest) -> Response[bytes]:
    """All guests, sorted by name, without those in the trash.

    An `If-None-Match` header with the last `ETag` is answered 304 when nothing changed.
    """
    house = request.house
    here = (guest for guest in house.view.guests.values() if not guest.in_trash)
    guests = sorted(here, key=lambda guest: guest.name)
    pairs = ((guest, house.guest_view(guest)) for guest in guests)
    body, tag = request.services.guest_list.encode(pairs)
    headers = {"ETag": tag}
    if await house.needs_notice():
        headers[NOTICE] = "/v1"
    if tag in request.headers.get("if-none-match", ""):
        return Response(b"", status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@get("/v1/guests/{ref:str}", opt=reads(GuestView, errors=(NotFound,)))
async def show_guest(request: ApiRequest) -> Response[bytes]:
    """One guest, by its name, id or unique prefix of its id."""
    house = request.house
    return json_answer(house.guest_view(house.view.guest(request.ref)))


@post(
    "/v1/guests",
    opt=submits(
        LaunchRequest,
        query=WaitQuery,
        errors=(UnknownImage, NameTaken, Conflict, PortTaken, HostLacks, NoMemory, Forbidden),
    ),
)
async def launch_guest(request: ApiRequest) -> Response[bytes]:
    """Create a guest and, unless told otherwise, start it."""
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(LaunchRequest)
    return await job_answer(
        request, await request.house.launch(wanted, request.requester), wait=wait
    )


@delete(
    "/v1/guests/{ref:str}",
    status_code=202,
    opt=submits(query=DeleteQuery, errors=(NotFound, InvalidTransition, InUse, Conflict, Busy)),
)
async def delete_guest(request: ApiRequest) -> Response[bytes]:
    """Move a guest to the trash, or delete it for good.

    `trashed` of the job's result says which. A protected guest is refused.
    """
    query = request.ask(DeleteQuery)
    wanted = DeleteRequest(force=query.force, now=query.now)
    job = await request.house.delete_guest(request.ref, wanted, request.requester)
    return await job_answer(request, job, wait=query.wait)


@delete(
    "/v1/guests/{ref:str}/ports/{protocol:str}/{host_ip:str}/{host_port:str}",
    status_code=202,
    opt=submits(query=WaitQuery, errors=(NotFound, Busy)),
)
async def unpublish_port(request: ApiRequest) -> Response[bytes]:
    """Close a published port."""
    wait = request.ask(WaitQuery).wait
    port = [(name, text) for name, text in request.path_params.items() if name != "ref"]
    wanted = parse_texts(port, UnpublishRequest)
    job = await request.house.unpublish(request.ref, wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@get(
    "/v1/guests/{ref:str}/screenshot",
    opt=reads(media=PNG, answer_text="A PNG.", errors=(NotFound, InvalidTransition, HostLacks)),
)
async def screenshot(request: ApiRequest) -> Response[bytes]:
    """What the guest's screen shows now."""
    picture = await request.house.screenshot(request.ref)
    return Response(picture, media_type=PNG, headers={"Cache-Control": "no-store"})


@get(
    "/v1/guests/{ref:str}/logs",
    opt=reads(media=TEXT, answer_text="Log text.", query=LogQuery, errors=(NotFound,)),
)
async def guest_logs(request: ApiRequest) -> StreamAnswer:
    """The end of a guest's log; with `follow`, it goes on until the client goes away."""
    query = request.ask(LogQuery)
    house, stopping = request.house, request.stopping
    pieces = await house.log_tail(request.ref, query.source, query.tail, follow=query.follow)
    return StreamAnswer(pieces, media=TEXT, stopping=stopping)


Verb = Callable[[House], Callable[[str, R, str], Awaitable[Job]]]


def _verb(
    name: str,
    path: str,
    kind: type[R],
    call: Verb[R],
    doc: str,
    *errors: type[GuesthouseError],
    method: Callable[..., Any] = post,
) -> HTTPRouteHandler:
    """A route that decodes `kind`, calls one method of the house and answers its job."""

    async def handler(request: ApiRequest) -> Response[bytes]:
        wait = request.ask(WaitQuery).wait
        wanted = await request.read(kind)
        job = await call(request.house)(request.ref, wanted, request.requester)
        return await job_answer(request, job, wait=wait)

    handler.__name__ = name
    handler.__doc__ = doc
    route: HTTPRouteHandler = method(
        f"/v1/guests/{{ref:str}}{path}",
        name=name,
        opt=submits(kind, query=WaitQuery, errors=(NotFound, Busy, *errors)),
    )(handler)
    return route


GUEST_ROUTES = [
    list_guests,
    show_guest,
    launch_guest,
    delete_guest,
    unpublish_port,
    screenshot,
    guest_logs,
    _verb(
        "set_guest",
        "",
        SetRequest,
        lambda house: house.set_guest,
        "Change a guest.\n\nWhat a running guest cannot take at once is pending until its next "
        "start; `pending` of the guest names it.",
        InvalidTransition,
        method=patch,
    ),
    _verb(
        "start_guest",
        "/start",
        StartRequest,
        lambda house: house.start,
        "Start a guest.",
        InvalidTransition,
        HostLacks,
        NoMemory,
        PortTaken,
    ),
    _verb(
        "stop_guest",
        "/stop",
        StopRequest,
        lambda house: house.stop,
        "Stop a guest.\n\nIt is asked politely first, and killed after `timeout`.",
        InvalidTransition,
    ),
    _verb(
        "restart_guest",
        "/restart",
        RestartRequest,
        lambda house: house.restart,
        "Stop a guest and start it again.",
        InvalidTransition,
    ),
    _verb(
        "pause_guest",
        "/pause",
        EmptyRequest,
        lambda house: house.pause,
        "Stop a guest's CPUs; it keeps its memory.",
        InvalidTransition,
    ),
    _verb(
        "resume_guest",
        "/resume",
        EmptyRequest,
        lambda house: house.resume,
        "Set a paused guest's CPUs going.",
        InvalidTransition,
    ),
    _verb(
        "reset_guest",
        "/reset",
        EmptyRequest,
        lambda house: house.reset,
        "Reset a guest, as its reset button would.\n\nIt is not asked; what it had not written "
        "is lost.",
        InvalidTransition,
    ),
    _verb(
        "press_power_button",
        "/power-button",
        EmptyRequest,
        lambda house: house.power_button,
        "Press a guest's power button once.\n\nThe guest may ignore it.",
        InvalidTransition,
    ),
    _verb(
        "rename_guest",
        "/rename",
        RenameRequest,
        lambda house: house.rename,
        "Give a guest another name.",
        NameTaken,
    ),
    _verb(
        "publish_port",
        "/ports",
        PortRequest,
        lambda house: house.publish,
        "Lead a port of the host to a port of the guest.\n\n`host_port` 0 takes any free port; "
        "the job's result says which.",
        PortTaken,
        Forbidden,
        HostLacks,
    ),
]
