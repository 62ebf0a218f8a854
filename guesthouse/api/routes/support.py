"""When something went wrong with the house itself: recovery, and a bundle for support."""

from __future__ import annotations

from litestar import Response, get, post

from guesthouse.api.answers import WaitQuery, job_answer, json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import GZIP, reads, submits
from guesthouse.api.http_streams import StreamAnswer
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


@get("/v1/support-bundle", opt=reads(media=GZIP, answer_text="A .tar.gz."))
async def support_bundle(request: ApiRequest) -> StreamAnswer:
    """What somebody who helps needs to know of this house, without its secrets.

    Versions, facts of the host, settings, documents, jobs and logs; no keys, and no consoles of
    guests.
    """
    house, stopping = request.house, request.stopping
    return StreamAnswer(await house.support_bundle(), media=GZIP, stopping=stopping)


SUPPORT_ROUTES = [survey_recovery, recover, support_bundle]
