"""Reading event streams in tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """(event, decoded data); comments come as ("", text)."""
    name = data = ""
    async for line in response.aiter_lines():
        field, _, value = line.partition(": ")
        if line.startswith(":"):
            yield "", line[1:].strip()
        elif field == "event":
            name = value
        elif field == "data":
            data = value
        elif not line and name:
            yield name, json.loads(data)
            name = data = ""
