"""Whose ids are what inside the house's namespace: tables in, numbers out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guesthouse.errors import HostLacks, InvalidInput
from guesthouse.host.launcher import UNCLAIMED_FIRST, GuestIdentity
from guesthouse.host.namespace.idplan import (
    BLOCK,
    FEWEST,
    Block,
    Extent,
    IdPlan,
    add_range,
    living_plan,
    more_blocks,
    personal_plan,
    ranges_of,
    system_plan,
)

USUAL = "ann:100000:65536\n"


def personal(subuid: str, subgid: str | None = None, uid: int = 1000) -> IdPlan:
    gids = subuid if subgid is None else subgid
    return personal_plan(("ann", str(uid)), uid=uid, gid=uid, subuid=subuid, subgid=gids)


def test_the_usual_range_is_for_services_and_guests() -> None:
    plan = personal(USUAL)
    assert plan.uids == (Extent(0, 1000, 1), Extent(1, 100000, 65536))
    assert plan.end == 65537
    assert plan.service_count == 999
    assert plan.service(0) == GuestIdentity(1, 1)
    assert plan.service(998) == GuestIdentity(999, 999)
    assert plan.vm(0) == GuestIdentity(1000, 1000)
    assert plan.vm(7, groups=(5,)) == GuestIdentity(1007, 1007, (5,))
    assert plan.outside(1007) == (101006, 101006)
    assert plan.outside(0) == (1000, 1000)
    assert plan.block_count == 0


def test_65534_and_65535_are_nobodys() -> None:
    plan = personal("ann:100000:400000\n")
    last = plan.vm_count - 1
    assert plan.vm(last).uid == 65533
    with pytest.raises(HostLacks, match="ids for 64534 guests"):
        plan.vm(last + 1)


def test_a_range_may_end_among_the_guests() -> None:
    plan = personal("ann:100000:3000\n")
    assert plan.vm_count == 2001
    assert plan.vm(2000).uid == 3000
    with pytest.raises(HostLacks) as caught:
        plan.vm(2001)
    assert caught.value.detail["capability"] == "guest-ids"


def test_a_container_has_a_block_of_its_own_behind_the_guests() -> None:
    plan = personal("ann:100000:65536\nann:300000:131071\n")
    assert plan.block_count == 2
    assert plan.block(0) == Block((Extent(0, BLOCK, BLOCK),), (Extent(0, BLOCK, BLOCK),))
    assert plan.block(1).uids == (Extent(0, 2 * BLOCK, BLOCK),)
    with pytest.raises(HostLacks) as caught:
        plan.block(2)
    assert caught.value.detail["capability"] == "container-ids"


@pytest.mark.parametrize(("count", "blocks"), [(131070, 0), (131071, 1), (196606, 1), (196607, 2)])
def test_a_block_is_there_whole_or_not_at_all(count: int, blocks: int) -> None:
    assert personal(f"ann:100000:{count}\n").block_count == blocks


def test_all_ranges_are_mapped_by_name_and_by_number() -> None:
    plan = personal("bob:1:2\nann:100000:5000\nroot:5:5\n1000:200000:10\nann:300000:7\n")
    assert plan.uids[1:] == (
        Extent(1, 100000, 5000),
        Extent(5001, 200000, 10),
        Extent(5011, 300000, 7),
    )
    assert plan.outside(5012) == (300001, 300001)


def test_what_is_among_real_users_or_twice_is_not_mapped() -> None:
    text = "ann:60000:10000\nann:66000:70000\n"
    assert personal(text).uids[1:] == (Extent(1, 65536, 4464), Extent(4465, 70000, 66000))
    # The user's own id in its own range: the kernel takes no id twice.
    assert personal("ann:70000:5000\n", uid=71000).uids == (
        Extent(0, 71000, 1),
        Extent(1, 70000, 1000),
        Extent(1001, 71001, 3999),
    )


def test_uids_and_gids_may_lie_elsewhere_and_the_shorter_counts() -> None:
    plan = personal("ann:100000:65536\n", "ann:500000:4000\n")
    assert plan.end == 4001
    assert plan.outside(1000) == (100999, 500999)
    assert plan.vm_count == 3001


@pytest.mark.parametrize("table", ["", "# nothing\n", "bob:100000:65536\n", "ann:x:y\nann\n"])
def test_too_few_ids_are_told_with_the_line_to_add(table: str) -> None:
    with pytest.raises(HostLacks) as caught:
        personal(table)
    assert caught.value.detail["capability"] == "subids"
    first = 165536 if "bob" in table else 100000
    line = f"echo ann:{first}:65536 | sudo tee -a /etc/subuid /etc/subgid"
    assert caught.value.hint == line


def test_the_file_that_is_short_is_named() -> None:
    with pytest.raises(HostLacks, match="/etc/subgid gives ann 10 ids"):
        personal(USUAL, "ann:100000:10\n")
    assert personal(f"ann:100000:{FEWEST}\n").vm_count > 1000


def test_a_line_to_add_is_free_in_both_files_and_is_enough() -> None:
    assert add_range("ann", 10, USUAL, "bob:200000:5\n").startswith("echo ann:200005:10 ")
    plan = personal(USUAL)
    line = more_blocks("ann", plan, USUAL, USUAL).split()[1]
    assert personal(f"{USUAL}{line}\n").block_count == 4


def test_root_splits_its_ranges_without_a_map() -> None:
    table = "ann:100000:65536\nguesthouse:300000:65536\nguesthouse:500000:100000\n"
    plan = system_plan(table, table)
    assert not plan.mapped
    assert plan.vm(0) == GuestIdentity(300999, 300999)
    assert plan.service(0) == GuestIdentity(300000, 300000)
    # Containers get the host's own numbers, in as many pieces as the ranges have.
    assert plan.block_count == 1
    assert plan.block(0).uids == (Extent(0, 365535, 1), Extent(1, 500000, 65535))
    assert system_plan("", "").vm(0).uid == UNCLAIMED_FIRST + 999


def test_a_living_namespace_has_the_plan_of_its_map() -> None:
    text = "         0       1000          1\n         1     100000      65536\n"
    assert living_plan(text, text) == personal(USUAL)


def test_numbers_that_are_none() -> None:
    plan = personal(USUAL)
    for wrong in (lambda: plan.vm(-1), lambda: plan.block(-1), lambda: plan.service(999)):
        with pytest.raises(InvalidInput):
            wrong()
    with pytest.raises(InvalidInput):
        plan.outside(70000)


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 200_000)), min_size=1, max_size=6),
    st.integers(0, 10**6),
)
def test_no_id_is_mapped_twice_and_none_is_below_65536(
    ranges: list[tuple[int, int]], uid: int
) -> None:
    text = "".join(f"ann:{first}:{count}\n" for first, count in ranges)
    assert len(ranges_of(text, ("ann",))) == len(ranges)
    try:
        plan = personal(text, uid=uid)
    except HostLacks:
        return
    outside = sorted((extent.outside, extent.outside + extent.size) for extent in plan.uids)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(outside))
    inside = [(extent.inside, extent.inside + extent.size) for extent in plan.uids]
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(inside))
    assert min(extent.outside for extent in plan.uids[1:]) >= 65536
    # Every id of a range that may be mapped is: nothing is lost.
    allowed = {number for first, count in ranges for number in (first, first + count - 1)}
    for number in allowed - {uid}:
        if number >= 65536:
            assert any(start <= number < end for start, end in outside)
