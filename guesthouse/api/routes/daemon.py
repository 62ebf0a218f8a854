"""The daemon itself: who answers, how to use it, and its end."""

from __future__ import annotations

import asyncio

from litestar import Response, get, post
from litestar.background_tasks import BackgroundTask

from guesthouse.api.answers import json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import Described, reads
from guesthouse.api.facade import House
from guesthouse.api.openapi import OPENAPI_JSON, encoded_document
from guesthouse.model.reports import EmptyRequest, HouseInfo


@get("/v1", opt=reads(HouseInfo))
async def show_house(request: ApiRequest) -> Response[bytes]:
    """Who answers: version, mode, socket, and whether all is well with the store."""
    await request.house.needs_notice()
    return json_answer(request.house.info())


@post(
    "/v1/daemon/stop",
    status_code=202,
    opt={
        "described": Described(
            answer=EmptyRequest, status=202, answer_text="It stops now.", body=EmptyRequest
        )
    },
)
async def stop_daemon(request: ApiRequest) -> Response[bytes]:
    """Stop the daemon. Guests live on."""
    await request.read(EmptyRequest)
    return Response(
        b"{}",
        status_code=202,
        media_type="application/json",
        background=BackgroundTask(_stop, request.house),
    )


async def _stop(house: House) -> None:
    house.request_stop()


@get(
    "/v1/openapi.json",
    opt=reads(media=OPENAPI_JSON, answer_text="This document."),
)
async def openapi_document(request: ApiRequest) -> Response[bytes]:
    """This API, described in OpenAPI 3.1."""
    body = await asyncio.to_thread(encoded_document, request.app)
    return Response(body, media_type=OPENAPI_JSON)


DAEMON_ROUTES = [show_house, stop_daemon, openapi_document]
