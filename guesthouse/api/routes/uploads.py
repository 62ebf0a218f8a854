"""Files that clients send: made of a size, filled piece by piece, and used by a job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from litestar import Response, delete, get, post, put
from litestar.exceptions import InternalServerException
from msgspec import Meta

from guesthouse.api.answers import json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import BYTES, Described, reads
from guesthouse.errors import Conflict, InvalidInput, NoSpace, NotFound, UnsupportedMediaType
from guesthouse.model.document import Noun
from guesthouse.model.imports import Upload, UploadRequest


class PieceQuery(Noun, kw_only=True, frozen=True):
    offset: Annotated[
        int, Meta(ge=0, le=1 << 53, description="Where in the file the body begins.")
    ] = 0


@post(
    "/v1/uploads",
    status_code=201,
    opt={
        "described": Described(
            answer=Upload,
            status=201,
            answer_text="The upload, full of zeroes.",
            body=UploadRequest,
            headers={"Location": "Path of the upload."},
            errors=(NoSpace,),
        )
    },
)
async def create_upload(request: ApiRequest) -> Response[bytes]:
    """Announce a file. It is thrown away when nobody uses it for an hour."""
    wanted = await request.read(UploadRequest)
    upload = await request.house.create_upload(wanted)
    headers = {"Location": f"/v1/uploads/{upload.id}"}
    return json_answer(upload, status=201, headers=headers)


@get("/v1/uploads/{upload:str}", opt=reads(Upload, errors=(NotFound,)))
async def show_upload(request: ApiRequest) -> Response[bytes]:
    """How much of a file has come."""
    return json_answer(await request.house.upload(request.path_params["upload"]))


@put(
    "/v1/uploads/{upload:str}",
    status_code=200,
    request_max_body_size=None,
    opt={
        "described": Described(
            answer=Upload,
            query=PieceQuery,
            takes=BYTES,
            errors=(NotFound, Conflict, NoSpace, UnsupportedMediaType),
        )
    },
)
async def write_upload(request: ApiRequest) -> Response[bytes]:
    """Send a part of a file, of any length.

    What is never sent is zeroes: leave out the holes of a sparse file. The same part may be sent
    again.
    """
    offset = request.ask(PieceQuery).offset
    # Also what keeps a foreign web page out: a form cannot send this type unasked.
    if request.content_type[0] != BYTES:
        raise UnsupportedMediaType(
            f"The body is {request.content_type[0] or 'of no stated type'}.",
            hint=f"Send bytes, with Content-Type: {BYTES}.",
        )
    house, upload = request.house, request.path_params["upload"]
    return json_answer(await house.write_upload(upload, offset, _pieces(request)))


async def _pieces(request: ApiRequest) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except InternalServerException:
        raise InvalidInput(
            "The request ended before its body did.", hint="Send it again."
        ) from None


@delete(
    "/v1/uploads/{upload:str}",
    status_code=204,
    opt={
        "described": Described(status=204, answer_text="It is gone.", errors=(NotFound, Conflict))
    },
)
async def discard_upload(request: ApiRequest) -> None:
    """Throw an upload away that is not needed any more."""
    await request.house.discard_upload(request.path_params["upload"])


UPLOAD_ROUTES = [create_upload, show_upload, write_upload, discard_upload]
