"""Network cards of a guest."""

from __future__ import annotations

from litestar import Response, delete, get, patch, post

from guesthouse.api.answers import WaitQuery, job_answer, json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import reads, submits
from guesthouse.errors import Busy, Conflict, HostLacks, InUse, InvalidTransition, NotFound
from guesthouse.model.nics import NicChange, NicRequest, NicView


@get("/v1/guests/{ref:str}/nics", opt=reads(list[NicView], errors=(NotFound,)))
async def list_nics(request: ApiRequest) -> Response[bytes]:
    """A guest's network cards, and the addresses that they have."""
    return json_answer(request.house.nics.list(request.ref))


@post(
    "/v1/guests/{ref:str}/nics",
    opt=submits(NicRequest, query=WaitQuery, errors=(NotFound, Conflict, Busy, HostLacks)),
)
async def add_nic(request: ApiRequest) -> Response[bytes]:
    """Give a guest a network card more; one that runs has it at once.

    The job's result says its `index`, the number by which it is called, and its `mac`.
    """
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(NicRequest)
    job = await request.house.nics.add(request.ref, wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@patch(
    "/v1/guests/{ref:str}/nics/{nic:str}",
    status_code=202,
    opt=submits(
        NicChange,
        query=WaitQuery,
        errors=(NotFound, Conflict, InvalidTransition, Busy, HostLacks),
    ),
)
async def change_nic(request: ApiRequest) -> Response[bytes]:
    """Change a network card, by its number or MAC address: its network, its addresses, its link.

    On a running guest the card stays where it is, and its link goes down and comes up again.
    """
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(NicChange)
    which = str(request.path_params["nic"])
    job = await request.house.nics.change(request.ref, which, wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@delete(
    "/v1/guests/{ref:str}/nics/{nic:str}",
    status_code=202,
    opt=submits(query=WaitQuery, errors=(NotFound, InUse, InvalidTransition, Busy)),
)
async def remove_nic(request: ApiRequest) -> Response[bytes]:
    """Take a network card away, by its number or MAC address.

    A running guest is asked to let go of it, and keeps it if it does not.
    """
    wait = request.ask(WaitQuery).wait
    job = await request.house.nics.remove(
        request.ref, str(request.path_params["nic"]), request.requester
    )
    return await job_answer(request, job, wait=wait)


NIC_ROUTES = [list_nics, add_nic, change_nic, remove_nic]
