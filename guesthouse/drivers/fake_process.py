"""One process of the fake driver, as a file: whoever comes later finds it there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from guesthouse.drivers.base import Exit
from guesthouse.model.device import Nic, Publish, named_port, parse_publish
from guesthouse.model.document import convert_strict


class FakeProcess:
    """One process, as a file."""

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self._path = folder / f"{key}.json"

    @property
    def exists(self) -> bool:
        return self._path.exists()

    @property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._path.read_text())
        return facts

    def create(self, **facts: object) -> None:
        self._path.write_text(json.dumps({"exit": None, **facts}))

    def update(self, **facts: object) -> None:
        self._path.write_text(json.dumps({**self._facts, **facts}))

    def end(self, end: Exit) -> None:
        self.update(exit=[end.reason, end.message], ports=[])

    def alive(self, boot: str) -> bool:
        return self.exit is None and self._facts["boot"] == boot

    @property
    def exit(self) -> Exit | None:
        found = self._facts["exit"]
        return Exit(*found) if found else None

    @property
    def guest(self) -> str:
        return str(self._facts["guest"])

    @property
    def pid(self) -> int:
        return int(self._facts["pid"])

    @property
    def state(self) -> tuple[str, str]:
        return self._facts["state"], self._facts["reason"]

    @property
    def ports(self) -> list[Publish]:
        return [named_port(parse_publish(t), must_name=False) for t in self._facts["ports"]]

    @ports.setter
    def ports(self, ports: Sequence[Publish]) -> None:
        self.update(ports=[str(port) for port in ports])

    @property
    def nics(self) -> tuple[Nic, ...]:
        return convert_strict(self._facts["nics"], tuple[Nic, ...], what="cards")

    @nics.setter
    def nics(self, nics: Iterable[Nic]) -> None:
        self.update(nics=msgspec.to_builtins(tuple(nics)))
