"""Answers: nouns as JSON, and jobs that a client may wait for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated

from litestar import Response
from msgspec import Meta

from guesthouse.api.decoding import ApiRequest
from guesthouse.api.racing import first, none_after
from guesthouse.errors import DeadlineExceeded, Unavailable
from guesthouse.model.document import Noun, encode
from guesthouse.model.job import Job
from guesthouse.store.view import View

WaitSeconds = Annotated[
    float,
    Meta(ge=0, le=3600, description="Answer only when the job has ended, or after these seconds."),
]

_SEEN_WITHIN = 5.0  # seconds; a view that lags so far is listing everything again


class WaitQuery(Noun, kw_only=True, frozen=True):
    """Query of every route that starts a job."""

    wait: WaitSeconds = 0.0


def json_answer(
    value: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response[bytes]:
    """:param value: a noun, or a list or mapping of them."""
    return Response(
        encode(value), status_code=status, media_type="application/json", headers=headers
    )


async def job_answer(request: ApiRequest, job: Job, *, wait: float) -> Response[bytes]:
    """202 with the job, after waiting at most `wait` seconds for its end."""
    if wait > 0 and not job.ended:
        job = await _ended(request, job, wait)
    await seen(request.house.view, job)
    return json_answer(job, status=202, headers={"Location": f"/v1/jobs/{job.id}"})


async def _ended(request: ApiRequest, job: Job, wait: float) -> Job:
    house, stopping = request.house, request.stopping
    # Unavailable: the daemon stops. The job is durable and goes on at its next start.
    with suppress(DeadlineExceeded, Unavailable):
        ended = await first(house.jobs.wait(job.id, wait), none_after(stopping))
        if ended is not None:
            return ended
    return house.view.jobs.get(job.id, job)


async def seen(view: View, job: Job) -> None:
    """Return when reads show `job` and all that happened before it.

    Without this, a client that reads right after a change could see the house as it was before.
    """
    with suppress(TimeoutError), view.subscribe(kinds=("job",)) as changes:
        async with asyncio.timeout(_SEEN_WITHIN):
            while not _shows(view, job):
                await anext(changes)


def _shows(view: View, job: Job) -> bool:
    shown = view.jobs.get(job.id)
    return shown is not None and (shown.ended or not job.ended)
