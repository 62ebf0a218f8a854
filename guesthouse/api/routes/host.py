"""The host and its storage."""

from __future__ import annotations

from litestar import Response, get, post

from guesthouse.api.answers import WaitQuery, job_answer, json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import Described, reads, submits
from guesthouse.errors import Busy, Conflict
from guesthouse.model.host import HostFacts
from guesthouse.model.reports import EmptyRequest, StopGuestsRequest


@get("/v1/host", opt=reads(HostFacts))
async def show_host(request: ApiRequest) -> Response[bytes]:
    """What this host can do, as of the last probe."""
    return json_answer(request.house.facts)


@post(
    "/v1/host/probe",
    status_code=200,
    opt={"described": Described(answer=HostFacts, body=EmptyRequest)},
)
async def probe_host(request: ApiRequest) -> Response[bytes]:
    """Look at the host afresh."""
    await request.read(EmptyRequest)
    return json_answer(await request.house.probe())


@post("/v1/storage/collect", opt=submits(EmptyRequest, query=WaitQuery, errors=(Conflict,)))
async def collect_storage(request: ApiRequest) -> Response[bytes]:
    """Delete what nothing refers to any more."""
    wait = request.ask(WaitQuery).wait
    await request.read(EmptyRequest)
    return await job_answer(request, await request.house.collect(request.requester), wait=wait)


@post("/v1/host/stop-guests", opt=submits(StopGuestsRequest, query=WaitQuery, errors=(Busy,)))
async def stop_guests(request: ApiRequest) -> Response[bytes]:
    """Stop every guest, as for a shutdown of the host.

    Those with the highest `autostart_order` go first, those of one order together. The job's
    result says how each was stopped (`stopped`), why one was not (`failed`), and which were left
    running because their `shutdown_action` says so (`left`).
    """
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(StopGuestsRequest)
    job = await request.house.stop_guests(wanted, request.requester)
    return await job_answer(request, job, wait=wait)


HOST_ROUTES = [show_host, probe_host, collect_storage, stop_guests]
