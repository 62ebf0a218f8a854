"""The house's events, and the ends of streams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from guesthouse.store.contract import Put
from guesthouse.store.documents import GUESTS
from guesthouse.store.view import CAPACITY
from tests.api.api_house import ApiHouse, guest_document, image_document
from tests.api.conftest import Served
from tests.api.documented import Documented
from tests.api.sse import events

DEADLINE = 60


async def test_every_change_is_told(
    api: httpx.AsyncClient, house: ApiHouse, documented: Documented
) -> None:
    web, image = guest_document("web"), image_document("micro")
    async with asyncio.timeout(DEADLINE), api.stream("GET", "/v1/events") as response:
        stream = events(response)
        assert (await anext(stream))[0] == ""  # the comment: nothing is missed from here on
        await house.add(web, image)
        await house.rooms.documents.store.commit([GUESTS.delete_op(web.id)])
        heard = [await anext(stream) for _ in range(3)]
    for _, data in heard:
        documented.schema("HouseEvent", data)
    assert [(kind, data["id"]) for kind, data in heard] == [
        ("guest", web.id),
        ("image", image.id),
        ("guest", web.id),
    ]
    assert heard[0][1]["document"]["name"] == "web"
    documented.schema("ImageView", heard[1][1]["document"])
    assert heard[2][1]["document"] is None
    revisions = [data["revision"] for _, data in heard]
    assert revisions == sorted(set(revisions))


async def test_only_the_kinds_asked_for(api: httpx.AsyncClient, house: ApiHouse) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        api.stream("GET", "/v1/events?kinds=image,job") as response,
    ):
        stream = events(response)
        await anext(stream)
        await house.add(guest_document("web"), image_document("micro"))
        assert (await anext(stream))[0] == "image"


@pytest.mark.parametrize("kinds", ["guests", "guest;image", "guest,", ",", "resync"])
async def test_unknown_kinds_are_refused(api: httpx.AsyncClient, kinds: str) -> None:
    answer = await api.get("/v1/events", params={"kinds": kinds})
    assert answer.json()["context"]["field"] == "kinds"


async def test_who_comes_back_is_told_to_list_again(api: httpx.AsyncClient) -> None:
    headers = {"Last-Event-ID": "3"}
    async with (
        asyncio.timeout(DEADLINE),
        api.stream("GET", "/v1/events", headers=headers) as response,
    ):
        heard = [kind async for kind, _ in _some(response, 2)]
    assert heard == ["", "resync"]


async def _some(response: httpx.Response, count: int):  # type: ignore[no-untyped-def]  # a generator
    stream = events(response)
    for _ in range(count):
        yield await anext(stream)


async def test_a_document_in_quarantine_is_told(api: httpx.AsyncClient, house: ApiHouse) -> None:
    async with asyncio.timeout(DEADLINE), api.stream("GET", "/v1/events") as response:
        stream = events(response)
        await anext(stream)
        await house.rooms.documents.store.commit([Put("guests/broken", b"{}")])
        kind, data = await anext(stream)
    assert (kind, data["id"], data["document"]) == ("quarantine", "guests/broken", None)


async def test_a_client_that_does_not_read_is_told_to_list_again(
    served: Served, house: ApiHouse
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(served.path), limit=1 << 12)
    writer.write(b"GET /v1/events?kinds=guest HTTP/1.1\r\nHost: house\r\n\r\n")
    await reader.readuntil(b": open\n\n")
    guest = guest_document("web", description="x" * 4000)
    value = GUESTS.put_op(guest).value
    for _ in range(CAPACITY + 400):
        revision = await house.rooms.documents.store.commit([Put(GUESTS.key(guest.id), value)])
    await house.view.wait_for(revision)
    async with asyncio.timeout(DEADLINE):
        seen = b""
        while b"event: resync" not in seen:
            piece = await reader.read(1 << 16)
            assert piece, "the stream ended"
            seen = seen[-100:] + piece
    writer.close()


async def test_a_client_that_leaves_closes_its_source(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await house.add(guest_document("web"))
    log = house.serial_log("web")
    log.write_bytes(b"one\n")
    async with asyncio.timeout(DEADLINE):
        async with api.stream("GET", "/v1/guests/web/logs?follow=true") as response:
            pieces = response.aiter_bytes()
            assert await anext(pieces) == b"one\n"
            with log.open("ab") as more:
                more.write(b"two\n")
            assert await anext(pieces) == b"two\n"
            assert _opened(log)
        for _ in iter(lambda: _opened(log), False):
            await asyncio.sleep(0.01)


def _opened(path: Path) -> bool:
    """Whether this process holds it open."""
    fds = Path("/proc/self/fd").iterdir()
    return any(fd.is_symlink() and fd.readlink() == path for fd in fds)


async def test_the_daemon_s_stop_ends_every_stream_in_order(
    api: httpx.AsyncClient, served: Served, house: ApiHouse
) -> None:
    await house.guest("web", start=False)
    house.driver.gate.clear()
    job = (await api.post("/v1/guests/web/start")).json()["id"]

    async def read(target: str) -> bool:
        async with api.stream("GET", target) as response:
            opened.release()
            async for _ in response.aiter_bytes():
                pass
        return True  # ended as the protocol has it, not cut off

    opened = asyncio.Semaphore(0)
    targets = ["/v1/events", f"/v1/jobs/{job}/events", "/v1/guests/web/logs?follow=true"]
    async with asyncio.timeout(DEADLINE):
        reading = [asyncio.ensure_future(read(target)) for target in targets]
        with house.view.subscribe(kinds=["job"]) as submitted:
            waiting = asyncio.ensure_future(api.post("/v1/guests/web/restart?wait=600"))
            await anext(submitted)
        for _ in targets:
            await opened.acquire()
        await served.server.stop()
        assert await asyncio.gather(*reading) == [True] * 3
        # A request that waits for its job is answered with the job as it is.
        assert (await waiting).status_code == 202
        assert (await waiting).json()["ended_at"] is None
    with pytest.raises(httpx.TransportError):
        await api.get("/v1")
