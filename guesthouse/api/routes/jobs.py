"""Jobs: what the house is doing, and did."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Annotated

from litestar import Response, get, post
from msgspec import Meta

from guesthouse.api.answers import WaitQuery, job_answer, json_answer, seen
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import EVENT_STREAM, TEXT, reads, submits
from guesthouse.api.facade import House
from guesthouse.api.http_streams import StreamAnswer, event, event_stream
from guesthouse.errors import Conflict, NotFound
from guesthouse.model.document import Noun
from guesthouse.model.job import Job, JobProgress
from guesthouse.model.reports import EmptyRequest, LogLine


class JobsQuery(Noun, kw_only=True, frozen=True):
    active: Annotated[
        bool | None, Meta(description="Only jobs that have not ended, or only those that have.")
    ] = None
    guest: Annotated[
        str | None, Meta(description="Only jobs about this guest; also of one that is gone.")
    ] = None
    limit: Annotated[int, Meta(ge=1, le=10_000, description="The newest so many.")] = 100


@get("/v1/jobs", opt=reads(list[Job], query=JobsQuery, errors=(NotFound,)))
async def list_jobs(request: ApiRequest) -> Response[bytes]:
    """Jobs, the newest first."""
    query = request.ask(JobsQuery)
    house = request.house
    jobs: Iterable[Job] = house.view.jobs.values()
    if query.guest is not None:
        jobs = _of_guest(house, query.guest)
    if query.active is not None:
        jobs = [job for job in jobs if job.ended is not query.active]
    newest = sorted(jobs, key=lambda job: job.id, reverse=True)
    return json_answer(newest[: query.limit])


def _of_guest(house: House, ref: str) -> list[Job]:
    """:raise NotFound: neither a guest nor a job knows that name."""
    gone = [
        job
        for job in house.view.jobs.values()
        if job.target.startswith("guests/") and ref in {job.target_name, job.target[7:]}
    ]
    try:
        target = f"guests/{house.view.guest(ref).id}"
    except NotFound:
        if gone:
            return gone
        raise
    return [job for job in house.view.jobs.values() if job.target == target]


@get("/v1/jobs/{ref:str}", opt=reads(Job, errors=(NotFound,)))
async def show_job(request: ApiRequest) -> Response[bytes]:
    """One job, by its id or a unique prefix of it."""
    return json_answer(request.house.view.job(request.ref))


@post(
    "/v1/jobs/{ref:str}/cancel",
    opt=submits(EmptyRequest, query=WaitQuery, errors=(NotFound, Conflict)),
)
async def cancel_job(request: ApiRequest) -> Response[bytes]:
    """Ask a job to stop and undo what it did.

    409 when it may not be cancelled. The answer is the job as it is then; its end follows.
    """
    wait = request.ask(WaitQuery).wait
    await request.read(EmptyRequest)
    house = request.house
    job = house.view.job(request.ref)
    await house.jobs.cancel(job.id)
    return await job_answer(request, house.view.job(job.id), wait=wait)


@get(
    "/v1/jobs/{ref:str}/log",
    opt=reads(media=TEXT, answer_text="Lines of text.", errors=(NotFound,)),
)
async def job_log(request: ApiRequest) -> Response[bytes]:
    """What a job logged so far."""
    house = request.house
    lines = await house.jobs.log_lines(house.view.job(request.ref).id)
    return Response("".join(f"{line}\n" for line in lines).encode(), media_type=TEXT)


@get(
    "/v1/jobs/{ref:str}/events",
    opt=reads(
        media=EVENT_STREAM,
        answer_text="Server-sent events; the last is the ended job.",
        events={"progress": JobProgress, "log": LogLine, "job": Job},
        errors=(NotFound,),
    ),
)
async def job_events(request: ApiRequest) -> StreamAnswer:
    """Follow a job until it has ended."""
    house, stopping = request.house, request.stopping
    return event_stream(_events(house, house.view.job(request.ref)), stopping=stopping)


async def _events(house: House, job: Job) -> AsyncIterator[bytes]:
    async for item in house.jobs.subscribe(job.id):
        match item:
            case Job():
                await seen(house.view, item)
                yield event("job", item)
                if item.ended:
                    return
            case JobProgress():
                yield event("progress", item)
            case str():
                yield event("log", LogLine(line=item))


JOB_ROUTES = [list_jobs, show_job, cancel_job, job_log, job_events]
