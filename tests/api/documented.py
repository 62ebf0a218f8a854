"""Checks real traffic against the OpenAPI document that the application itself serves."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import httpx
import jsonschema_rs

Json = dict[str, Any]


class _Operation(NamedTuple):
    path: str
    pattern: re.Pattern[str]
    methods: Json


class Documented:
    """:ivar seen: (method, path template, status) of every exchange checked."""

    def __init__(self, document: Json) -> None:
        self.document = document
        self.seen: set[tuple[str, str, int]] = set()
        self._validators: dict[str, Any] = {}
        self._operations = [
            _Operation(path, _pattern(path), methods)
            for path, methods in sorted(
                document["paths"].items(), key=lambda item: (item[0].count("{"), item[0])
            )
        ]

    def check(self, response: httpx.Response) -> None:
        """Raise unless the exchange is one that the document describes."""
        request = response.request
        method = "get" if request.method == "HEAD" else request.method.lower()
        operation = self._find(request.url.path)
        if operation is None or method not in operation.methods:
            self._check_refused(response, known=operation is not None)
            return
        described = operation.methods[method]
        self.seen.add((request.method, operation.path, response.status_code))
        answers = described["responses"]
        answer = answers.get(str(response.status_code)) or answers["default"]
        where = f"{request.method} {operation.path} -> {response.status_code}"
        for name, header in answer.get("headers", {}).items():
            assert not header["required"] or name in response.headers, f"{where}: no {name}"
        self._check_body(response, answer.get("content"), where)
        if response.is_success and request.method in {"POST", "PATCH"}:
            self._check_request(request, described, where)

    def schema(self, name: str, value: object) -> None:
        """Raise unless `value` is right for the component `name`."""
        self._validate({"$ref": f"#/components/schemas/{name}"}, value, name)

    def _find(self, path: str) -> _Operation | None:
        return next((op for op in self._operations if op.pattern.fullmatch(path)), None)

    def _check_refused(self, response: httpx.Response, *, known: bool) -> None:
        if response.request.method == "OPTIONS":
            assert response.status_code == 204
            return
        assert response.status_code in ({403, 405} if known else {403, 404, 405}), response.text
        assert response.headers["content-type"] == "application/problem+json"
        if response.request.method != "HEAD":
            self.schema("ProblemDetails", response.json())

    def _check_body(self, response: httpx.Response, content: Json | None, where: str) -> None:
        if content is None:
            assert not response.content, f"{where}: a body that nobody described"
            return
        media = response.headers["content-type"].partition(";")[0]
        assert media in content, f"{where}: {media} is not described"
        if media.endswith("json") and response.request.method != "HEAD":
            self._validate(content[media]["schema"], response.json(), where)
            if response.is_error:
                assert response.json()["status"] == response.status_code, where

    def _check_request(self, request: httpx.Request, described: Json, where: str) -> None:
        """What was accepted must also have been described."""
        body = described.get("requestBody")
        if not request.content:
            assert body is None or not body["required"], f"{where}: took an empty body"
            return
        assert body is not None, f"{where}: took a body that nobody described"
        schema = body["content"]["application/json"]["schema"]
        self._validate(schema, json.loads(request.content), f"{where} (request)")

    def _validate(self, schema: Json, value: object, where: str) -> None:
        key = json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[key] = jsonschema_rs.validator_for(whole)
        errors = [
            f"{error.instance_path}: {error}" for error in self._validators[key].iter_errors(value)
        ]
        assert not errors, f"{where}: {errors[:3]}"


def _pattern(path: str) -> re.Pattern[str]:
    # Names of images hold slashes; every other parameter is one segment.
    wide = path == "/v1/images/{ref}"
    return re.compile(re.sub(r"{\w+}", ".+" if wide else "[^/]+", path))
