"""What every durable document has, and how documents become bytes and come back.

Documents are stored as JSON with a `schema` number. `decode` upgrades older ones step by step and
refuses newer ones; unknown fields are errors, so that nothing is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from guesthouse.errors import InvalidInput, ReadOnlyStore, UnknownField

SCHEMA = 1
"""The schema that this program writes. It rises when any document's shape changes."""

Upgrade = Callable[[str, dict[str, Any]], dict[str, Any]]
"""(kind, raw document of schema N) -> raw document of schema N + 1."""

UPGRADES: dict[int, Upgrade] = {}
"""From schema N to N + 1. Entries stay for ever: old state folders must open."""


class Noun(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Base of all values: immutable, strict about unknown fields."""


class Document(Noun, kw_only=True, frozen=True):
    """Base of everything that is stored.

    :ivar id: ULID, immutable; keys, paths and references use it.
    :ivar schema: the schema it was written with.
    :ivar node: the host it belongs to; empty for the only host of a house.
    """

    id: str
    schema: int = SCHEMA
    node: str = ""


T = TypeVar("T")
D = TypeVar("D", bound=Document)

_PATH = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")


def encode(value: object) -> bytes:
    """JSON bytes of a noun."""
    return msgspec.json.encode(value)


def decode_strict(data: bytes, kind: type[T], *, what: str = "request") -> T:
    """Decode JSON strictly.

    :raise InvalidInput: not JSON or not of that shape; the message and `detail["field"]` name the
        field as a dotted path.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _named(error, what) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(
            f"The {what} is not valid JSON: {error}.", hint="Send one JSON object."
        ) from None


def convert_strict(raw: object, kind: type[T], *, what: str = "request") -> T:
    """Like `decode_strict`, from values that are already parsed."""
    try:
        return msgspec.convert(raw, type=kind)
    except msgspec.ValidationError as error:
        raise _named(error, what) from None


def decode_document(data: bytes, kind: type[D]) -> D:
    """Decode a stored document, upgrading older schemas.

    :raise ReadOnlyStore: it was written by a newer program.
    :raise InvalidInput: it does not parse; the caller quarantines it.
    """
    raw = decode_strict(data, dict[str, Any], what="document")
    schema = raw.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise InvalidInput("The document carries no schema number.", field="schema")
    if schema > SCHEMA:
        raise ReadOnlyStore(
            f"The document has schema {schema}; this Guesthouse knows up to {SCHEMA}.",
            hint="Start the newer Guesthouse that wrote it.",
            schema=schema,
        )
    while schema < SCHEMA:
        raw = UPGRADES[schema](kind.__name__, raw)
        schema += 1
        raw["schema"] = schema
    return convert_strict(raw, kind, what=f"{kind.__name__.lower()} document")


def _named(error: msgspec.ValidationError, what: str) -> InvalidInput:
    text = str(error)
    match = _PATH.search(text)
    path = match["path"].lstrip(".") if match else ""
    reason = text[: match.start()] if match else text
    unknown = _UNKNOWN.search(reason)
    if unknown:
        field = f"{path}.{unknown['name']}".lstrip(".")
        return UnknownField(
            f"The {what} has an unknown field {field!r}.",
            hint="Check the spelling against the API reference.",
            field=field,
        )
    where = f" in field {path!r}" if path else ""
    return InvalidInput(f"The {what} is not right{where}: {reason}.", field=path)
