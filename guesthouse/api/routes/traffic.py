"""Packets of a guest's cards: impairing them, and capturing them."""

from __future__ import annotations

from litestar import Response, get, put

from guesthouse.api.answers import WaitQuery, job_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import BYTES, reads, submits
from guesthouse.api.http_streams import StreamAnswer
from guesthouse.errors import Busy, HostLacks, InvalidTransition, NotFound
from guesthouse.model.capture import CaptureQuery
from guesthouse.model.impairment import NicImpairment


@put(
    "/v1/guests/{ref:str}/nics/{nic:str}/impairment",
    status_code=202,
    opt=submits(NicImpairment, query=WaitQuery, errors=(NotFound, Busy, HostLacks)),
)
async def impair_nic(request: ApiRequest) -> Response[bytes]:
    """Impair a card's packets on purpose, by its number or MAC address; live where the guest runs.

    All of it: what is left out goes. Times are seconds, shares 0 to 1, rates bits per second.
    `incoming` is what the guest gets. What the host's kernel cannot do is refused by name.
    """
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(NicImpairment)
    which = str(request.path_params["nic"])
    job = await request.house.traffic.impair(request.ref, which, wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@get(
    "/v1/guests/{ref:str}/nics/{nic:str}/capture",
    opt=reads(
        media=BYTES,
        answer_text="A pcapng file, block by block as packets come.",
        query=CaptureQuery,
        errors=(NotFound, InvalidTransition, Busy, HostLacks),
    ),
)
async def capture_nic(request: ApiRequest) -> StreamAnswer:
    """Capture the packets of a running guest's card.

    It ends at one of the bounds, with the card, or when the client closes. A client that is too
    slow loses packets: blocks of interface statistics count them (`isb_osdrop`).
    """
    wanted = request.ask(CaptureQuery)
    which = str(request.path_params["nic"])
    source = await request.house.traffic.capture(request.ref, which, wanted)
    return StreamAnswer(source, media=BYTES, stopping=request.stopping)


TRAFFIC_ROUTES = [impair_nic, capture_nic]
