"""Requests about shared folders, and what is answered about them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from guesthouse.model.document import Noun
from guesthouse.model.share import Share, Way

Path = Annotated[str, Meta(min_length=1, max_length=4096)]


class ShareRequest(Noun, kw_only=True, frozen=True):
    """A folder of this host that a guest is to have.

    :ivar source: absolute path on the host. :ivar target: absolute path in the guest.
    :ivar way: null takes the fastest that host and guest can do.
    :ivar guest_user: whom the files belong to in the guest; empty is its login user.
    :ivar system_folder: `source` is a folder of the system, and is meant.
    """

    source: Path
    target: Path
    read_only: bool = False
    way: Way | None = None
    guest_user: Annotated[str, Meta(max_length=256)] = ""
    system_folder: bool = False


class UnshareRequest(Noun, kw_only=True, frozen=True):
    """:ivar share: its name. :ivar force: also when it is not there in the guest any more, or the
    guest does not answer."""

    share: Annotated[str, Meta(min_length=1, max_length=256)]
    force: bool = False


class ShareState(StrEnum):
    """`waiting`: for the guest to start, or to come up."""

    MOUNTED = "mounted"
    WAITING = "waiting"
    FAILED = "failed"


class ShareView(Share, kw_only=True, frozen=True):
    """A share as it is now.

    :ivar message: why it failed. :ivar reason: why it is mounted that way, and not a faster one.
    :ivar walls: what stands around its file server.
    """

    state: ShareState
    message: str = ""
    reason: str = ""
    walls: tuple[str, ...] = ()
