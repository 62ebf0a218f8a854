"""Reading the fields of a request: wrong ones are refused by name."""

from __future__ import annotations

import re

from .wire import Body, Refused

# A key is the name of a file as well; it is opaque otherwise.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def text(body: Body, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value or "\0" in value:
        raise Refused("bad-request", f"{name!r} must be a text that is not empty")
    return value


def optional_text(body: Body, name: str) -> str | None:
    return None if body.get(name) is None else text(body, name)


def number(body: Body, name: str, low: int, high: int, default: int | None = None) -> int:
    value = body.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Refused("bad-request", f"{name!r} must be a whole number from {low} to {high}")
    return value


def texts(body: Body, name: str) -> list[str]:
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(v, str) and "\0" not in v for v in value):
        raise Refused("bad-request", f"{name!r} must be a list of texts")
    return value


def environment(body: Body) -> dict[str, str]:
    value = body.get("env")
    if not isinstance(value, dict) or not all(
        isinstance(v, str) and "\0" not in k + v and k and "=" not in k for k, v in value.items()
    ):
        raise Refused("bad-request", "'env' must map names to texts")
    return value


def targets(body: Body, count: int) -> list[int]:
    """The target numbers of `count` descriptors: distinct, above stdin, stdout and stderr."""
    value = body.get("fds", [])
    if not isinstance(value, list) or not all(type(v) is int and 3 <= v < 1024 for v in value):
        raise Refused("bad-request", "'fds' must be a list of numbers from 3 to 1023")
    if len(set(value)) != len(value):
        raise Refused("bad-request", "'fds' names a number twice")
    if len(value) != count:
        raise Refused("bad-request", f"'fds' has {len(value)} numbers for {count} descriptors")
    return value


def section(body: Body, name: str) -> Body | None:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise Refused("bad-request", f"{name!r} must be an object")
    return value


def key(body: Body) -> str:
    value = body.get("key")
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise Refused("bad-request", "'key' must be up to 128 letters, digits, dots, - and _")
    return value
