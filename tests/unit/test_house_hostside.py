"""Changes of the host's addresses, in a network namespace that stands in for the host."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .namespace_house import need_ids

pytestmark = pytest.mark.rootless

PROGRAM = """
import asyncio, subprocess
from guesthouse.network.house.hostside import Changes, look

async def main():
    told = asyncio.Event()
    changes = Changes(told.set)
    before = await look()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for end in "12":
        subprocess.run(["ip", "address", "add", f"192.0.2.{end}/24", "dev", "lo"], check=True)
    await asyncio.wait_for(told.wait(), 30)
    after = await look()
    changes.close()
    print(before.addresses, after.addresses, after.networks)

asyncio.run(main())
"""


def test_changes_are_told() -> None:
    need_ids()
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    argv = ["unshare", "--map-root-user", "--net", sys.executable, "-c", PROGRAM]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "() ('192.0.2.1', '192.0.2.2') ('192.0.2.0/24',)\n", done.stderr
