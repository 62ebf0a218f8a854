"""The view: fed by a real store, found by references, quarantining what does not parse."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from guesthouse.errors import (
    DeadlineExceeded,
    InvalidInput,
    NameTaken,
    NotFound,
    RevisionConflict,
    UnknownImage,
)
from guesthouse.model.document import SCHEMA, encode
from guesthouse.model.guest import Guest, GuestSpec, GuestStatus
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image
from guesthouse.model.states import GuestState
from guesthouse.store.contract import ABSENT, Check, Delete, Put
from guesthouse.store.documents import GUESTS, Documents
from guesthouse.store.sqlite import SqliteStore
from guesthouse.store.view import QUARANTINE, RESYNC, Event, Subscription, View

DEADLINE = 30


def guest(name: str, id: str = "") -> Guest:
    return Guest(
        id=id or new_id(),
        name=name,
        uuid="00000000-0000-4000-8000-000000000000",
        number=0,
        created_at=1.0,
        spec=GuestSpec(image="micro", image_id=new_id()),
        status=GuestStatus(state=GuestState.STOPPED, since=1.0),
    )


def image(name: str) -> Image:
    return Image(id=new_id(), name=name, digest="d", size=1, created_at=1.0)


@pytest.fixture
async def documents(tmp_path: Path) -> AsyncIterator[Documents]:
    store = await SqliteStore.open(tmp_path / "guesthouse.db", history=50)
    yield Documents(store)
    await store.close()


@pytest.fixture
async def view(documents: Documents) -> AsyncIterator[View]:
    opened = await View.open(documents.store)
    yield opened
    await opened.close()


async def put(documents: Documents, *docs: Guest | Image) -> int:
    ops = [
        documents.guests.put_op(d) if isinstance(d, Guest) else documents.images.put_op(d)
        for d in docs
    ]
    return await documents.store.commit(ops)


async def take(events: Subscription, count: int) -> list[Event]:
    async with asyncio.timeout(DEADLINE):
        return [await anext(events) for _ in range(count)]


async def test_shows_what_was_there_and_what_comes(documents: Documents) -> None:
    old = guest("old")
    await put(documents, old)
    view = await View.open(documents.store)
    try:
        guests = view.guests
        assert dict(guests) == {old.id: old}
        new = guest("new")
        revision = await put(documents, new)
        await view.wait_for(revision)
        assert guests[new.id] == new
        assert view.revisions[GUESTS.key(new.id)] == revision == view.revision
        await view.wait_for(await documents.store.commit([GUESTS.delete_op(old.id)]))
        assert old.id not in guests
        with pytest.raises(NotFound):
            view.guest("old")
    finally:
        await view.close()


async def test_references(documents: Documents, view: View) -> None:
    one, two = guest("web", "01ABCDEF" + "0" * 18), guest("db", "01ABCDEG" + "0" * 18)
    await view.wait_for(await put(documents, one, two))
    assert view.guest("web") is view.guest(one.id) is view.guest("01abcdef")
    with pytest.raises(InvalidInput, match="2 different guests") as ambiguous:
        view.guest("01ABCDE")
    assert ambiguous.value.detail["matches"] == [one.id, two.id]
    with pytest.raises(NotFound, match="'01ABC'"):  # too short to stand for an id
        view.guest("01ABC")
    with pytest.raises(NotFound) as unknown:
        view.guest("wev")
    assert "web" in unknown.value.hint
    assert "guest ls" in unknown.value.hint
    assert unknown.value.detail["similar"] == ["web"]


async def test_renaming_moves_the_index(documents: Documents, view: View) -> None:
    web = guest("web")
    await view.wait_for(await put(documents, web))
    renamed = await documents.guests.update(
        web.id, lambda g: msgspec.structs.replace(g, name="www")
    )
    await view.wait_for(renamed.revision)
    assert view.guest("www").id == web.id
    with pytest.raises(NotFound):
        view.guest("web")


async def test_newest_image_of_a_name(documents: Documents, view: View) -> None:
    old, new = image("debian/12"), image("debian/12")
    await view.wait_for(await put(documents, new, old))
    assert view.image("debian/12") == new
    await view.wait_for(await documents.store.commit([documents.images.delete_op(new.id)]))
    assert view.image("debian/12") == old
    with pytest.raises(UnknownImage, match=r"debian/12.*guest image ls"):
        view.image("debian/13")


async def test_unparsable_documents_are_quarantined_and_kept(
    documents: Documents, view: View
) -> None:
    good = guest("good")
    await view.wait_for(await put(documents, good))
    key, other = GUESTS.key(good.id), GUESTS.key(new_id())
    newer = json.loads(encode(good)) | {"schema": SCHEMA + 1}
    with view.subscribe() as events:
        revision = await documents.store.commit(
            [Put(key, json.dumps(newer).encode()), Put(other, b"{")]
        )
        assert await take(events, 3) == [
            Event("guest", good.id, None, revision),
            Event(QUARANTINE, key, None, revision),
            Event(QUARANTINE, other, None, revision),
        ]
        assert set(view.quarantined) == {key, other}
        assert str(SCHEMA + 1) in view.quarantined[key]
        assert view.newer == view.quarantined[key]
        assert good.id not in view.guests
        assert await documents.store.get(other) is not None

        back = await documents.store.commit([Put(key, encode(good)), Delete(other)])
        assert await take(events, 3) == [
            Event("guest", good.id, good, back),
            Event(QUARANTINE, key, None, back),
            Event(QUARANTINE, other, None, back),
        ]
    assert not view.quarantined
    assert view.newer == ""
    assert view.guest("good") == good


async def test_a_document_under_another_key_is_quarantined(
    documents: Documents, view: View
) -> None:
    key = GUESTS.key(new_id())
    await view.wait_for(await documents.store.commit([Put(key, encode(guest("web")))]))
    assert "id" in view.quarantined[key]


async def test_unknown_keys_are_left_alone(documents: Documents, view: View) -> None:
    await view.wait_for(await documents.store.commit([Put("names/guests/a", b"x"), Put("z", b"")]))
    assert not view.quarantined


async def test_slow_subscriber_is_told_to_read_again(
    documents: Documents, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guesthouse.store.view.CAPACITY", 3)
    with view.subscribe() as events:
        revision = 0
        for n in range(5):
            revision = await put(documents, guest(f"g{n}"))
        await view.wait_for(revision)
        got = await take(events, 2)
        assert [e.kind for e in got] == [RESYNC, "guest"]
        assert got[-1].revision == revision


async def test_subscription_to_some_kinds_ends_with_closing(
    documents: Documents, view: View
) -> None:
    events = view.subscribe(kinds=["image"])
    debian = image("debian/12")
    await view.wait_for(await put(documents, guest("web"), debian))
    assert (await take(events, 1))[0].document == debian
    events.close()
    assert [event async for event in events] == []


async def test_compacted_watch_lists_again(
    documents: Documents, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guesthouse.store.watching.CAPACITY", 2)
    with view.subscribe() as events:
        # One batch of transactions is published at once, so the view cannot keep up with it.
        revisions = await asyncio.gather(*(put(documents, guest(f"g{n}")) for n in range(30)))
        await view.wait_for(max(revisions))
        async with asyncio.timeout(DEADLINE):
            async for event in events:
                if event.kind == RESYNC:
                    break
    assert {g.name for g in view.guests.values()} == {f"g{n}" for n in range(30)}
    await view.wait_for(await put(documents, guest("later")))
    assert view.guest("later")


async def test_waiting_for_what_never_comes(view: View) -> None:
    with pytest.raises(DeadlineExceeded):
        await view.wait_for(view.revision + 1, timeout=0.05)


async def test_ten_thousand_documents(documents: Documents) -> None:
    ids = [new_id() for _ in range(10_000)]
    for start in range(0, len(ids), 100):
        await documents.store.commit(
            [documents.guests.put_op(guest(f"g-{id.lower()}", id)) for id in ids[start:][:100]]
        )
    view = await View.open(documents.store)
    try:
        assert len(view.guests) == 10_000
        for id in ids:  # by an index: searching would take minutes
            assert view.guest(f"g-{id.lower()}").id == id
    finally:
        await view.close()


async def test_update_repeats_after_other_writers(documents: Documents) -> None:
    web = guest("web")
    await put(documents, web)

    async def count() -> None:
        await documents.guests.update(
            web.id, lambda g: msgspec.structs.replace(g, number=g.number + 1)
        )

    await asyncio.gather(*(count() for _ in range(10)))
    assert (await documents.guests.require(web.id)).doc.number == 10


async def test_update_without_a_difference_writes_nothing(documents: Documents) -> None:
    web = guest("web")
    revision = await put(documents, web)
    assert (await documents.guests.update(web.id, lambda g: g)).revision == revision
    assert documents.store.revision == revision


async def test_update_gives_up_on_a_failing_extra_op(documents: Documents) -> None:
    web = guest("web")
    await put(documents, web)
    calls = 0

    def change(g: Guest) -> Guest:
        nonlocal calls
        calls += 1
        return msgspec.structs.replace(g, number=1)

    with pytest.raises(RevisionConflict):
        await documents.guests.update(web.id, change, extra_ops=[Check("guests/x", 5)])
    assert calls == 1
    with pytest.raises(NotFound):
        await documents.guests.update("nobody", change)


async def test_names_are_unique(documents: Documents) -> None:
    guests, one, two = documents.guests, guest("web"), guest("web")
    revision = await documents.store.commit([guests.put_op(one), guests.claim_op("web", one.id)])
    with pytest.raises(RevisionConflict) as caught:
        await documents.store.commit([guests.put_op(two, ABSENT), guests.claim_op("web", two.id)])
    assert isinstance(guests.name_conflict(caught.value, "web"), NameTaken)
    assert guests.name_conflict(caught.value, "other") is caught.value
    assert await guests.named("web") == (one.id, revision)
    await documents.store.commit([guests.release_op("web", revision)])
    assert await guests.named("web") is None


async def test_list_sets_broken_documents_apart(documents: Documents) -> None:
    web = guest("web")
    await put(documents, web)
    revision = await documents.store.commit([Put("guests/bad", b"[]")])
    listed = await documents.guests.list()
    assert [v.doc for v in listed.documents] == [web]
    assert list(listed.broken) == ["guests/bad"]
    assert listed.revision == revision
    with pytest.raises(InvalidInput):
        await documents.guests.get("bad")
