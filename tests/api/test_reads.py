"""What is read comes from the view, whole and as described."""

from __future__ import annotations

import os

import httpx
import pytest
from msgspec import structs

from guesthouse import __version__
from guesthouse.api import guest_list
from guesthouse.api.guest_list import GuestList
from guesthouse.model.document import decode_strict, encode
from guesthouse.model.reports import GuestView, HouseInfo, ImageView
from guesthouse.model.states import GuestState
from guesthouse.store.contract import Put
from tests.api.api_house import ApiHouse, guest_document, image_document


async def test_the_house_says_who_it_is(api: httpx.AsyncClient) -> None:
    answer = await api.get("/v1")
    info = decode_strict(answer.content, HouseInfo)
    assert (info.api, info.pid, info.mode.value) == (1, os.getpid(), "personal")


async def test_guests_are_listed_by_name(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.add(guest_document("web"), guest_document("db", GuestState.RUNNING))
    answer = await api.get("/v1/guests")
    found = decode_strict(answer.content, list[GuestView])
    assert [guest.name for guest in found] == ["db", "web"]
    assert found[0].status.state is GuestState.RUNNING
    assert found[0].image == "micro"


async def test_an_unchanged_list_is_not_sent_again(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.add(guest_document("web"))
    first = await api.get("/v1/guests")
    tag = {"If-None-Match": first.headers["etag"]}
    again = await api.get("/v1/guests", headers=tag)
    assert (again.status_code, again.content) == (304, b"")
    await house.add(guest_document("db"))
    changed = await api.get("/v1/guests", headers=tag)
    assert changed.status_code == 200
    assert len(changed.json()) == 2


async def test_the_list_shows_what_only_memory_knows(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    guest = await house.guest("web")
    tags, jobs = set(), []
    for change in ({}, {"job": "J"}, {"addresses": ("10.0.2.15",)}, {"pending": ("cpus",)}):
        view = structs.replace(house.guest_view(guest), **change)
        house.guest_view = lambda _, view=view: view  # type: ignore[method-assign]  # a double of one method
        for _ in range(2):
            answer = await api.get("/v1/guests")
            assert answer.content == encode([view])
            tags.add(answer.headers["etag"])
        jobs.append(answer.json()[0]["job"])
        del house.guest_view
    assert len(tags) == 4
    assert jobs == [None, "J", None, None]


async def test_more_guests_than_are_kept_encoded(house: ApiHouse) -> None:
    guests = [guest_document(f"g{number}") for number in range(5)]
    pairs = [(guest, house.guest_view(guest)) for guest in guests]
    small, large = GuestList(), GuestList()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guest_list, "BUDGET", 2 * len(encode(pairs[0][1])) + 10)
        answers = {small.encode(pairs) for _ in range(3)}
    assert answers == {large.encode(pairs)}
    assert decode_strict(answers.pop()[0], list[GuestView]) == [view for _, view in pairs]


async def test_a_guest_answers_to_name_id_and_prefix(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    guest = guest_document("web")
    await house.add(guest)
    for ref in ("web", guest.id, guest.id[:20], guest.id.lower()):
        assert (await api.get(f"/v1/guests/{ref}")).json()["id"] == guest.id


async def test_an_ambiguous_prefix_is_refused(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.add(guest_document("web"), guest_document("db"))
    assert len({guest[:6] for guest in house.view.guests}) == 1  # ids begin with the time
    answer = await api.get(f"/v1/guests/{next(iter(house.view.guests))[:6]}")
    assert answer.status_code == 400
    assert len(answer.json()["context"]["matches"]) == 2


async def test_an_unknown_guest_is_a_problem_with_similar_names(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await house.add(guest_document("webserver"))
    answer = await api.get("/v1/guests/webservre")
    problem = answer.json()
    assert answer.status_code == 404
    assert problem["code"] == "not-found"
    assert problem["type"] == "urn:guesthouse:error:not-found"
    assert problem["instance"] == "/v1/guests/webservre"
    assert problem["context"]["similar"] == ["webserver"]
    assert "webserver" in problem["hint"]


async def test_images_have_slashes_in_their_names(api: httpx.AsyncClient, house: ApiHouse) -> None:
    older, newer = image_document("debian/12"), image_document("debian/12")
    await house.add(older, newer, image_document("micro"))
    listed = decode_strict((await api.get("/v1/images")).content, list[ImageView])
    assert [image.id for image in listed[:2]] == [newer.id, older.id]
    for ref in ("debian/12", "debian%2F12", newer.id):
        assert (await api.get(f"/v1/images/{ref}")).json()["id"] == newer.id
    missing = await api.get("/v1/images/debian/13")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown-image")


async def test_an_image_says_who_uses_it(api: httpx.AsyncClient, house: ApiHouse) -> None:
    known = {"name": "micro", "description": "A tiny Linux."}
    assert (await api.get("/v1/images-known")).json() == [{**known, "built": False}]
    await house.guest("web", start=False)
    assert (await api.get("/v1/images/micro")).json()["in_use_by"] == ["web"]
    assert (await api.get("/v1/images-known")).json() == [{**known, "built": True}]


async def test_the_host_tells_what_it_lacks(api: httpx.AsyncClient) -> None:
    facts = (await api.get("/v1/host")).json()
    assert facts["capabilities"][0]["cure"] == "modprobe kvm"
    assert (await api.post("/v1/host/probe")).json()["cpus"] == facts["cpus"]


async def test_documents_that_do_not_parse_are_reported(
    api: httpx.AsyncClient, house: ApiHouse
) -> None:
    await house.add(guest_document("web"))
    revision = await house.rooms.documents.store.commit([Put("guests/broken", b'{"schema":1}')])
    await house.view.wait_for(revision)
    assert list((await api.get("/v1")).json()["quarantined"]) == ["guests/broken"]
    assert [guest["name"] for guest in (await api.get("/v1/guests")).json()] == ["web"]


async def test_a_screenshot_is_a_png(api: httpx.AsyncClient, house: ApiHouse) -> None:
    await house.guest("web")
    await house.add(guest_document("off"))
    picture = await api.get("/v1/guests/web/screenshot")
    assert picture.headers["content-type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG")
    off = await api.get("/v1/guests/off/screenshot")
    assert (off.status_code, off.json()["code"]) == (409, "invalid-state")


@pytest.mark.parametrize(("tail", "size"), [("", 8890), ("?tail=9", 9), ("?tail=0", 0)])
async def test_logs_are_text_from_their_end(
    api: httpx.AsyncClient, house: ApiHouse, tail: str, size: int
) -> None:
    await house.add(guest_document("web"))
    house.serial_log("web").write_bytes(house.past)
    answer = await api.get(f"/v1/guests/web/logs{tail}")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.content == house.past[len(house.past) - size :]


@pytest.mark.parametrize("source", ["serial", "engine", "house"])
async def test_every_log_can_be_read(api: httpx.AsyncClient, house: ApiHouse, source: str) -> None:
    await house.guest("web")
    answer = await api.get(f"/v1/guests/web/logs?source={source}")
    expected = {"serial": "web: started", "engine": "", "house": "guest.launch"}
    assert expected[source] in answer.text


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/guests", "/v1/guests/web", "/v1/host", "/v1/jobs", "/v1/openapi.json"]
)
async def test_head_answers_what_get_would_without_its_body(
    api: httpx.AsyncClient, house: ApiHouse, path: str
) -> None:
    await house.add(guest_document("web"))
    got, head = await api.get(path), await api.head(path)
    assert head.status_code == got.status_code == 200
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.content == b""


@pytest.mark.parametrize("path", ["/v1/events", "/v1/guests/web/logs?follow=true"])
async def test_head_of_a_stream_ends(api: httpx.AsyncClient, house: ApiHouse, path: str) -> None:
    await house.add(guest_document("web"))
    assert (await api.head(path)).status_code == 200
    # The connection is usable again: the answer above was complete.
    assert (await api.get("/v1")).status_code == 200


async def test_the_version_is_the_package_s(api: httpx.AsyncClient) -> None:
    assert (await api.get("/v1/openapi.json")).json()["info"]["version"] == __version__
