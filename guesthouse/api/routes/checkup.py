"""How the house itself is."""

from __future__ import annotations

from litestar import Response, get

from guesthouse.api.answers import json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import reads
from guesthouse.model.checkup import Checkup


@get("/v1/checkup", opt=reads(Checkup))
async def check_up(request: ApiRequest) -> Response[bytes]:
    """Look at the house itself: documents, database, keeper, room, disks, guests' processes."""
    return json_answer(await request.house.check_up())


CHECKUP_ROUTES = [check_up]
