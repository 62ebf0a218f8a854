"""The trash: guests that were deleted and can be brought back."""

from __future__ import annotations

from litestar import Response, delete, get, post

from guesthouse.api.answers import WaitQuery, job_answer, json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import reads, submits
from guesthouse.errors import Busy, Conflict, NameTaken, NotFound
from guesthouse.model.reports import GuestView, UndeleteRequest


@get("/v1/trash", opt=reads(list[GuestView]))
async def list_trash(request: ApiRequest) -> Response[bytes]:
    """All guests in the trash, the last one moved there first.

    They keep their id and disks, and have given up their name and ports.
    """
    return json_answer(request.house.trash())


@post(
    "/v1/trash/{ref:str}/undelete",
    opt=submits(UndeleteRequest, query=WaitQuery, errors=(NotFound, NameTaken, Conflict, Busy)),
)
async def undelete_guest(request: ApiRequest) -> Response[bytes]:
    """Bring a guest back from the trash; it does not run.

    Of several with one name, the one moved there last. Ports that another guest publishes by now
    are given up; `unpublished` of the job's result names them.
    """
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(UndeleteRequest)
    job = await request.house.undelete(request.ref, wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@delete(
    "/v1/trash/{ref:str}",
    status_code=202,
    opt=submits(query=WaitQuery, errors=(NotFound, Busy)),
)
async def purge_guest(request: ApiRequest) -> Response[bytes]:
    """Delete a guest of the trash for good, with its disks."""
    wait = request.ask(WaitQuery).wait
    job = await request.house.purge(request.ref, request.requester)
    return await job_answer(request, job, wait=wait)


TRASH_ROUTES = [list_trash, undelete_guest, purge_guest]
