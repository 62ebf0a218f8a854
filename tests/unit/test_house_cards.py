"""Cards of the house's network that move while their guests run, whoever opened their taps."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from guesthouse.errors import NotFound
from guesthouse.network.house import dnsmasq

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


async def ask(guest: TestGuest) -> str:
    """The address that the network's DHCP server gives it."""
    argv = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "3", "-s", "/bin/echo"]
    done = await guest.run(*argv, check=False)
    found = re.search(r"lease of ([0-9.]+) obtained", (done.out + done.err).decode())
    return found[1] if found else ""


async def test_an_address_that_comes_to_another_card_is_given_to_it(tmp_path: Path) -> None:
    """dnsmasq remembers for an hour who had it."""
    async with test_house(tmp_path) as house:
        await house.boot("db")
        web = await house.boot("web", configure=False)
        before = web.address
        assert await ask(web) == before
        await house.network.detach(web.id, 0)
        del house.records.seats[web.id, 0]
        other = await house.boot("other", configure=False)
        assert (other.address, other.nic.mac == web.nic.mac) == (before, True)
        other.nic = msgspec.structs.replace(other.nic, mac="52:67:68:00:0f:01")
        await other.attach()
        await other.space.run(["ip", "link", "set", "eth0", "address", other.nic.mac])
        assert await ask(other) == before


def test_what_a_server_must_forget() -> None:
    one, two = "a,10.0.0.1,[fd00::1],web,1h\n", "b,10.0.0.2,db,1h\n"
    for before, after, forget in (
        ("", one, False),
        (one, one + two, False),
        (one, one.replace("web", "www"), False),
        (one + two, two, True),
        (one, one.replace("10.0.0.1", "10.0.0.9"), True),
        (one, one.replace("a,", "c,"), True),
        (one, "a,10.0.0.1,web,1h\n", True),
    ):
        assert dnsmasq.gives_up(before, after) is forget
