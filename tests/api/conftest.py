"""The real application on a real unix socket, around a house without processes.

All traffic of the `api` client is checked against the OpenAPI document that the application serves.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, unix_connect

from guesthouse.api.openapi import document
from guesthouse.api.server import ApiServer
from tests.api.api_house import ApiHouse, open_house
from tests.api.documented import Documented

STREAMED = "text/"


class Served(NamedTuple):
    server: ApiServer
    path: Path

    @asynccontextmanager
    async def socket(
        self, target: str, *, subprotocols: list[str] | None = None, origin: str | None = None
    ) -> AsyncIterator[ClientConnection]:
        """A WebSocket to the server."""
        async with unix_connect(
            str(self.path),
            f"ws://house{target}",
            subprotocols=subprotocols,  # type: ignore[arg-type]  # plain text will do
            additional_headers={"Origin": origin} if origin else None,
            compression=None,
            max_size=1 << 20,
            ping_interval=None,
            close_timeout=5,
        ) as connection:
            yield connection


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="gh-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def house(folder: Path) -> AsyncIterator[ApiHouse]:
    opened = await open_house(folder)
    yield opened
    await opened.close()


@pytest.fixture
async def served(house: ApiHouse, folder: Path) -> AsyncIterator[Served]:
    path = folder / "socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    server = ApiServer(house, listener, grace=5)
    await server.start()
    yield Served(server, path)
    await server.stop()


@pytest.fixture
def documented(served: Served) -> Documented:
    return Documented(document(served.server.app))


@pytest.fixture
async def api(served: Served, documented: Documented) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose every exchange is checked."""

    async def check(response: httpx.Response) -> None:
        if not response.headers.get("content-type", "").startswith(STREAMED):
            await response.aread()
        documented.check(response)

    async with httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(served.path)),
        base_url="http://house",
        event_hooks={"response": [check]},
        timeout=60,
    ) as client:
        yield client
