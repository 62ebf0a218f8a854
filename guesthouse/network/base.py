"""The contract of everything that connects a guest's network cards.

A driver asks the backend of each card for an `Attachment` and passes it to the engine unread; it
lends the backend its monitor for what changes while the guest runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol

from guesthouse.model.device import Nic, Publish
from guesthouse.model.document import Noun

Monitor = Callable[[str], Awaitable[str]]
"""Sends one line to the engine's human monitor and answers its reply."""


class NetworkCapabilities(Noun, kw_only=True, frozen=True):
    """:ivar guest_to_guest: guests on the same network reach one another.
    :ivar live_publish: ports can be opened and closed while the guest runs.
    :ivar ipv6_publish: ports can be published on IPv6 addresses of the host.
    """

    guest_to_guest: bool
    live_publish: bool
    ipv6_publish: bool


class Attachment(NamedTuple):
    """What a driver passes to the engine for one card.

    :ivar netdev: value of QEMU's `-netdev`, escaped; `{fd}` in it stands for the number at which
        the engine finds `fd`. :ivar fd: an open tap, owned by the backend, or None.
    :ivar live: the same as arguments of QMP's `netdev_add`, without `fd`.
    """

    netdev: str
    fd: int | None = None
    live: Mapping[str, object] = {}


class NetworkBackend(Protocol):
    """Cards are told apart by guest id and index (the number that a card keeps)."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> NetworkCapabilities: ...

    async def attach(self, guest: str, nic: Nic, index: int, *, hostname: str) -> Attachment:
        """Make ready for a start; idempotent, and kept across incarnations until `detach`.

        :raise InvalidInput: the card asks for what this network cannot do.
        """
        ...

    async def change(self, guest: str, nic: Nic, index: int, *, hostname: str) -> None:
        """A card that is in use comes to another network of this backend, or has other addresses;
        the engine's end of it stays. Idempotent. Raises as `attach`.
        """
        ...

    async def rest(self, guest: str, index: int) -> None:
        """The guest's process has ended: its published ports are closed, all else is kept."""
        ...

    async def detach(self, guest: str, index: int) -> None:
        """Undo `attach`; nothing happens when there is nothing to undo."""
        ...

    async def publish(self, guest: str, index: int, port: Publish, monitor: Monitor) -> None:
        """Open a port live. `port.host_port` is never 0 here: see `ports.reserve`.

        :raise PortTaken: :raise InvalidInput: :raise EngineError:
        """
        ...

    async def unpublish(self, guest: str, index: int, port: Publish, monitor: Monitor) -> None:
        """Close a port live; nothing happens when it is not open. :raise EngineError:"""
        ...
