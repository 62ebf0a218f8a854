"""What each route says about itself, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, NamedTuple

from guesthouse.errors import (
    GuesthouseError,
    Internal,
    InvalidInput,
    NoSpace,
    NotFound,
    ReadOnlyStore,
    TooLarge,
    UnknownField,
    UnsupportedMediaType,
)
from guesthouse.model.document import Noun
from guesthouse.model.job import Job

Errors = tuple[type[GuesthouseError], ...]

JSON = "application/json"
TEXT = "text/plain"
EVENT_STREAM = "text/event-stream"
PNG = "image/png"
BYTES = "application/octet-stream"
GZIP = "application/gzip"


class Described(NamedTuple):
    """:ivar answer: type of the body where it is JSON: a noun, or a list of one.

    :ivar query: noun of the query parameters. :ivar body: noun of the request's body.
    :ivar takes: media type of a body that is no JSON.
    :ivar headers: of the answer, with what they say.
    :ivar events: of an event stream: the event's name and the type of its data.
    """

    answer: object = None
    status: int = 200
    media: str = JSON
    answer_text: str = "The answer."
    query: type[Noun] | None = None
    body: type[Noun] | None = None
    takes: str = ""
    headers: dict[str, str] = {}
    events: dict[str, type[Noun]] = {}
    errors: Errors = ()

    @property
    def all_errors(self) -> Errors:
        always: Errors = (InvalidInput, UnknownField, Internal)
        if self.body is not None:
            always += (TooLarge, UnsupportedMediaType)
        return always + self.errors


def reads(
    answer: object = None,
    *,
    media: str = JSON,
    answer_text: str = "The answer.",
    query: type[Noun] | None = None,
    headers: dict[str, str] | None = None,
    events: dict[str, type[Noun]] | None = None,
    errors: Errors = (),
) -> dict[str, Any]:
    """`opt` of a route that changes nothing."""
    described = Described(
        answer=answer,
        media=media,
        answer_text=answer_text,
        query=query,
        headers=headers or {},
        events=events or {},
        errors=errors,
    )
    return {"described": described}


def submits(
    body: type[Noun] | None = None, *, query: type[Noun], errors: Errors = (NotFound,)
) -> dict[str, Any]:
    """`opt` of a route that starts a job."""
    described = Described(
        answer=Job,
        status=202,
        answer_text="The job, accepted and durable; ended if `wait` was long enough.",
        query=query,
        body=body,
        headers={"Location": "Path of the job."},
        errors=(*errors, ReadOnlyStore, NoSpace),
    )
    return {"described": described}


class DescribedSocket(NamedTuple):
    """:ivar client: nouns of the text frames that a client sends, `server` of those it gets."""

    query: type[Noun]
    client: tuple[type[Noun], ...] = ()
    server: tuple[type[Noun], ...] = ()
