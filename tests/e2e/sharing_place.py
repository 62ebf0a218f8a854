"""A micro guest under the QEMU driver whose shares a test adds and takes away, without a daemon."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from guesthouse.drivers.base import SSH_SOCKET, Running
from guesthouse.guestos.keys import ensure_key, public_line
from guesthouse.guestos.seed import seed_text
from guesthouse.guestos.ssh import GuestSsh
from guesthouse.host import virtiofsd
from guesthouse.host.secrets import Secrets
from guesthouse.model.guest import BootPath
from guesthouse.model.ids import new_id
from guesthouse.model.share import Share, Way
from guesthouse.shares.attached import GuestShares
from tests.contract.driver_house import MEBIBYTE, DriverHouse, driver_house

from .micro_image import micro_boot_files
from .qemu_guests import SECONDS, micro_guest, until

USER = "ada"


@dataclass
class Place:
    """:ivar folder: of the host, where shares are made. :ivar shares: of this guest.

    :ivar way: by which way shares go, if nothing else is said.
    """

    house: DriverHouse
    running: Running
    ssh: GuestSsh
    runtime: Path
    folder: Path
    shares: GuestShares
    way: Way = Way.SFTP

    def another_daemon(self) -> GuestShares:
        """What a daemon that was started again has: nothing but the documents."""
        return GuestShares(self.runtime, self.ssh, self.running, user=USER)

    def share(self, name: str, **more: object) -> Share:
        source = self.folder / name
        source.mkdir(exist_ok=True)
        fields = {"target": f"/mnt/{name}", "host_uid": os.getuid(), "host_gid": os.getgid()}
        fields["way"] = self.way
        fields |= {"name": name, "source": str(source), **more}
        return Share(**fields)  # type: ignore[arg-type]  # of many types

    async def sh(
        self, script: str, *, user: str = "root", code: int = 0, seconds: float = SECONDS
    ) -> str:
        ended, out, errors = await self.ssh.run(["sh", "-c", script], user=user, timeout=seconds)
        assert ended.code == code, (script, ended, out, errors)
        return out.decode()

    async def mounts(self) -> int:
        """How many shares the guest has mounted."""
        return int(await self.sh(r"grep -cE ' (fuse.sshfs|virtiofs) ' /proc/mounts || true"))

    async def reset(self) -> None:
        """Push its button, and wait until it can be entered again."""
        events = self.running.events()
        await self.running.reset()
        await until(events, "reset")
        self.ssh.drop()
        await until(events, "ssh-open")
        await self.ssh.answers(timeout=SECONDS)


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory(prefix="gs-") as text:
        folder = Path(text)
        key = ensure_key(Secrets(folder / "secrets"), new_id())
        async with driver_house("qemu", Path(tempfile.mkdtemp(prefix="gq-"))) as house:
            guest = micro_guest(memory=192 * MEBIBYTE)
            resources = house.resources(
                guest,
                boot=BootPath.KERNEL,
                boot_files=await micro_boot_files(),
                seed=seed_text("m1", USER, [public_line(key)], new_id()),
            )
            running = await house.driver.launch(guest, resources, incarnation=1, paused=True)
            events = running.events()
            await running.resume()
            await until(events, "ssh-open")
            ssh = GuestSsh(resources.runtime / SSH_SOCKET, key)
            await ssh.answers(timeout=SECONDS)
            shares = GuestShares(resources.runtime, ssh, running, user=USER)
            try:
                yield Place(house, running, ssh, resources.runtime, folder, shares)
            finally:
                shares.close()
                await ssh.close()
                await running.kill()


async def virtiofsd_here() -> str:
    """The Rust virtiofsd that maps owners; empty where there is none."""
    found = await virtiofsd.find()
    return found.path if found.rust and found.maps else ""
