"""Server-sent events (WHATWG HTML, section 9.2), as far as our server sends them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(event, data) of each whole event; comments (heartbeats) and other fields are passed over.

    An event that the end of the stream cuts short is dropped, as the specification asks.
    """
    name, data = "message", list[str]()
    for line in lines:
        if not line:
            if data:
                yield name, "\n".join(data)
            name, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
