"""What operations work with: the rooms below, wired once by the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from guesthouse.drivers.base import Driver
from guesthouse.host.secrets import Secrets
from guesthouse.host.settings import Settings
from guesthouse.images.catalogue import Catalogue
from guesthouse.model.folders import Folders
from guesthouse.model.guest import Guest
from guesthouse.model.host import HostFacts
from guesthouse.model.network import Network
from guesthouse.network.bridged.attaching import FOLDER, HostBridges
from guesthouse.network.house.hostside import routes
from guesthouse.operations.clashing import Clashes
from guesthouse.operations.kernel_rules import KernelRules
from guesthouse.operations.live import LiveGuests
from guesthouse.operations.traffic import NoTraffic, Traffic
from guesthouse.storage.pool import DirectoryPool
from guesthouse.storage.uploads import Uploads
from guesthouse.store.documents import Documents
from guesthouse.store.trash import in_trash
from guesthouse.store.view import View


async def nowhere(guest: str) -> None:
    """What there is to do where guests have neither networks of a house nor ids of their own."""


async def no_card(guest: str, index: int) -> None:
    """The same, for one card."""


async def nothing() -> None:
    """Bring changed networks about where there are none."""


@dataclass(kw_only=True)
class Rooms:
    """:ivar facts: the newest probe of this host (a call, since it may be probed again).

    :ivar leave_networks: what is there of a guest's cards goes, when it is deleted; by its id.
    :ivar leave_card: the same for one card, by the guest's id and its number; its addresses go.
    :ivar give_back_ids: those of its process are free again, when it is deleted; by its id.
    :ivar refresh_networks: bring about what the changed documents of networks say.
    :ivar recover_networks: the same after a recovery: guests that run have their cards again.
    :ivar traffic: what can be done with the packets of guests' cards.
    :ivar rules: those of firewalls, as the kernel has them.
    :ivar host_routes: CIDRs that subnets of networks must not be in.
    :ivar networks_change: held while networks come and go, or guests come to be on them: so that
        no two have one subnet, and none goes that a guest is on.
    """

    documents: Documents
    view: View
    driver: Driver
    pool: DirectoryPool
    catalogue: Catalogue
    secrets: Secrets
    folders: Folders
    settings: Settings
    facts: Callable[[], HostFacts]
    leave_networks: Callable[[str], Awaitable[None]] = nowhere
    leave_card: Callable[[str, int], Awaitable[None]] = no_card
    give_back_ids: Callable[[str], Awaitable[None]] = nowhere
    refresh_networks: Callable[[], Awaitable[None]] = nothing
    recover_networks: Callable[[], Awaitable[None]] = nothing
    traffic: Traffic = field(default_factory=NoTraffic)
    rules: KernelRules = field(default_factory=KernelRules)
    host_routes: Callable[[], Awaitable[Sequence[str]]] = routes
    networks_change: asyncio.Lock = field(default_factory=asyncio.Lock)
    live: LiveGuests = field(default_factory=LiveGuests)
    uploads: Uploads = field(init=False)
    clashes: Clashes = field(init=False)
    bridges: HostBridges = field(init=False)

    def __post_init__(self) -> None:
        self.bridges = HostBridges(self.folders.runtime / FOLDER)
        self.clashes = Clashes(self._networks, self._routes)
        self.uploads = Uploads(self.folders.uploads)

    def _networks(self) -> Iterable[Network]:
        return self.view.networks.values()

    async def _routes(self) -> Sequence[str]:
        return await self.host_routes()

    async def guest(self, guest_id: str) -> Guest:
        """The stored document, not the view's: operations decide on what is durable.

        :raise NotFound: deleted meanwhile, or moved to the trash.
        """
        guest = (await self.documents.guests.require(guest_id)).doc
        if guest.in_trash:
            raise in_trash(guest.name)
        return guest
