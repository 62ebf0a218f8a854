"""Images: the catalogue, and what the house knows how to build."""

from __future__ import annotations

from litestar import Response, delete, get, post

from guesthouse.api.answers import WaitQuery, job_answer, json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import reads, submits
from guesthouse.errors import HostLacks, InUse, NameTaken, NotFound, UnknownImage
from guesthouse.model.imports import ImportImageRequest
from guesthouse.model.reports import BuildImageRequest, ImageView, KnownImage


@get("/v1/images", opt=reads(list[ImageView]))
async def list_images(request: ApiRequest) -> Response[bytes]:
    """All images of the catalogue, by name, the newest of a name first."""
    house = request.house
    images = sorted(house.view.images.values(), key=lambda image: image.created_at, reverse=True)
    images.sort(key=lambda image: image.name)
    return json_answer([house.image_view(image) for image in images])


@get("/v1/images/{ref:path}", opt=reads(ImageView, errors=(UnknownImage,)))
async def show_image(request: ApiRequest) -> Response[bytes]:
    """One image, by its id or its name; a name stands for the newest image of that name."""
    house = request.house
    return json_answer(house.image_view(house.view.image(request.ref)))


@post(
    "/v1/images",
    opt=submits(BuildImageRequest, query=WaitQuery, errors=(UnknownImage, HostLacks)),
)
async def build_image(request: ApiRequest) -> Response[bytes]:
    """Build an image that the house knows."""
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(BuildImageRequest)
    return await job_answer(
        request, await request.house.build_image(wanted, request.requester), wait=wait
    )


@post(
    "/v1/images-import",
    opt=submits(ImportImageRequest, query=WaitQuery, errors=(NotFound, NameTaken)),
)
async def import_image(request: ApiRequest) -> Response[bytes]:
    """Make an image of a file that was uploaded.

    The job fails with `invalid-input` when the file is refused; `reason` of its problem says why.
    The upload is gone in any case.
    """
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(ImportImageRequest)
    job = await request.house.import_image(wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@delete(
    "/v1/images/{ref:path}",
    status_code=202,
    opt=submits(query=WaitQuery, errors=(NotFound, InUse)),
)
async def remove_image(request: ApiRequest) -> Response[bytes]:
    """Remove an image from the catalogue."""
    wait = request.ask(WaitQuery).wait
    job = await request.house.remove_image(request.ref, request.requester)
    return await job_answer(request, job, wait=wait)


@get("/v1/images-known", opt=reads(list[KnownImage]))
async def known_images(request: ApiRequest) -> Response[bytes]:
    """Images that this house knows how to build."""
    return json_answer(request.house.known_images())


IMAGE_ROUTES = [
    list_images,
    show_image,
    build_image,
    import_image,
    remove_image,
    known_images,
]
