"""Requests that are not right: refused with a problem that names what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from guesthouse.errors import all_errors
from tests.api.api_house import ApiHouse, guest_document
from tests.api.conftest import Served


@pytest.fixture
async def web(house: ApiHouse) -> AsyncIterator[str]:
    await house.add(guest_document("web"))
    yield "/v1/guests/web"


@pytest.mark.parametrize(
    ("request_of", "told"),
    [
        (
            ("POST", "/v1/guests", {"image": "micro", "cpu_count": 2}),
            ("unknown-field", "cpu_count"),
        ),
        (
            (
                "POST",
                "/v1/guests",
                {"image": "micro", "publish": [{"host_port": 1, "guest_port": 2, "ip": "x"}]},
            ),
            ("unknown-field", "publish[0].ip"),
        ),
        (("POST", "/v1/guests", {"image": "micro", "memory": "2G"}), ("invalid-input", "memory")),
        (("POST", "/v1/guests", {"image": "micro", "cpus": True}), ("invalid-input", "cpus")),
        (("POST", "/v1/guests", {"image": "micro", "cpus": 0}), ("invalid-input", "cpus")),
        (
            ("POST", "/v1/guests", {"image": "micro", "accelerator": "x"}),
            ("invalid-input", "accelerator"),
        ),
        (("POST", "/v1/guests", {}), ("invalid-input", "")),
        (("POST", "/v1/guests", []), ("invalid-input", "")),
        (("PATCH", "/v1/guests/web", {"memory": 1}), ("invalid-input", "memory")),
        (("PATCH", "/v1/guests/web", {"name": "x"}), ("unknown-field", "name")),
        (("POST", "/v1/guests/web/start", {"pause": True}), ("unknown-field", "pause")),
        (
            ("POST", "/v1/guests/web/start", {"ready_timeout": -1}),
            ("invalid-input", "ready_timeout"),
        ),
        (("POST", "/v1/guests/web/pause", {"now": True}), ("unknown-field", "now")),
        (("POST", "/v1/guests/web/rename", {"name": "Not A Name"}), ("invalid-input", "name")),
        (("POST", "/v1/images", {"name": "micro", "force": True}), ("unknown-field", "force")),
        (("POST", "/v1/daemon/stop", {"now": True}), ("unknown-field", "now")),
        (("POST", "/v1/host/probe", {"deep": True}), ("unknown-field", "deep")),
        (("POST", "/v1/storage/collect", {"all": True}), ("unknown-field", "all")),
    ],
)
async def test_a_wrong_body_names_its_field(
    api: httpx.AsyncClient, web: str, request_of: tuple[str, str, object], told: tuple[str, str]
) -> None:
    method, path, body = request_of
    code, field = told
    answer = await api.request(method, path, json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, code)
    if field:
        assert problem["context"]["field"] == field
    assert all_errors()[code].status == 400


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ("wait=soon", "invalid-input", "wait"),
        ("wait=-1", "invalid-input", "wait"),
        ("wait=nan", "invalid-input", "wait"),
        ("wait=", "invalid-input", "wait"),
        ("wait=1&wait=2", "invalid-input", "wait"),
        ("wiat=1", "unknown-field", "wiat"),
        ("%ff=1", "unknown-field", "\ufffd"),
    ],
)
async def test_a_wrong_query_names_its_parameter(
    api: httpx.AsyncClient, web: str, query: str, code: str, field: str
) -> None:
    answer = await api.post(f"{web}/start?{query}")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, code)
    assert problem["context"]["field"] == field


async def test_routes_without_parameters_know_none(api: httpx.AsyncClient) -> None:
    for path in ("/v1", "/v1/guests", "/v1/host", "/v1/images", "/v1/openapi.json"):
        assert (await api.get(f"{path}?pretty=1")).json()["code"] == "unknown-field"


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b'{"name": "\\ud800"}', b"[" * 100_000, b"nul", b'{"name": NaN}']
)
async def test_a_body_that_is_no_json(api: httpx.AsyncClient, web: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await api.post(f"{web}/rename", content=body, headers=headers)
    assert answer.json()["code"] == "invalid-input"


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""]
)
async def test_only_json_is_taken(api: httpx.AsyncClient, web: str, media: str) -> None:
    headers = {"Content-Type": media} if media else {}
    answer = await api.post(f"{web}/rename", content=b'{"name":"db"}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type")
    assert [guest["name"] for guest in (await api.get("/v1/guests")).json()] == ["web"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_a_mebibyte_is_refused(
    api: httpx.AsyncClient, web: str, chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    content: object = pieces() if chunked else b" " * (40 * 65536)
    headers = {"Content-Type": "application/json"}
    answer = await api.post(f"{web}/rename", content=content, headers=headers)  # type: ignore[arg-type]  # headers as the case has them
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert (await api.get("/v1")).status_code == 200


async def test_a_body_just_below_is_taken(api: httpx.AsyncClient, web: str) -> None:
    text = b'{"name":"db"}' + b" " * ((1 << 20) - 13)
    headers = {"Content-Type": "application/json"}
    answer = await api.post(f"{web}/rename?wait=30", content=text, headers=headers)
    assert answer.status_code == 202


async def test_unknown_paths_and_methods_are_problems_too(api: httpx.AsyncClient, web: str) -> None:
    missing = await api.get("/v1/gusets")
    assert (missing.status_code, missing.json()["code"]) == (404, "not-found")
    assert (await api.get("/%ed%a0%80/x")).status_code == 404
    wrong = await api.put(web)
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method-not-allowed")
    assert wrong.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH"
    socket = await api.get(f"{web}/exec")
    assert socket.status_code == 405
    assert "WebSocket" in socket.json()["hint"]
    assert (await api.request("BREW", web)).status_code == 405


async def test_a_defect_is_told_by_a_mark_alone(
    api: httpx.AsyncClient, house: ApiHouse, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("secret of the house")

    house.info = broken  # type: ignore[assignment, method-assign]  # a double of one method
    answer = await api.get("/v1")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert problem["context"]["defect"] in caplog.text
    assert "secret of the house" in caplog.text


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://house.evil", "file://"])
async def test_pages_of_other_sites_change_nothing(
    api: httpx.AsyncClient, web: str, origin: str
) -> None:
    answer = await api.post(f"{web}/start", headers={"Origin": origin})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    own = await api.post(f"{web}/start?wait=30", headers={"Origin": "http://house"})
    assert own.status_code == 202


async def test_a_client_that_leaves_in_the_middle_of_its_body(
    api: httpx.AsyncClient, served: Served, web: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await asyncio.open_unix_connection(str(served.path))
    writer.write(
        b"POST /v1/guests/web/rename HTTP/1.1\r\nHost: house\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    await writer.drain()
    writer.close()
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert (await api.get("/v1")).status_code == 200
    assert "defect" not in caplog.text


async def test_garbage_instead_of_http(api: httpx.AsyncClient, served: Served) -> None:
    reader, writer = await asyncio.open_unix_connection(str(served.path))
    writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400")
    writer.close()
    assert (await api.get("/v1")).status_code == 200
