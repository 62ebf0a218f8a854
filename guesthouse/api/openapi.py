"""The OpenAPI 3.1 document, made from the routes and the nouns themselves.

Schemas come from msgspec, which also decodes: what the document says is what the API takes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from litestar import Litestar
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.routes import HTTPRoute, WebSocketRoute

from guesthouse import __version__
from guesthouse.api.described import JSON, Described, DescribedSocket
from guesthouse.api.problems import PROBLEM_JSON
from guesthouse.errors import GuesthouseError
from guesthouse.model.document import Noun
from guesthouse.model.reports import ProblemDetails

OPENAPI_JSON = "application/vnd.oai.openapi+json"

Json = dict[str, Any]

_ABOUT = """The HTTP API of Guesthouse, on a unix socket.

A `ref` is a name, an id or a unique prefix of an id. Sizes are bytes, times are seconds. Every
change answers 202 with a job; `?wait=SECONDS` answers once it has ended. Errors are RFC 9457
problem details with a stable `code` and a `hint`. GET routes answer HEAD too. WebSockets stand
under `x-websockets`."""

_PATH_TEXT = {
    "upload": "Id of the upload.",
    "ref": "A name, an id or a unique prefix of an id.",
    "protocol": "`tcp` or `udp`.",
    "host_ip": "Address of the host.",
    "host_port": "Port of the host.",
    "share": "Name of the share.",
    "nic": "Number of the network card, or its MAC address.",
    "rule": "Name or number of the rule.",
}
# RFC 9110 renamed these, and Python followed in 3.13; the description is the same under each.
_PHRASES = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
_REF_TEMPLATE = "#/components/schemas/{name}"
_IVAR = re.compile(r":ivar (\w+): ", re.MULTILINE)


class _Route(NamedTuple):
    path: str
    method: str
    handler: HTTPRouteHandler
    described: Described


class _Socket(NamedTuple):
    path: str
    handler: BaseRouteHandler
    described: DescribedSocket


@cache
def encoded_document(app: Litestar) -> bytes:
    """JSON of `document`, made once for each application."""
    return msgspec.json.encode(document(app))


def document(app: Litestar) -> Json:
    """The OpenAPI document of `app`."""
    routes, sockets = list(_routes(app)), list(_sockets(app))
    schemas = _Schemas(routes, sockets)
    paths: dict[str, Json] = {}
    for route in sorted(routes, key=lambda route: (route.path, route.method)):
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Guesthouse",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": schemas.components},
        "x-websockets": {
            socket.path: _socket(socket, schemas) for socket in sorted(sockets, key=str)
        },
    }


def _routes(app: Litestar) -> Iterator[_Route]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in route.route_handler_map.items():
                described = handler.opt.get("described")
                if described is not None:
                    yield _Route(route.path_format, method, handler, described)


def _sockets(app: Litestar) -> Iterator[_Socket]:
    for route in app.routes:
        if isinstance(route, WebSocketRoute):
            described: DescribedSocket = route.route_handler.opt["socket"]
            yield _Socket(route.path_format, route.route_handler, described)


class _Schemas:
    """Schemas of all nouns that the routes name."""

    def __init__(self, routes: list[_Route], sockets: list[_Socket]) -> None:
        kinds: dict[Any, None] = {ProblemDetails: None}
        for _, _, _, described in routes:
            named = (described.answer, described.body, described.query, *described.events.values())
            kinds.update(dict.fromkeys(kind for kind in named if kind is not None))
        for _, _, described_socket in sockets:
            kinds.update(dict.fromkeys(described_socket.client + described_socket.server))
            kinds[described_socket.query] = None
        found, components = msgspec.json.schema_components(list(kinds), ref_template=_REF_TEMPLATE)
        self._of = dict(zip(kinds, found, strict=True))
        queries = {described.query for _, _, _, described in routes} | {
            described.query for _, _, described in sockets
        }
        self._queries: dict[str, Json] = {
            kind.__name__: components[kind.__name__] for kind in queries if kind is not None
        }
        # A query is spelled out at its operations, and is no body that anybody sends.
        self.components = {
            name: _explained(schema)
            for name, schema in sorted(components.items())
            if name not in self._queries
        }

    def of(self, kind: Any) -> Json:
        schema: Json = self._of[kind]
        return schema

    def query(self, kind: type[Noun] | None) -> list[Json]:
        if kind is None:
            return []
        return [
            _parameter(name, "query", schema)
            for name, schema in self._queries[kind.__name__]["properties"].items()
        ]


def _explained(schema: Json) -> Json:
    """Move `:ivar name: text` of a docstring to the property that it explains."""
    text = inspect.cleandoc(schema.get("description", ""))
    about, *parts = _IVAR.split(text)
    for name, words in zip(parts[::2], parts[1::2], strict=True):
        prop = schema["properties"].get(name)
        if prop is not None and "$ref" not in prop:
            prop.setdefault("description", " ".join(words.split()))
    rest = {key: value for key, value in schema.items() if key != "description"}
    return {**rest, "description": " ".join(about.split())} if about.strip() else rest


def _parameter(name: str, place: str, schema: Json) -> Json:
    said = schema.get("description") or _PATH_TEXT.get(name, "")
    plain = {key: value for key, value in schema.items() if key != "description"}
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": said,
        "schema": plain,
    }


def _path_parameters(path: str) -> list[Json]:
    return [
        _parameter(name, "path", {"type": "string", "minLength": 1})
        for name in re.findall(r"{(\w+)}", path)
    ]


def _words(handler: BaseRouteHandler) -> Json:
    summary, _, description = inspect.cleandoc(handler.fn.__doc__ or "").partition("\n\n")
    said = {"summary": " ".join(summary.split()).rstrip(".")}
    return {**said, "description": " ".join(description.split())} if description else said


def _operation(route: _Route, schemas: _Schemas) -> Json:
    described = route.described
    operation: Json = {
        "operationId": route.handler.name or route.handler.fn.__name__,
        "tags": [route.path.split("/")[2] if route.path.count("/") > 1 else "daemon"],
        **_words(route.handler),
        "parameters": _path_parameters(route.path) + schemas.query(described.query),
        "responses": _responses(described, schemas),
    }
    if described.body is not None:
        schema = schemas.of(described.body)
        name = schema["$ref"].rsplit("/", 1)[1]
        operation["requestBody"] = {
            "required": bool(schemas.components[name].get("required")),
            "content": {JSON: {"schema": schema}},
        }
    if described.takes:
        content = {described.takes: {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _responses(described: Described, schemas: _Schemas) -> Json:
    answer: Json = {"description": described.answer_text, **_headers(described.headers)}
    if described.status != HTTPStatus.NO_CONTENT:
        answer["content"] = {described.media: _content(described, schemas)}
    answers: Json = {str(described.status): answer}
    if "ETag" in described.headers:
        answers["304"] = {"description": "Nothing changed.", **_headers(described.headers)}
    by_status: dict[int, list[type[GuesthouseError]]] = {}
    for error in dict.fromkeys(described.all_errors):
        by_status.setdefault(error.status, []).append(error)
    for status, errors in sorted(by_status.items()):
        codes = ", ".join(f"`{error.code}`" for error in errors)
        answers[str(status)] = {
            "description": f"{_PHRASES.get(status) or HTTPStatus(status).phrase}: {codes}.",
            "content": {PROBLEM_JSON: {"schema": schemas.of(ProblemDetails)}},
        }
    answers["default"] = {
        "description": "Any other error.",
        "content": {PROBLEM_JSON: {"schema": schemas.of(ProblemDetails)}},
    }
    return answers


def _content(described: Described, schemas: _Schemas) -> Json:
    if described.events:
        # OpenAPI 3.1 has no words for a stream's items; a schema would be that of the whole text.
        kinds = {str(name): schemas.of(kind) for name, kind in described.events.items()}
        return {"x-events": kinds}
    if described.answer is not None:
        return {"schema": schemas.of(described.answer)}
    return {"schema": {"type": "object" if described.media == OPENAPI_JSON else "string"}}


def _headers(headers: dict[str, str]) -> Json:
    if not headers:
        return {}
    return {
        "headers": {
            name: {"description": text, "required": True, "schema": {"type": "string"}}
            for name, text in headers.items()
        }
    }


def _socket(socket: _Socket, schemas: _Schemas) -> Json:
    return {
        **_words(socket.handler),
        "parameters": _path_parameters(socket.path) + schemas.query(socket.described.query),
        "x-client-text": [schemas.of(kind) for kind in socket.described.client],
        "x-server-text": [schemas.of(kind) for kind in socket.described.server],
    }
