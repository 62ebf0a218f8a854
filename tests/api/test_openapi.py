"""The OpenAPI document: whole, sound, and about everything that is served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest

from guesthouse.api.openapi import document
from guesthouse.errors import GuesthouseError
from guesthouse.model import reports
from tests.api.conftest import Served
from tests.api.documented import Json


@pytest.fixture
def described(served: Served) -> Json:
    return document(served.server.app)


def _operations(described: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _walk(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from _walk(child)
    elif isinstance(value, list):
        for child in value:
            yield from _walk(child)


async def test_what_is_served_is_what_is_made(api: httpx.AsyncClient, described: Json) -> None:
    answer = await api.get("/v1/openapi.json")
    assert answer.headers["content-type"] == "application/vnd.oai.openapi+json"
    assert answer.json() == json.loads(json.dumps(described))
    assert described["openapi"] == "3.1.0"


def test_every_path_of_the_contract_is_there(described: Json) -> None:
    expected = """
        GET /v1 | GET /v1/guests | POST /v1/guests | GET /v1/guests/{ref}
        PATCH /v1/guests/{ref} | DELETE /v1/guests/{ref} | POST /v1/guests/{ref}/start
        POST /v1/guests/{ref}/stop | POST /v1/guests/{ref}/restart | POST /v1/guests/{ref}/pause
        POST /v1/guests/{ref}/resume | POST /v1/guests/{ref}/reset | POST /v1/guests/{ref}/rename
        POST /v1/guests/{ref}/power-button | POST /v1/guests/{ref}/ports
        DELETE /v1/guests/{ref}/ports/{protocol}/{host_ip}/{host_port}
        GET /v1/guests/{ref}/shares | POST /v1/guests/{ref}/shares
        DELETE /v1/guests/{ref}/shares/{share}
        PUT /v1/guests/{ref}/nics/{nic}/impairment | GET /v1/guests/{ref}/nics/{nic}/capture
        GET /v1/guests/{ref}/nics | POST /v1/guests/{ref}/nics
        PATCH /v1/guests/{ref}/nics/{nic} | DELETE /v1/guests/{ref}/nics/{nic}
        GET /v1/guests/{ref}/screenshot | GET /v1/guests/{ref}/logs
        GET /v1/images | POST /v1/images | GET /v1/images/{ref} | DELETE /v1/images/{ref}
        GET /v1/images-known | GET /v1/jobs | GET /v1/jobs/{ref} | POST /v1/jobs/{ref}/cancel
        GET /v1/jobs/{ref}/log | GET /v1/jobs/{ref}/events | GET /v1/events | GET /v1/host
        POST /v1/host/probe | POST /v1/host/stop-guests | POST /v1/storage/collect
        POST /v1/daemon/stop | GET /v1/guests/{ref}/usage | GET /v1/usage | GET /v1/checkup
        GET /v1/openapi.json | GET /v1/trash | POST /v1/trash/{ref}/undelete
        DELETE /v1/trash/{ref} | GET /v1/recovery | POST /v1/recovery | GET /v1/support-bundle
        POST /v1/images-import | POST /v1/uploads | GET /v1/uploads/{upload}
        PUT /v1/uploads/{upload} | DELETE /v1/uploads/{upload}
        GET /v1/networks | POST /v1/networks | GET /v1/networks/{ref} | PATCH /v1/networks/{ref}
        DELETE /v1/networks/{ref} | POST /v1/networks/{ref}/confirm
        GET /v1/guests/{ref}/nics | POST /v1/guests/{ref}/nics
        PATCH /v1/guests/{ref}/nics/{nic} | DELETE /v1/guests/{ref}/nics/{nic}
        GET /v1/guests/{ref}/firewall | PATCH /v1/guests/{ref}/firewall
        POST /v1/guests/{ref}/firewall/test | POST /v1/guests/{ref}/firewall/rules
        PUT /v1/guests/{ref}/firewall/rules/{rule} | DELETE /v1/guests/{ref}/firewall/rules/{rule}
        GET /v1/networks/{ref}/firewall | PATCH /v1/networks/{ref}/firewall
        POST /v1/networks/{ref}/firewall/rules | PUT /v1/networks/{ref}/firewall/rules/{rule}
        DELETE /v1/networks/{ref}/firewall/rules/{rule}
        GET /v1/firewall/counters | GET /v1/firewall/log
        GET /v1/security-groups | POST /v1/security-groups | GET /v1/security-groups/{ref}
        PATCH /v1/security-groups/{ref} | DELETE /v1/security-groups/{ref}
        POST /v1/security-groups/{ref}/rules | PUT /v1/security-groups/{ref}/rules/{rule}
        DELETE /v1/security-groups/{ref}/rules/{rule}
        GET /v1/address-sets | POST /v1/address-sets | GET /v1/address-sets/{ref}
        PATCH /v1/address-sets/{ref} | DELETE /v1/address-sets/{ref}
    """
    wanted = {line.strip() for line in expected.replace("\n", "|").split("|") if line.strip()}
    assert {f"{m.upper()} {path}" for path, m, _ in _operations(described)} == wanted
    assert set(described["x-websockets"]) == {
        f"/v1/guests/{{ref}}/{stream}" for stream in ("exec", "console", "vnc")
    }


def test_every_operation_says_what_it_does(described: Json) -> None:
    names = set()
    for path, method, operation in _operations(described):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert not operation["summary"].endswith("."), where
        assert operation["operationId"] not in names, where
        names.add(operation["operationId"])
        for parameter in operation["parameters"]:
            assert parameter["description"], f"{where}: {parameter['name']}"
        placed = [p["name"] for p in operation["parameters"] if p["in"] == "path"]
        assert placed == [part[1:-1] for part in path.split("/") if part.startswith("{")]
        answers = operation["responses"]
        assert all(answer["description"] for answer in answers.values()), where
        assert {"400", "500", "default"} <= set(answers), where
        if method != "get" and "202" in answers and "Location" in answers["202"].get("headers", {}):
            assert any(p["name"] == "wait" for p in operation["parameters"]), where


def test_every_reference_leads_somewhere_and_every_noun_is_used(described: Json) -> None:
    refs = {found["$ref"] for found in _walk(described) if "$ref" in found}
    components = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert refs == components


def test_schemas_are_sound_and_strict(described: Json) -> None:
    for name, schema in described["components"]["schemas"].items():
        jsonschema_rs.meta.validate(schema)
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is False, name
        assert ":ivar" not in json.dumps(schema), name


def test_fields_carry_their_docstrings(described: Json) -> None:
    launch = described["components"]["schemas"]["LaunchRequest"]
    assert "generated" in launch["properties"]["name"]["description"]
    assert launch["required"] == ["image"]


def test_requests_are_described_as_they_are_decoded(described: Json) -> None:
    for name in ("LaunchRequest", "SetRequest", "StopRequest", "RenameRequest", "ExecRequest"):
        schema = described["components"]["schemas"][name]
        fields = getattr(reports, name).__struct_fields__
        assert tuple(schema["properties"]) == fields


def test_errors_name_their_codes(described: Json) -> None:
    answers = described["paths"]["/v1/guests"]["post"]["responses"]
    assert "`name-taken`" in answers["409"]["description"]
    assert "application/problem+json" in answers["409"]["content"]
    assert GuesthouseError.code not in answers
