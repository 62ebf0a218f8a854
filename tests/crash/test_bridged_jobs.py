"""A bridged network is made and removed, and the daemon is killed at points of it: the host has its
addresses, on the interface or on the bridge, and the house knows where.

The host is a network namespace; the matrix's own houses touch no interface. `GUESTHOUSE_SEED`
chooses the sample.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from guesthouse.errors import GuesthouseError
from guesthouse.model.job import Job
from guesthouse.model.network import NetworkKind
from guesthouse.model.networking import NetworkRequest
from guesthouse.network.bridged.plan import Names
from tests.bridged_host import BridgedHost, in_host
from tests.crash.daemon_house import CrashHouse
from tests.crash.matrix import Case, Fault, Point
from tests.e2e.conftest import until

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.timeout(600)]

SEED, SAMPLE = 20261124, 2
OFFICE = NetworkRequest(name="office", kind=NetworkKind.BRIDGED, uplink="eth0")


class Street:
    """:ivar before: the host as it was before any network."""

    def __init__(self, host: BridgedHost) -> None:
        self.host, self.before = host, host.state()
        self.house = CrashHouse(Path(tempfile.mkdtemp(prefix="gh-")), small=False)
        self.house.start()
        self._over = threading.Event()
        self._confirming = threading.Thread(target=self._confirm)
        self._confirming.start()

    def _confirm(self) -> None:
        """Whenever there is something to confirm, also after the daemon was killed."""
        while not self._over.wait(0.05):
            with suppress(GuesthouseError, OSError):
                if self.house.client.network("office").confirm_by is not None:
                    self.house.client.confirm_network("office")

    def close(self) -> None:
        self._over.set()
        self._confirming.join()
        self.house.close()

    def create(self) -> Job:
        return self.house.client.create_network(OFFICE)

    def remove(self) -> Job:
        return self.house.client.remove_network("office")

    def points(self, job: Job) -> list[Point]:
        """Those that were passed in it."""
        self.house.do(job)
        return [
            Point(one["kind"], one["what"], one["when"])
            for one in self.house.points()
            if one["job"] == job.id
        ]

    def strike(self, point: Point, doing: Callable[[], Job]) -> None:
        self.house.arm(Case("bridged", point, Fault.DAEMON))
        self.house.ask_again(doing)
        until(self.house.struck, seconds=60, say=f"{point} is reached")
        assert self.house.process is not None
        self.house.process.wait()

    def again(self) -> None:
        self.house.start()
        self.house.wait_idle()

    def is_made(self) -> bool:
        """The house has the network; what the house knows and what the host has must agree."""
        now: dict[str, Any] = self.host.state()
        networks = self.house.client.networks()
        if networks:
            bridge = Names.of(networks[0].id).bridge
            assert now["eth0"]["master"] == bridge and now[bridge]["addresses"]
        else:
            assert now == self.before
        assert self.host.reaches()
        return bool(networks)


@pytest.fixture
def street() -> Iterator[Street]:
    with in_host() as host:
        made = Street(host)
        try:
            yield made
        finally:
            made.close()


def test_killed_at_some_points(street: Street) -> None:
    strike_all(street, Random(os.environ.get("GUESTHOUSE_SEED") or SEED))


@pytest.mark.full
def test_killed_at_every_point(street: Street) -> None:
    strike_all(street, None)


def strike_all(street: Street, random: Random | None) -> None:
    """:param random: chooses some points; all without it."""
    creating = street.points(street.create())
    assert street.is_made()
    removing = street.points(street.remove())
    assert not street.is_made()
    assert {"step:create", "step:move"} <= {point.what for point in creating}
    assert len(creating) >= 8 and len(removing) >= 6
    for point in random.sample(creating, SAMPLE) if random else creating:
        street.strike(point, street.create)
        street.again()
        if street.is_made():
            street.house.do(street.remove())
            assert not street.is_made(), point
    for point in random.sample(removing, SAMPLE) if random else removing:
        street.house.do(street.create())
        street.strike(point, street.remove)
        street.again()
        if street.is_made():  # it was killed before it was accepted
            street.house.do(street.remove())
        assert not street.is_made(), point


def test_killed_with_what_moves(street: Street) -> None:
    """Nobody is left who could take back but the next daemon."""
    street._over.set()  # nobody confirms
    street._confirming.join()
    street.create()
    until(lambda: movers(street.house.folders.runtime), say="something moves")
    until(lambda: street.host.state()["eth0"]["master"], say="it is moved")
    street.house.kill()
    for pid in movers(street.house.folders.runtime):
        os.kill(pid, signal.SIGKILL)
    assert street.host.state() != street.before
    street.again()
    assert not street.is_made()
    [job] = [one for one in street.house.client.jobs() if one.kind == "network.create"]
    assert job.problem is not None and "killed" in job.problem.message


def movers(runtime: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if str(runtime / "bridged").encode() in words:
                found.append(int(process.name))
    return found
