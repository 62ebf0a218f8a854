"""The house's events: every change of a document, as it happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from litestar import get
from msgspec import Meta

from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import EVENT_STREAM, reads
from guesthouse.api.facade import House
from guesthouse.api.http_streams import StreamAnswer, event, event_stream
from guesthouse.errors import InvalidInput
from guesthouse.model.document import Noun
from guesthouse.model.reports import EventKind, HouseEvent
from guesthouse.store.view import RESYNC, Event

_KINDS = tuple(kind.value for kind in EventKind if kind is not EventKind.RESYNC)


class EventsQuery(Noun, kw_only=True, frozen=True):
    kinds: Annotated[
        str,
        Meta(
            description=f"Only these, separated by commas: {', '.join(_KINDS)}; `resync` always "
            "comes.",
            pattern=f"^(({'|'.join(_KINDS)})(,({'|'.join(_KINDS)}))*)?$",
        ),
    ] = ""


@get(
    "/v1/events",
    opt=reads(
        media=EVENT_STREAM,
        answer_text="Server-sent events, until the client goes away.",
        query=EventsQuery,
        events=dict.fromkeys(EventKind, HouseEvent),
        errors=(InvalidInput,),
    ),
)
async def house_events(request: ApiRequest) -> StreamAnswer:
    """Every change of a document from now on.

    Nothing is missed after the comment that opens the stream: list then. `resync` says that
    events were lost, because the client was too slow or was away: list again.
    """
    kinds = frozenset(request.ask(EventsQuery).kinds.split(",")) - {""}
    house, stopping = request.house, request.stopping
    returning = "last-event-id" in request.headers
    return event_stream(_events(house, kinds, returning), stopping=stopping)


async def _events(house: House, kinds: frozenset[str], returning: bool) -> AsyncIterator[bytes]:
    with house.view.subscribe(kinds=kinds) as changes:
        if returning:
            yield _event(Event(RESYNC, "", None, house.view.revision))
        async for change in changes:
            yield _event(change)


def _event(change: Event) -> bytes:
    data = HouseEvent(id=change.id, revision=change.revision, document=change.document)
    return event(change.kind, data, number=change.revision)


EVENT_ROUTES = [house_events]
