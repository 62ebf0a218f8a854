"""Answers that go on: server-sent events and followed logs.

A stream ends when its source does, when the client goes away, or when the daemon stops; its source
is closed in each case.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any

from litestar import Request, Response
from litestar.datastructures import Cookie
from litestar.enums import MediaType
from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Send
from litestar.types.composite_types import TypeEncodersMap

from guesthouse.api.described import EVENT_STREAM
from guesthouse.api.racing import first, none_after
from guesthouse.model.document import encode

HEARTBEAT = 15.0
"""Seconds of silence after which an event stream carries a comment, so that both ends know."""

_log = logging.getLogger("guesthouse.api")


class _Guarded(ASGIStreamingResponse):
    """Sends its iterator until one of the three ends comes."""

    def __init__(self, *, stopping: asyncio.Event, **rest: Any) -> None:
        super().__init__(**rest)
        self.stopping = stopping

    async def send_body(self, send: Send, receive: Receive) -> None:
        try:
            await first(self._pump(send), _disconnected(receive), none_after(self.stopping))
        except Exception:
            # Too late for a problem: cutting the connection tells the client that this is no end.
            _log.exception("a stream broke")
            raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, send: Send) -> None:
        iterator = aiter(self.iterator)
        try:
            async for piece in iterator:
                body = piece.encode() if isinstance(piece, str) else piece
                await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamAnswer(Response[bytes]):
    """An answer whose body is `source`, piece by piece."""

    def __init__(
        self, source: AsyncIterator[bytes], *, media: str, stopping: asyncio.Event
    ) -> None:
        super().__init__(b"", media_type=media, headers={"Cache-Control": "no-store"})
        self.source = source
        self.stopping = stopping

    def to_asgi_response(
        self,
        app: Any,
        request: Request[Any, Any, Any],
        *,
        background: Any = None,
        cookies: Iterable[Cookie] | None = None,
        encoded_headers: Iterable[tuple[bytes, bytes]] | None = None,
        headers: dict[str, str] | None = None,
        is_head_response: bool = False,
        media_type: MediaType | str | None = None,
        status_code: int | None = None,
        type_encoders: TypeEncodersMap | None = None,
    ) -> ASGIResponse:
        return _Guarded(
            stopping=self.stopping,
            iterator=self.source,
            headers={**(headers or {}), **self.headers},
            media_type=self.media_type,
            status_code=status_code,
        )


def event(name: str, data: object, *, number: int | None = None) -> bytes:
    """One server-sent event. JSON has no raw line breaks, so `data` is one line."""
    mark = f"id: {number}\n" if number is not None else ""
    return b"%bevent: %b\ndata: %b\n\n" % (mark.encode(), name.encode(), encode(data))


def event_stream(source: AsyncIterator[bytes], *, stopping: asyncio.Event) -> StreamAnswer:
    """:param source: encoded events."""
    return StreamAnswer(with_heartbeat(source), media=EVENT_STREAM, stopping=stopping)


async def with_heartbeat(
    source: AsyncIterator[bytes], *, interval: float = HEARTBEAT
) -> AsyncGenerator[bytes, None]:
    """`source`, with a comment at its start and after each `interval` seconds of silence."""
    coming: asyncio.Future[bytes] | None = asyncio.ensure_future(_next(source))
    try:
        # The source subscribes when it is first asked, so ask before saying that nothing is missed.
        await asyncio.sleep(0)
        yield b": open\n\n"
        while True:
            coming = coming or asyncio.ensure_future(_next(source))
            done, _ = await asyncio.wait({coming}, timeout=interval)
            if not done:
                yield b": still here\n\n"
                continue
            try:
                piece = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield piece
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        if isinstance(source, AsyncGenerator):
            await source.aclose()


async def _next(source: AsyncIterator[bytes]) -> bytes:
    return await anext(source)
