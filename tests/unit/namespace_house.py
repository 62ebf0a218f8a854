"""A house's namespace for a test, on hosts that let us have one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from guesthouse.errors import HostLacks
from guesthouse.host.capabilities import of_tun
from guesthouse.host.namespace import probing
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.process import is_alive

# Tunnel modules, where loaded, put these into every new network namespace.
FALLBACKS = frozenset(
    ["tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"]
)


def need_ids() -> None:
    """Skip where this user has no subordinate ids (root needs none)."""
    try:
        probing.wanted_plan()
    except HostLacks as lacks:
        pytest.skip(f"no subordinate ids: {lacks.message}")


def need_tun() -> None:
    """Skip where this user may not open /dev/net/tun."""
    found = of_tun()
    if not found.available:
        pytest.skip(f"no taps: {found.reason}")


@asynccontextmanager
async def namespace_house(folder: Path) -> AsyncIterator[HouseNamespace]:
    """A namespace that is gone at the end, with its holder."""
    need_ids()
    house = HouseNamespace(folder)
    await house.ensure()
    try:
        yield house
    finally:
        await house.dissolve()


def identity(kind: str, pid: int | str = "self") -> str:
    """Which namespace of that kind a process is in."""
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def processes_in(net: int) -> list[int]:
    """Living processes in the network namespace with that inode number."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                if (folder / "ns" / "net").stat().st_ino == net and is_alive(int(folder.name)):
                    found.append(int(folder.name))
    return found
