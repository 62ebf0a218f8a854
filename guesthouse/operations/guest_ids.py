"""Ids of guests' processes become free again: at a deletion, or after a crash."""

from __future__ import annotations

import logging

from guesthouse.drivers.qemu.identity import Identities
from guesthouse.drivers.qemu.keeping import KeeperLink
from guesthouse.errors import GuesthouseError
from guesthouse.store.view import View

log = logging.getLogger(__name__)


async def forget_ids(identities: Identities, keeper: KeeperLink, view: View) -> None:
    """Free the ids of guests that are no more; not while a process lives that has them."""
    try:
        running = await (await keeper.client()).processes()
        alive = {process.key.rpartition(".")[0] for process in running if process.alive}
        await identities.keep_only({*view.guests, *alive})
    except GuesthouseError as error:
        log.warning("ids of former guests are not free yet: %s", error)


async def give_back_ids(identities: Identities, guest: str) -> None:
    """The guest is deleted; what fails is done by the next daemon (`forget_ids`)."""
    try:
        await identities.give_back(guest)
    except GuesthouseError as error:
        log.warning("the ids of guest %s are not free yet: %s", guest, error)
