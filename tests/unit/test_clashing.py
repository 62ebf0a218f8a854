"""Routes of the host that come to lead where guests have their addresses."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from guesthouse.errors import ToolFailed
from guesthouse.model.checkup import Health
from guesthouse.model.network import Network, NetworkKind
from guesthouse.operations.clashing import Clashes

from .namespace_house import need_ids

LAN = Network(id="lan", name="lan", subnet4="10.200.1.0/24", created_at=0.0)
FAR = Network(id="far", name="far", subnet4="10.201.1.0/24", created_at=0.0)
BRIDGED = Network(
    id="up", name="up", kind=NetworkKind.BRIDGED, uplink="eth0", created_at=0.0
)  # it has no subnet of its own


class Host:
    def __init__(self, *routes: str) -> None:
        self.routes: tuple[str, ...] = routes
        self.broken = False

    async def __call__(self) -> tuple[str, ...]:
        if self.broken:
            raise ToolFailed("ip said no.")
        return self.routes


async def test_a_clash_that_arises_is_told_once_and_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = Host("default", "192.0.2.0/24")
    clashes = Clashes(lambda: [LAN, FAR, BRIDGED], host)
    with caplog.at_level(logging.WARNING):
        assert await clashes.look() == {}
        assert [one.health for one in await clashes.checks()] == [Health.FINE]
        host.routes += ("10.200.0.0/16",)
        assert await clashes.look() == {"lan": ("10.200.0.0/16",)} == await clashes.look()
    assert clashes.of("lan") == ("10.200.0.0/16",) and clashes.of("far") == ()
    assert caplog.text.count("cannot reach") == 1
    [check] = await clashes.checks()
    assert check.health is Health.NOTICE and "guest network create" in check.cure
    assert "network lan (10.200.1.0/24)" in check.message and "10.200.0.0/16" in check.message
    host.routes = ("default",)
    await clashes.look()
    assert clashes.of("lan") == ()


async def test_what_cannot_be_looked_at_is_a_finding() -> None:
    host = Host()
    assert await Clashes(list, host).checks() == []
    host.broken = True
    [check] = await Clashes(lambda: [LAN], host).checks()
    assert (check.health, check.message) == (Health.NOTICE, "ip said no.")


PROGRAM = """
import asyncio, subprocess
from guesthouse.model.network import Network
from guesthouse.network.house.hostside import routes
from guesthouse.operations.clashing import Clashes

async def main():
    lan = Network(id="lan", name="lan", subnet4="10.200.1.0/24", created_at=0.0)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    clashes = Clashes(lambda: [lan], routes)
    await clashes.start()
    print(clashes.of("lan"))
    for what in ("add", "delete"):
        subprocess.run(["ip", "route", what, "10.200.0.0/16", "dev", "lo"], check=True)
        async with asyncio.timeout(30):
            while bool(clashes.of("lan")) is (what == "delete"):
                await asyncio.sleep(0.05)
        print(clashes.of("lan"))
    await clashes.close()

asyncio.run(main())
"""


@pytest.mark.rootless
def test_a_route_that_comes_up_is_noticed() -> None:
    need_ids()
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    argv = ["unshare", "--map-root-user", "--net", sys.executable, "-c", PROGRAM]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout == "()\n('10.200.0.0/16',)\n()\n", done.stderr
