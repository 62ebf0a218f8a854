"""Errors as answers: RFC 9457 problem details."""

from __future__ import annotations

import logging
import secrets
from typing import Any
from urllib.parse import quote

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException

from guesthouse.errors import (
    Conflict,
    Forbidden,
    GuesthouseError,
    Internal,
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unavailable,
)
from guesthouse.model.reports import ProblemDetails
from guesthouse.model.units import format_size

PROBLEM_JSON = "application/problem+json"
MAX_BODY = 1 << 20
"""Largest request body in bytes."""
_BY_STATUS: dict[int, type[GuesthouseError]] = {
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    409: Conflict,
    413: TooLarge,
    503: Unavailable,
}

_log = logging.getLogger("guesthouse.api")


def problem_details(error: GuesthouseError, *, instance: str = "") -> ProblemDetails:
    """The wire form of `error`. :param instance: path of the request that met it."""
    return ProblemDetails(
        type=f"urn:guesthouse:error:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.message,
        code=error.code,
        hint=error.hint,
        context=error.detail,
        instance=instance,
    )


def understand(error: Exception, *, where: str) -> GuesthouseError:
    """The error of ours that says what `error` says.

    Unexpected ones are defects: they are logged with a short id, and the answer carries only that.
    """
    if isinstance(error, GuesthouseError):
        return error
    if isinstance(error, HTTPException) and error.status_code < 500:
        return _from_http(error, where)
    mark = secrets.token_hex(4)
    _log.error("defect %s at %s", mark, where, exc_info=error)
    return Internal(
        f"Something went wrong in the house (defect {mark}).",
        hint=f"The daemon's log says more: look for {mark}.",
        defect=mark,
    )


def _from_http(error: HTTPException, where: str) -> GuesthouseError:
    if isinstance(error, NotFoundException):
        return NotFound(f"There is no {where} in this API.", hint="See GET /v1/openapi.json.")
    if isinstance(error, MethodNotAllowedException):
        return MethodNotAllowed(
            f"{where} does not know this method.",
            hint=f"Use {allowed}." if (allowed := _allowed(error)) else "It is a WebSocket.",
        )
    if error.status_code == TooLarge.status:
        return TooLarge(
            f"The body of the request is over {format_size(MAX_BODY)}.", hint="Send less."
        )
    kind = _BY_STATUS.get(error.status_code, InvalidInput)
    return kind(error.detail or error.__class__.__name__)


def encode_problem(problem: ProblemDetails) -> bytes:
    """JSON; facts that JSON cannot carry become text."""
    return msgspec.json.encode(problem, enc_hook=str)


def answer_problem(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The exception handler of the whole application."""
    # The path may be any text at all; as part of a URI reference it is percent-encoded again.
    path = quote(request.scope["path"])
    ours = understand(error, where=path)
    headers = {}
    if isinstance(error, MethodNotAllowedException):
        headers["Allow"] = _allowed(error)
    return Response(
        encode_problem(problem_details(ours, instance=path)),
        status_code=ours.status,
        media_type=PROBLEM_JSON,
        headers=headers,
    )


def _allowed(error: MethodNotAllowedException) -> str:
    """The methods of the path, of which the framework also counts `websocket`."""
    known = str((error.headers or {}).get("allow", "")).split(", ")
    methods = {name for name in known if name.isupper()}
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods))
