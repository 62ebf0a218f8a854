"""What guests take of their host."""

from __future__ import annotations

from litestar import Response, get

from guesthouse.api.answers import json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import reads
from guesthouse.errors import NotFound
from guesthouse.model.usage import GuestUsage


@get("/v1/guests/{ref:str}/usage", opt=reads(GuestUsage, errors=(NotFound,)))
async def guest_usage(request: ApiRequest) -> Response[bytes]:
    """What a guest takes of its host: CPU time, memory, and room for its disks."""
    return json_answer(await request.house.usage(request.ref))


@get("/v1/usage", opt=reads(list[GuestUsage]))
async def running_usage(request: ApiRequest) -> Response[bytes]:
    """What the running guests take of their host: CPU time and memory, sorted by name."""
    return json_answer(await request.house.usage_of_running())


USAGE_ROUTES = [guest_usage, running_usage]
