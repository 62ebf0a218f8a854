"""The house's network, for real: as root and as an ordinary user, with small guests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ..house_network import TestHouse, test_house
from .namespace_house import need_ids, need_tun

pytestmark = pytest.mark.rootless


@pytest.fixture(autouse=True)
def _needs() -> None:
    need_ids()
    need_tun()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[TestHouse]:
    async with test_house(tmp_path) as made:
        yield made


async def test_two_guests_reach_one_another_by_name(house: TestHouse) -> None:
    web, db = await house.boot("web"), await house.boot("db")
    assert await web.ping(db.address)
    assert await web.ping(db.address6)
    for name in ("db", "db.lan.test"):
        assert await web.ask("10.201.1.1", name) == f"0 {db.address}"
        assert await web.ask("10.201.1.1", name, 6) == f"0 {db.address6}"
    assert await web.ask("fd42:201:1::1", "web") == f"0 {web.address}"
    assert (await web.ask("10.201.1.1", "nobody.lan.test")).startswith("3 ")
