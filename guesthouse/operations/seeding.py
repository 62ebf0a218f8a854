"""What a launch says to the guest: refused where nothing would hear it, kept where it is secret."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from guesthouse.errors import InvalidInput, UnknownImage
from guesthouse.guestos import nocloud
from guesthouse.guestos.nocloud import CloudInit, check_user_data
from guesthouse.guestos.seed import check_public_key
from guesthouse.model.image import Seed
from guesthouse.model.reports import LaunchRequest
from guesthouse.operations.rooms import Rooms


def check_seeding(rooms: Rooms, request: LaunchRequest) -> None:
    """:raise InvalidInput: names what the image would not heed, or what cannot be right.

    :raise UnknownImage: neither here nor one that can be built.
    """
    for key in request.ssh_keys:
        check_public_key(key, field="ssh_keys")
    if request.user_data:
        check_user_data(request.user_data)
    seed = _seed(rooms, request.image)
    if seed is not Seed.NOCLOUD and (request.user_data or request.network_config):
        why = "is set up by this house itself" if seed is Seed.HOUSE else "is not set up by anybody"
        raise InvalidInput(
            f"The image {request.image} has no cloud-init: it {why}.",
            hint="Leave --cloud-init away, and set the guest up by guest exec and guest cp."
            if seed is Seed.HOUSE
            else "Leave --cloud-init away, and set the guest up by its screen or serial console.",
            field="user_data" if request.user_data else "network_config",
        )
    if seed is Seed.NONE and request.ssh_keys:
        raise InvalidInput(
            f"Nothing in the image {request.image} would take an ssh key.",
            hint="Leave --ssh-key away, and set the guest up by its screen or serial console.",
            field="ssh_keys",
        )
    if seed is not Seed.HOUSE and request.user is not None:
        raise InvalidInput(
            f"The image {request.image} has its own users; this house makes none in it.",
            hint="Name a user in cloud-init's user data." if seed is Seed.NOCLOUD else "",
            field="user",
        )


def _seed(rooms: Rooms, name: str) -> Seed:
    try:
        return rooms.catalogue.resolve(name).seed
    except UnknownImage:
        for known in rooms.catalogue.known():
            if known.name == name:
                return known.seed
        raise


@asynccontextmanager
async def kept_for_launch(rooms: Rooms, guest: str, secret: CloudInit) -> AsyncIterator[None]:
    """Keep what is for cloud-init while a launch is submitted, and if that succeeds.

    :param guest: its id.
    """
    if secret == CloudInit():
        yield
        return
    await asyncio.to_thread(nocloud.keep, rooms.secrets, guest, secret)
    try:
        yield
    except BaseException:
        await asyncio.shield(asyncio.to_thread(nocloud.forget, rooms.secrets, guest))
        raise
