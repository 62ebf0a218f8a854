"""When something went wrong with the house itself: recovery."""

from __future__ import annotations

from litestar import Response, get, post

from guesthouse.api.answers import WaitQuery, job_answer, json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import reads, submits
from guesthouse.errors import Busy, KeeperUnavailable
from guesthouse.model.reports import EmptyRequest, RecoverySurvey


@get("/v1/recovery", opt=reads(RecoverySurvey, errors=(KeeperUnavailable,)))
async def survey_recovery(request: ApiRequest) -> Response[bytes]:
    """What lies beside the disks and is not in the database, and what a recovery makes of it."""
    return json_answer(await request.house.survey())


@post(
    "/v1/recovery",
    opt=submits(EmptyRequest, query=WaitQuery, errors=(Busy, KeeperUnavailable)),
)
async def recover(request: ApiRequest) -> Response[bytes]:
    """Bring back guests, images and disks after the database was lost.

    Guests that run are taken up without being touched. What is in the database already stays as
    it is.
    """
    wait = request.ask(WaitQuery).wait
    await request.read(EmptyRequest)
    job = await request.house.recover(request.requester)
    return await job_answer(request, job, wait=wait)


SUPPORT_ROUTES = [survey_recovery, recover]
