"""Network cards of a fake guest: as strict as QEMU's about what may come, move and go."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from guesthouse.errors import Conflict, DeadlineExceeded, InvalidInput, InvalidTransition, NotFound
from guesthouse.model.device import Link, Nic
from guesthouse.model.networking import BUILTIN


class FakeCards:
    """Of one process. :ivar nics: by number, as they are plugged in now.

    :ivar stubborn: numbers of cards that the guest does not let go of.
    """

    def __init__(self, nics: Iterable[Nic]) -> None:
        self.nics = {nic.index: nic for nic in nics}
        self.stubborn: set[int] = set()

    def require(self, index: int) -> Nic:
        """:raise InvalidInput: there is no such card."""
        if index not in self.nics:
            raise InvalidInput(f"The guest has no network card {index}.", field="nic")
        return self.nics[index]

    def plug(self, nic: Nic) -> None:
        if nic.plug is None:
            raise InvalidInput(f"Card {nic.index} has no hot-plug port.", field="plug")
        there = self.nics.get(nic.index, nic)
        if (there.mac, there.plug) != (nic.mac, nic.plug):
            raise Conflict(f"The guest has another network card {nic.index}.")
        self.nics[nic.index] = nic

    def unplug(self, index: int, *, paused: bool) -> None:
        nic = self.nics.get(index)
        if nic is None:
            return
        if nic.plug is None:
            raise InvalidTransition(f"Card {index} cannot be pulled while the guest runs.")
        if paused or index in self.stubborn:
            raise DeadlineExceeded(f"The guest has not let go of card {index}.")
        del self.nics[index]

    def move(self, nic: Nic) -> None:
        before = self._running(nic.index)
        if (before.network == BUILTIN) is not (nic.network == BUILTIN):
            raise InvalidTransition(f"Card {nic.index} cannot be moved while the guest runs.")
        self.nics[nic.index] = nic

    def link(self, index: int, *, up: bool) -> None:
        link = Link.UP if up else Link.DOWN
        self.nics[index] = msgspec.structs.replace(self._running(index), link=link)

    def interfaces(self) -> list[dict[str, object]]:
        """What the guest's agent tells of them."""
        return [
            {
                "name": f"eth{index}",
                "hardware-address": nic.mac,
                "ip-addresses": [
                    {"ip-address-type": "ipv4", "ip-address": f"10.0.2.{15 + index}", "prefix": 24}
                ][: nic.link is Link.UP],
            }
            for index, nic in sorted(self.nics.items())
        ]

    def _running(self, index: int) -> Nic:
        if index not in self.nics:
            raise NotFound(f"The running guest has no network card {index}.")
        return self.nics[index]
