"""What every user should be told stands in the house's report, and a list points there."""

from __future__ import annotations

import httpx

from guesthouse.store.contract import Put
from tests.api.api_house import ApiHouse

NOTICE = "guesthouse-notice"


async def test_nothing_is_to_be_told(api: httpx.AsyncClient) -> None:
    assert NOTICE not in (await api.get("/v1/guests")).headers
    assert (await api.get("/v1")).json()["code_changed"] is False


async def test_documents_that_are_set_aside(api: httpx.AsyncClient, house: ApiHouse) -> None:
    ops = [Put("guests/broken", b"{")]
    await house.view.wait_for(await house.rooms.documents.store.commit(ops))
    answer = await api.get("/v1/guests")
    assert (answer.json(), answer.headers[NOTICE]) == ([], "/v1")
    same = await api.get("/v1/guests", headers={"If-None-Match": answer.headers["etag"]})
    assert (same.status_code, same.headers[NOTICE]) == (304, "/v1")


async def test_a_program_that_was_upgraded(api: httpx.AsyncClient, house: ApiHouse) -> None:
    house.installed.changed = True
    assert (await api.get("/v1/guests")).headers[NOTICE] == "/v1"
    assert (await api.get("/v1")).json()["code_changed"] is True
