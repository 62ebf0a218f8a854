"""Cards of the house's network that move while their guests run, whoever opened their taps."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from guesthouse.errors import NotFound

from ..house_network import TestGuest, network, test_house
from .namespace_house import need_ids, need_tun

pytestmark = pytest.mark.rootless


@pytest.fixture(autouse=True)
def _needs() -> None:
    need_ids()
    need_tun()


async def take_address(guest: TestGuest) -> None:
    """What the guest does when it has asked."""
    lines = ["address flush dev eth0", f"address add {guest.address}/24 dev eth0", ""]
    await guest.space.run(["ip", "-batch", "-"], input="\n".join(lines).encode())


async def test_a_card_moves_under_its_guest(tmp_path: Path) -> None:
    async with test_house(tmp_path, network(), network(2, "dmz")) as house:
        web, db = await house.boot("web"), await house.boot("db")
        gate = await house.boot("gate", "dmz")
        assert await web.ping(db.address) and not await web.ping(gate.address, wait=1)
        there = msgspec.structs.replace(web.nic, network="dmz")
        for _ in range(2):
            await house.network.change(web.id, there, 0, hostname="web")
        assert not await web.ping(db.address, wait=1), "its old address is not its any more"
        await take_address(web)
        assert await web.ping(gate.address) and not await web.ping(db.address, wait=1)
        # The next daemon holds no tap: the guest's process does.
        await house.daemon_dies()
        await house.another_daemon()
        await house.network.change(web.id, web.nic, 0, hostname="web")
        await take_address(web)
        assert await web.ping(db.address) and not await web.ping(gate.address, wait=1)
        with pytest.raises(NotFound):
            await house.network.change(web.id, web.nic, 1, hostname="web")
        assert await web.ping(db.address)


async def test_a_card_goes_and_comes_again(tmp_path: Path) -> None:
    async with test_house(tmp_path) as house:
        web, db = await house.boot("web"), await house.boot("db")
        await house.network.detach(web.id, 0)
        assert not await web.ping(db.address, wait=1)
        web.crash()
        again = await web.attach()
        assert again.fd is not None and again.live == {"type": "tap", "id": "n0"}
        assert await db.ping(db.address)
