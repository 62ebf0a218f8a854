"""What is in use: properties over random houses, and named cases."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guesthouse.errors import EngineError, NotFound
from guesthouse.model.device import Disk
from guesthouse.model.guest import BootPath, Guest, GuestSpec, GuestStatus, LaunchRecord
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image
from guesthouse.model.states import GuestState
from guesthouse.model.volume import Volume
from guesthouse.storage import chains
from guesthouse.storage.usage import (
    DOOMED,
    Holder,
    doom,
    layers_in_use,
    lineage,
    unused,
    users_of,
)

IDS = [new_id() for _ in range(12)]


def volume(ident: str, parent: str = "", *, immutable: bool = True) -> Volume:
    return Volume(id=ident, parent=parent, immutable=immutable, size=1 << 20, created_at=0.0)


def guest(name: str, *tops: str, state: GuestState = GuestState.STOPPED) -> Guest:
    disks = tuple(Disk(name=f"d{n}", volume=top, size=1) for n, top in enumerate(tops))
    spec = GuestSpec(image="debian/12", image_id="", disks=disks)
    status = GuestStatus(state=state, since=0.0)
    return Guest(
        id=new_id(), name=name, uuid="", number=0, created_at=0.0, spec=spec, status=status
    )


def image(name: str, top: str) -> Image:
    return Image(id=new_id(), name=name, digest="", volume=top, size=1, created_at=0.0)


def launched(owner: Guest, *tops: str) -> Guest:
    record = LaunchRecord(
        incarnation=1, argv=(), machine="", cpu="", accelerator="tcg", engine="", pid=1,
        boot=BootPath.DISK, spec=guest("x", *tops).spec, pid_start=1, boot_id="", launched_at=0.0,
    )  # fmt: skip
    return msgspec.structs.replace(owner, launch=record)


@st.composite
def houses(draw: st.DrawFn) -> tuple[list[Guest], list[Image], dict[str, Volume], list[Holder]]:
    """Random volumes (with missing parents and loops too) and random holders of them."""
    ids = st.sampled_from(IDS)
    present = draw(st.sets(ids))
    volumes = {i: volume(i, draw(st.one_of(st.just(""), ids))) for i in sorted(present)}
    guests = [guest(f"g{n}", *tops) for n, tops in enumerate(draw(st.lists(st.lists(ids))))]
    images = [image(f"i{n}", top) for n, top in enumerate(draw(st.lists(ids)))]
    held = [Holder(f"s{n}", tuple(tops)) for n, tops in enumerate(draw(st.lists(st.lists(ids))))]
    return guests, images, volumes, held


@given(houses())
def test_used_layers_are_closed_under_parents_and_split_the_volumes(house) -> None:
    guests, images, volumes, held = house
    used = layers_in_use(guests, images, volumes.values(), held)
    for ident in used:
        if ident in volumes and volumes[ident].parent:
            assert volumes[ident].parent in used
    for owner in guests:
        assert {disk.volume for disk in owner.spec.disks} <= used
    idle = [v.id for v in unused(guests, images, volumes.values(), held)]
    assert set(idle) == set(volumes) - used


@given(houses())
def test_a_layer_is_used_exactly_when_somebody_uses_it(house) -> None:
    guests, images, volumes, held = house
    used = layers_in_use(guests, images, volumes.values(), held)
    for ident in IDS:
        assert (ident in used) == bool(users_of(ident, guests, images, volumes.values(), held))


@given(houses())
def test_removing_what_is_unused_changes_nothing_for_the_others(house) -> None:
    guests, images, volumes, held = house
    used = layers_in_use(guests, images, volumes.values(), held)
    for gone in unused(guests, images, volumes.values(), held):
        del volumes[gone.id]
    assert layers_in_use(guests, images, volumes.values(), held) == used


@given(houses())
def test_unused_children_come_before_their_parents(house) -> None:
    guests, images, volumes, held = house
    order = {v.id: place for place, v in enumerate(unused(guests, images, volumes.values(), held))}
    for ident, place in order.items():
        below = lineage(volumes, ident)
        looped = volumes.get(below[-1]) and volumes[below[-1]].parent in below
        if not looped and volumes[ident].parent in order:
            assert place < order[volumes[ident].parent]


def test_users_have_the_names_that_people_know() -> None:
    base, middle, top = IDS[:3]
    volumes = {v.id: v for v in (volume(base), volume(middle, base), volume(top, middle))}
    found = users_of(
        base,
        [guest("web", top)],
        [image("debian/12", base)],
        volumes.values(),
        [Holder("snapshot before-upgrade of guest web", (middle,))],
    )
    assert found == [
        "guest web",
        "image debian/12",
        "snapshot before-upgrade of guest web",
    ]
    assert users_of(top, [guest("web", top)], [], volumes.values()) == ["guest web"]


def test_a_running_guest_holds_what_it_was_started_with() -> None:
    running = launched(guest("web", IDS[0], state=GuestState.RUNNING), IDS[1])
    assert layers_in_use([running], [], []) == {IDS[0], IDS[1]}
    stopped = launched(guest("web", IDS[0]), IDS[1])
    assert layers_in_use([stopped], [], []) == {IDS[0]}


def test_doomed_volumes_are_marked() -> None:
    assert doom(volume(IDS[0])).note == DOOMED


def test_a_chain_goes_from_top_to_base() -> None:
    a, b, c = IDS[:3]
    volumes = {v.id: v for v in (volume(a), volume(b, a), volume(c, b, immutable=False))}
    assert [v.id for v in chains.resolve(volumes, c)] == [c, b, a]


def test_a_chain_tells_what_is_wrong() -> None:
    a, b, c = IDS[:3]
    with pytest.raises(EngineError, match="loop"):
        chains.resolve({a: volume(a, b), b: volume(b, a)}, a)
    with pytest.raises(NotFound, match=f"{b}, which lies below {a}"):
        chains.resolve({a: volume(a, b)}, a)
    with pytest.raises(NotFound):
        chains.resolve({}, c)
    with pytest.raises(EngineError, match="may still be written"):
        chains.resolve({a: volume(a, b), b: volume(b, immutable=False)}, a)
