"""The application: all routes around one house."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from litestar import Litestar, Request
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, ReceiveMessage, Scope, Send

from guesthouse.api.decoding import ApiRequest, Services, check_origin, parse_query
from guesthouse.api.described import Described
from guesthouse.api.guest_list import GuestList
from guesthouse.api.problems import (
    MAX_BODY,
    PROBLEM_JSON,
    answer_problem,
    encode_problem,
    problem_details,
)
from guesthouse.api.routes.checkup import CHECKUP_ROUTES
from guesthouse.api.routes.daemon import DAEMON_ROUTES
from guesthouse.api.routes.events import EVENT_ROUTES
from guesthouse.api.routes.firewall import FIREWALL_ROUTES
from guesthouse.api.routes.firewall_lists import LIST_ROUTES
from guesthouse.api.routes.guest_streams import STREAM_ROUTES, NoQuery
from guesthouse.api.routes.guests import GUEST_ROUTES
from guesthouse.api.routes.host import HOST_ROUTES
from guesthouse.api.routes.images import IMAGE_ROUTES
from guesthouse.api.routes.jobs import JOB_ROUTES
from guesthouse.api.routes.networks import NETWORK_ROUTES
from guesthouse.api.routes.nics import NIC_ROUTES
from guesthouse.api.routes.shares import SHARE_ROUTES
from guesthouse.api.routes.support import SUPPORT_ROUTES
from guesthouse.api.routes.traffic import TRAFFIC_ROUTES
from guesthouse.api.routes.trash import TRASH_ROUTES
from guesthouse.api.routes.uploads import UPLOAD_ROUTES
from guesthouse.api.routes.usage import USAGE_ROUTES
from guesthouse.errors import Unavailable

if TYPE_CHECKING:
    from guesthouse.api.facade import House

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def build_app(house: House, stopping: asyncio.Event) -> Litestar:
    """The application that answers for `house`.

    :param stopping: set it when the daemon stops; streams and waits end then.
    """
    return Litestar(
        route_handlers=[
            *DAEMON_ROUTES,
            *CHECKUP_ROUTES,
            *GUEST_ROUTES,
            *STREAM_ROUTES,
            *TRASH_ROUTES,
            *USAGE_ROUTES,
            *IMAGE_ROUTES,
            *UPLOAD_ROUTES,
            *JOB_ROUTES,
            *EVENT_ROUTES,
            *HOST_ROUTES,
            *SHARE_ROUTES,
            *NETWORK_ROUTES,
            *NIC_ROUTES,
            *TRAFFIC_ROUTES,
            *FIREWALL_ROUTES,
            *LIST_ROUTES,
            *SUPPORT_ROUTES,
        ],
        request_class=ApiRequest,
        request_max_body_size=MAX_BODY,
        exception_handlers={Exception: answer_problem},
        before_request=_check,
        state=State({"services": Services(house, stopping, GuestList())}),
        # Our own document says more, and from the decoder's own schemas: see openapi.py.
        openapi_config=None,
        logging_config=None,
        include_in_schema=False,
    )


async def _check(request: Request[Any, Any, Any]) -> None:
    """What holds for every request before its route runs.

    :raise Forbidden: a change that a page of another site asks for. :raise UnknownField: a query
        parameter that the route does not know.
    """
    if request.scope["method"] not in _READING:
        check_origin(request.scope)
    described: Described | None = request.route_handler.opt.get("described")
    if described is not None:
        parse_query(request.scope["query_string"], described.query or NoQuery)


def answering_head(app: ASGIApp) -> ASGIApp:
    """Let HEAD ask what GET would: the server leaves the body out of its answer.

    A stream would never end for such a client, so the application is told that it has gone as
    soon as the head of the answer is out.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "HEAD":
            await app(scope, receive, send)
            return
        started = asyncio.Event()

        async def send_head(message: Message) -> None:
            await send(message)
            started.set()

        async def receive_head() -> ReceiveMessage:
            return {"type": "http.disconnect"} if started.is_set() else await receive()

        # A copy: the server goes on seeing HEAD in its own.
        await app(cast("Scope", {**scope, "method": "GET"}), receive_head, send_head)

    return answer


def answering_cut(app: ASGIApp) -> ASGIApp:
    """Let a request that the stopping server cuts off be answered 503, if nothing was sent yet."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await app(scope, receive, noting)
        except asyncio.CancelledError:
            if started or scope["type"] != ScopeType.HTTP:
                raise
            cut = Unavailable(
                "The daemon stopped before it could answer.",
                hint="Jobs that were accepted go on at its next start: guest daemon start",
            )
            body = encode_problem(problem_details(cut, instance=quote(scope["path"])))
            headers = [(b"content-type", PROBLEM_JSON.encode()), (b"connection", b"close")]
            start = {"type": "http.response.start", "status": cut.status, "headers": headers}
            await send(cast("Message", start))
            await send({"type": "http.response.body", "body": body, "more_body": False})

    return answer
