"""Security groups that a guest is in from its launch."""

from __future__ import annotations

from collections.abc import Sequence

from guesthouse.errors import HostLacks, InvalidInput, NotFound
from guesthouse.host.capabilities import lacking
from guesthouse.model.networking import BUILTIN
from guesthouse.operations.rooms import Rooms


def groups_of(rooms: Rooms, names: Sequence[str], networks: Sequence[str]) -> tuple[str, ...]:
    """Ids of the groups that are asked for, each once.

    :param networks: ids of those that are asked for; none leaves it to the house.
    :raise NotFound: with similar names. :raise InvalidInput: the guest would be on no network of
        the house, and only there rules hold.
    """
    found = tuple(dict.fromkeys(rooms.view.group(name).id for name in names))
    if found and networks and not any(one != BUILTIN for one in networks):
        raise InvalidInput(
            "The guest would be on no network of the house, and only there rules hold.",
            hint="Give it a card on one as well: --network default",
            field="groups",
        )
    return found


def require_rules_hold(rooms: Rooms, groups: Sequence[str], networks: Sequence[str]) -> None:
    """:raise HostLacks: the house chose, and this host has no networks: the groups would keep
    nobody out."""
    if not groups or any(one != BUILTIN for one in networks):
        return
    lack = lacking(rooms.facts().capabilities)
    why = f": {lack.reason}" if lack else "."
    raise HostLacks(
        f"The guest cannot be on a network of the house, and only there rules hold{why}",
        hint=lack.cure if lack and lack.cure else "See what this host lacks: guest doctor",
        capability=lack.name if lack else "networks",
    )


def require_groups(rooms: Rooms, groups: Sequence[str]) -> None:
    """Hold `rooms.rules.change`, until the guest is stored. :raise NotFound: one was removed."""
    if any(group not in rooms.view.groups for group in groups):
        raise NotFound(
            "A security group that the guest is to be in was removed meanwhile.",
            hint="See what there is: guest firewall group ls",
        )
