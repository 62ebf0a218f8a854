"""Shared folders of a guest."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, delete, get, post
from msgspec import Meta

from guesthouse.api.answers import WaitQuery, job_answer, json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import reads, submits
from guesthouse.errors import (
    AgentUnavailable,
    AgentUnsupported,
    Busy,
    Conflict,
    HostLacks,
    InUse,
    NotFound,
)
from guesthouse.model.sharing import ShareRequest, ShareView, UnshareRequest


class UnshareQuery(WaitQuery, kw_only=True, frozen=True):
    force: Annotated[
        bool, Meta(description="Also when the guest does not let go of it or does not answer.")
    ] = False


@get("/v1/guests/{ref:str}/shares", opt=reads(list[ShareView], errors=(NotFound,)))
async def list_shares(request: ApiRequest) -> Response[bytes]:
    """A guest's shared folders, and whether they are there."""
    return json_answer(await request.house.shares(request.ref))


@post(
    "/v1/guests/{ref:str}/shares",
    opt=submits(
        ShareRequest,
        query=WaitQuery,
        errors=(NotFound, Conflict, Busy, AgentUnavailable, AgentUnsupported, HostLacks),
    ),
)
async def add_share(request: ApiRequest) -> Response[bytes]:
    """Share a folder of the host with a guest.

    A running guest has it at once; the job's result says its `name` and the `reason` of the way.
    """
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(ShareRequest)
    job = await request.house.share(request.ref, wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@delete(
    "/v1/guests/{ref:str}/shares/{share:str}",
    status_code=202,
    opt=submits(query=UnshareQuery, errors=(NotFound, InUse, Busy, AgentUnavailable)),
)
async def remove_share(request: ApiRequest) -> Response[bytes]:
    """Take a shared folder back, by its name. In use in the guest, it stays."""
    query = request.ask(UnshareQuery)
    wanted = UnshareRequest(share=str(request.path_params["share"]), force=query.force)
    job = await request.house.unshare(request.ref, wanted, request.requester)
    return await job_answer(request, job, wait=query.wait)


SHARE_ROUTES = [list_shares, add_share, remove_share]
