"""Whose ids are what in the house's namespaces. Pure: tables in, numbers out.

The map of a user namespace is written once and cannot grow while anybody lives in it. So all
subordinate ids of the user are mapped at once, one after the other, and split by their number
inside. The table is in docs/design/0002-house-namespace.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from guesthouse.errors import HostLacks, InvalidInput
from guesthouse.host.launcher import GuestIdentity, reserved_ranges
from guesthouse.model.document import Noun

FIRST_SERVICE = 1
FIRST_VM = 1000
BLOCK = 65536
"""Ids of one container: Debian's user database goes up to 65534."""

FEWEST = 2000
"""Subordinate ids below which there would be too few for services and guests."""

_END_OF_VMS = 65534
"""65534 is what the kernel shows for any id that is not mapped, and 65535 is -1 in 16 bits."""

_LOWEST_OUTSIDE = 65536
_MOST_EXTENTS = 340
"""user_namespaces(7), since Linux 4.15."""

_SUGGESTED_BLOCKS = 4


class Extent(NamedTuple):
    """`size` ids, from `inside` on in the namespace, from `outside` on outside of it."""

    inside: int
    outside: int
    size: int


class Block(NamedTuple):
    """The ids of one container, as its configuration wants them: `inside` counts from 0 in the
    container, `outside` is what the house's namespace calls the same ids."""

    uids: tuple[Extent, ...]
    gids: tuple[Extent, ...]


class IdPlan(Noun, frozen=True, kw_only=True):
    """How ids are mapped and split.

    :ivar uids: in the order of their inside numbers, without gaps. :ivar gids: likewise.
    :ivar mapped: whether this is the map of a user namespace. Otherwise (root's house) the inside
        numbers only split the ranges, and processes are launched with the outside ones.
    """

    uids: tuple[Extent, ...]
    gids: tuple[Extent, ...]
    mapped: bool

    @property
    def end(self) -> int:
        """The first inside number that is not both a uid and a gid."""
        return min(_end(self.uids), _end(self.gids))

    @property
    def vm_count(self) -> int:
        return max(0, min(self.end, _END_OF_VMS) - FIRST_VM)

    @property
    def block_count(self) -> int:
        return max(0, self.end // BLOCK - 1)

    @property
    def service_count(self) -> int:
        return min(self.end, FIRST_VM) - FIRST_SERVICE

    def service(self, slot: int) -> GuestIdentity:
        """Who the service with that number (0, 1, …) is, as the launcher is to set it.

        :raise InvalidInput: there is no such number.
        """
        if not 0 <= slot < self.service_count:
            raise InvalidInput(f"There is no id for service {slot}.", field="slot")
        return self._identity(FIRST_SERVICE + slot)

    def vm(self, slot: int, *, groups: tuple[int, ...] = ()) -> GuestIdentity:
        """Who the process of a VM is, as the launcher is to set it.

        :param slot: from the book of ids (idbook.py). :param groups: as the namespace calls them.
        :raise HostLacks: the ranges end before that number.
        """
        if slot < 0:
            raise InvalidInput("A guest's number is not negative.", field="slot")
        if slot >= self.vm_count:
            raise HostLacks(
                f"There are ids for {self.vm_count} guests, all in use.",
                hint="Delete guests, or give the user a larger range in /etc/subuid and "
                "/etc/subgid.",
                capability="guest-ids",
            )
        return self._identity(FIRST_VM + slot, groups)

    def block(self, slot: int) -> Block:
        """The ids of the container with that number in the book of ids.

        :raise HostLacks: the ranges end before that number.
        """
        if slot < 0:
            raise InvalidInput("A container's number is not negative.", field="slot")
        if slot >= self.block_count:
            raise HostLacks(
                f"There are ids for {self.block_count} containers, {BLOCK} for each.",
                hint="See `container-ids` in `guest doctor`.",
                capability="container-ids",
            )
        first = BLOCK * (slot + 1)
        return Block(self._block(self.uids, first), self._block(self.gids, first))

    def outside(self, inside: int) -> tuple[int, int]:
        """(uid, gid) that the host sees. :raise InvalidInput: that id is not mapped."""
        return _outside(self.uids, inside), _outside(self.gids, inside)

    def _identity(self, inside: int, groups: tuple[int, ...] = ()) -> GuestIdentity:
        uid, gid = (inside, inside) if self.mapped else self.outside(inside)
        return GuestIdentity(uid, gid, groups)

    def _block(self, extents: tuple[Extent, ...], first: int) -> tuple[Extent, ...]:
        if self.mapped:
            return (Extent(0, first, BLOCK),)
        found = []
        for extent in extents:
            start = max(first, extent.inside)
            end = min(first + BLOCK, extent.inside + extent.size)
            if start < end:
                outside = extent.outside + start - extent.inside
                found.append(Extent(start - first, outside, end - start))
        return tuple(found)


def personal_plan(owners: Sequence[str], *, uid: int, gid: int, subuid: str, subgid: str) -> IdPlan:
    """The map for an ordinary user: 0 inside is the user, all subordinate ids follow from 1 on.

    :param owners: how lines of subuid(5) may name the user: by name and by uid.
    :param subuid: content of /etc/subuid. :param subgid: content of /etc/subgid.
    :raise HostLacks: fewer than FEWEST ids (capability `subids`).
    """
    plan = IdPlan(
        uids=_map(uid, ranges_of(subuid, owners)),
        gids=_map(gid, ranges_of(subgid, owners)),
        mapped=True,
    )
    if plan.end - 1 < FEWEST:
        short = "/etc/subuid" if _end(plan.uids) == plan.end else "/etc/subgid"
        raise HostLacks(
            f"{short} gives {owners[0]} {plan.end - 1} ids, and the house needs {FEWEST}.",
            hint=add_range(owners[0], BLOCK, subuid, subgid),
            capability="subids",
        )
    return plan


def system_plan(subuid: str, subgid: str) -> IdPlan:
    """The split for root, who needs no map: the ranges of `guesthouse`, else of `root`, else those
    that nobody claims (launcher.reserved_ranges). 0 is root itself."""
    return IdPlan(
        uids=_map(0, reserved_ranges(subuid)), gids=_map(0, reserved_ranges(subgid)), mapped=False
    )


def living_plan(uid_map: str, gid_map: str) -> IdPlan:
    """The plan of a user namespace that exists, from /proc/PID/uid_map and gid_map."""
    return IdPlan(uids=_parse_map(uid_map), gids=_parse_map(gid_map), mapped=True)


def ranges_of(table: str, owners: Sequence[str]) -> list[tuple[int, int]]:
    """All (first, count) that lines of subuid(5) give to one of `owners`, in their order."""
    found = []
    for owner, first, count in _lines(table):
        if owner in owners:
            found.append((first, count))
    return found


def add_range(owner: str, count: int, subuid: str, subgid: str) -> str:
    """The command that gives `owner` that many ids more, where nobody else has any."""
    ends = [first + size for _owner, first, size in (*_lines(subuid), *_lines(subgid))]
    first = max([100_000, *(end for end in ends if end < 1 << 31)])
    return f"echo {owner}:{first}:{count} | sudo tee -a /etc/subuid /etc/subgid"


def more_blocks(owner: str, plan: IdPlan, subuid: str, subgid: str) -> str:
    """The command that makes room for some containers: `add_range` of what is missing for them."""
    wanted = (plan.block_count + 1 + _SUGGESTED_BLOCKS) * BLOCK
    missing = -(-(wanted - plan.end) // BLOCK) * BLOCK
    return add_range(owner, missing, subuid, subgid)


def _map(own: int, ranges: Iterable[tuple[int, int]]) -> tuple[Extent, ...]:
    extents = [Extent(0, own, 1)]
    inside = 1
    for first, count in ranges:
        for start, size in _free(first, count, extents):
            if len(extents) < _MOST_EXTENTS:
                extents.append(Extent(inside, start, size))
                inside += size
    return tuple(extents)


def _free(first: int, count: int, taken: Iterable[Extent]) -> list[tuple[int, int]]:
    """What of a range is neither among real users nor mapped already: the kernel takes no id
    twice."""
    parts = [(max(first, _LOWEST_OUTSIDE), first + count)]
    for _inside, start, size in taken:
        parts = [
            part
            for low, high in parts
            for part in ((low, min(high, start)), (max(low, start + size), high))
        ]
    return [(low, high - low) for low, high in parts if low < high]


def _lines(table: str) -> list[tuple[str, int, int]]:
    found = []
    for line in table.splitlines():
        owner, _, numbers = line.strip().partition(":")
        first, _, count = numbers.partition(":")
        if owner and first.isdecimal() and count.isdecimal():
            found.append((owner, int(first), int(count)))
    return found


def _parse_map(text: str) -> tuple[Extent, ...]:
    return tuple(sorted(Extent(*map(int, line.split())) for line in text.splitlines()))


def _end(extents: tuple[Extent, ...]) -> int:
    """Behind the last inside number that is reached without a gap."""
    end = 0
    for extent in extents:
        if extent.inside != end:
            break
        end += extent.size
    return end


def _outside(extents: tuple[Extent, ...], inside: int) -> int:
    for extent in extents:
        if extent.inside <= inside < extent.inside + extent.size:
            return extent.outside + inside - extent.inside
    raise InvalidInput(f"Id {inside} is not mapped.", field="inside")
