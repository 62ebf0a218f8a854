"""From bytes of a request to nouns, strictly: what the API does not know, it refuses by name."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_type_hints
from urllib.parse import parse_qsl, urlsplit

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.exceptions import InternalServerException
from litestar.types import Scope

from guesthouse.api.guest_list import GuestList
from guesthouse.errors import Forbidden, InvalidInput, UnknownField, UnsupportedMediaType
from guesthouse.model.document import Noun, decode_strict

if TYPE_CHECKING:
    import asyncio

    from guesthouse.api.facade import House

N = TypeVar("N", bound=Noun)


class Peer:
    """Who is at the other end of a connection.

    :ivar uid: of the process that opened it, as the kernel says (unix sockets only).
    :ivar gone: set when the connection is lost, also while nobody reads from it.
    """

    def __init__(self, uid: int | None, gone: asyncio.Event) -> None:
        self.uid = uid
        self.gone = gone

    @property
    def requester(self) -> str:
        return "unknown" if self.uid is None else f"uid:{self.uid}"


class Services(NamedTuple):
    """What every route works with.

    :ivar stopping: set when the daemon stops; whatever streams or waits ends then.
    """

    house: House
    stopping: asyncio.Event
    guest_list: GuestList


class ApiRequest(Request[Any, Any, Any]):
    """A request of this API."""

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    @property
    def house(self) -> House:
        return self.services.house

    @property
    def stopping(self) -> asyncio.Event:
        return self.services.stopping

    @property
    def requester(self) -> str:
        """For the job's document: `uid:1000`."""
        return peer_of(self.scope).requester

    @property
    def ref(self) -> str:
        """What the path refers to."""
        return ref_of(self)

    async def read(self, kind: type[N]) -> N:
        """The body as a noun; an absent body is one that leaves every field out.

        :raise InvalidInput: it is not right. :raise UnsupportedMediaType: it is not JSON.
        :raise TooLarge: by way of the framework, over `MAX_BODY`.
        """
        try:
            body = await self.body()
        except InternalServerException:
            raise InvalidInput(
                "The request ended before its body did.", hint="Send it again."
            ) from None
        if not body:
            return decode_strict(b"{}", kind)
        # Also what keeps a foreign web page out: a form cannot send this type unasked.
        if self.content_type[0] != "application/json":
            raise UnsupportedMediaType(
                f"The body is {self.content_type[0] or 'of no stated type'}.",
                hint="Send JSON, with Content-Type: application/json.",
            )
        return decode_strict(body, kind)

    def ask(self, kind: type[N]) -> N:
        """The query string as a noun. :raise InvalidInput: names the parameter."""
        return parse_query(self.scope["query_string"], kind)


def peer_of(scope: Scope) -> Peer:
    """Set by the server on each connection."""
    peer: Peer = scope["state"]["peer"]
    return peer


def ref_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The `ref` of the path. Where it may hold slashes, the framework puts one before it."""
    ref: str = connection.path_params["ref"]
    return ref.removeprefix("/")


@cache
def _fields(kind: type[Noun]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def parse_query(query: bytes, kind: type[N]) -> N:
    """A query string as a noun.

    :raise UnknownField: no such parameter. :raise InvalidInput: given twice, or not right.
    """
    return parse_texts(parse_qsl(query.decode("latin-1"), keep_blank_values=True), kind)


def parse_texts(pairs: Iterable[tuple[str, str]], kind: type[N]) -> N:
    """A noun from texts, as query strings and paths carry them.

    :raise UnknownField: no such parameter. :raise InvalidInput: given twice, or not right.
    """
    fields = _fields(kind)
    found: dict[str, Any] = {}
    for name, text in pairs:
        if name not in fields:
            raise UnknownField(
                f"There is no parameter {name!r} here.",
                hint=f"Known are: {', '.join(sorted(fields)) or 'none'}.",
                field=name,
            )
        if name in found:
            raise InvalidInput(f"The parameter {name!r} is given twice.", field=name)
        try:
            found[name] = msgspec.convert(text, fields[name], strict=False)
        except msgspec.ValidationError as error:
            raise InvalidInput(
                f"The parameter {name!r} is not right: {error}.", field=name
            ) from None
    try:
        return kind(**found)
    except TypeError:
        missing = sorted(set(kind.__struct_fields__) - set(found))
        raise InvalidInput(f"Needed too: {', '.join(missing)}.", field=missing[0]) from None


def check_origin(scope: Scope) -> None:
    """Refuse what a page of another site makes a browser send.

    Browsers cannot reach a unix socket, but the same routes will answer over TCP.

    :raise Forbidden: an Origin header names another host than the Host header does.
    """
    headers = dict(scope["headers"])
    origin = headers.get(b"origin")
    if origin is None:
        return
    site = urlsplit(origin.decode("latin-1"))
    if site.scheme not in {"http", "https"} or site.netloc.encode() != headers.get(b"host"):
        raise Forbidden(
            "The request comes from a web page of another site.",
            hint="Open the house's own pages, or leave the Origin header out.",
        )
