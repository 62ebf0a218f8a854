"""Shared folders in a real micro guest: no network, no privilege, the guest's own sshfs."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from guesthouse.drivers.base import SSH_SOCKET, Running
from guesthouse.errors import InUse
from guesthouse.guestos.keys import ensure_key, public_line
from guesthouse.guestos.seed import seed_text
from guesthouse.guestos.ssh import GuestSsh
from guesthouse.host.secrets import Secrets
from guesthouse.model.guest import BootPath
from guesthouse.model.ids import new_id
from guesthouse.model.share import Share, Way
from guesthouse.shares.attached import GuestShares
from guesthouse.shares.choosing import HostAbilities, Wanted, choose
from tests.contract.driver_house import MEBIBYTE, DriverHouse, driver_house

from .micro_image import micro_boot_files
from .qemu_guests import SECONDS, micro_guest, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Place:
    house: DriverHouse
    running: Running
    ssh: GuestSsh
    runtime: Path
    folder: Path
    shares: GuestShares

    def another_daemon(self) -> GuestShares:
        """What a daemon that was started again has: nothing but the documents."""
        return GuestShares(self.runtime, self.ssh, self.running, user="ada")

    def share(self, name: str, **more: object) -> Share:
        source = self.folder / name
        source.mkdir(exist_ok=True)
        fields = {"target": f"/mnt/{name}", "host_uid": os.getuid(), "host_gid": os.getgid()}
        return Share(name=name, source=str(source), **{**fields, **more})  # type: ignore[arg-type]

    async def sh(self, script: str, *, user: str = "root", code: int = 0) -> str:
        ended, out, errors = await self.ssh.run(["sh", "-c", script], user=user, timeout=SECONDS)
        assert ended.code == code, (script, ended, out, errors)
        return out.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
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
                seed=seed_text("m1", "ada", [public_line(key)], new_id()),
            )
            running = await house.driver.launch(guest, resources, incarnation=1, paused=True)
            events = running.events()
            await running.resume()
            await until(events, "ssh-open")
            ssh = GuestSsh(resources.runtime / SSH_SOCKET, key)
            await ssh.answers(timeout=SECONDS)
            shares = GuestShares(resources.runtime, ssh, running, user="ada")
            yield Place(house, running, ssh, resources.runtime, folder, shares)
            await ssh.close()
            await running.kill()


async def test_our_image_has_what_it_takes(place: Place) -> None:
    found = await place.shares.abilities()
    assert found.sshfs and found.port and {"fuse", "virtiofs"} <= found.file_systems
    assert choose(Wanted(), HostAbilities(qemu_virtiofs=True), found).way is Way.SFTP


async def test_both_sides_work_in_it(place: Place) -> None:
    share = place.share("work")
    source = Path(share.source)
    (source / "by-host").write_text("host")
    await place.shares.mount(share)
    assert await place.sh("cat /mnt/work/by-host; id -un") == "hostroot\n"
    await place.sh("echo guest >/mnt/work/by-guest; mkdir /mnt/work/d; echo >>/mnt/work/by-host",
                   user="ada")  # fmt: skip
    await place.sh("echo root >/mnt/work/by-root")
    assert (source / "by-guest").read_text() == "guest\n"
    assert (source / "by-host").read_text() == "host\n"
    for name in ("by-guest", "by-root", "d"):
        made = (source / name).stat()
        assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid()), name
    seen = await place.sh("stat -c %U:%G /mnt/work/* /mnt/work")
    assert set(seen.split()) == {"ada:ada"}
    await place.shares.unmount(share)
    assert await place.sh("ls -A /mnt/work; grep -c fuse.sshfs /proc/mounts || true") == "0\n"
    assert list(place.runtime.glob("share-*.json")) == []


async def test_nothing_leads_out(place: Place) -> None:
    share = place.share("walled")
    (place.folder / "secret").write_text("not for guests")
    (Path(share.source) / "up").symlink_to("../secret")
    (Path(share.source) / "absolute").symlink_to(place.folder)
    await place.shares.mount(share)
    for path in ("up", "absolute/secret", "../secret", "new/secret", "new2"):
        await place.sh(
            f"cd /mnt/walled; ln -sfn {place.folder} new; ln -sfn ../secret new2; cat {path}",
            code=1,
        )
    # A link leads where it says: in the guest.
    await place.sh("ln -s /etc/hostname /mnt/walled/name")
    assert (await place.sh("cat /mnt/walled/name")).strip() == "m1"
    await place.shares.unmount(share)


async def test_read_only_stays_so_whatever_the_guest_does(place: Place) -> None:
    share = place.share("fixed", read_only=True)
    (Path(share.source) / "file").write_text("fixed")
    await place.shares.mount(share)
    assert await place.sh("cat /mnt/fixed/file") == "fixed"
    await place.sh("mount -o remount,rw /mnt/fixed; exit 0")
    for attempt in ("echo x >/mnt/fixed/file", "echo x >/mnt/fixed/new", "rm /mnt/fixed/file",
                    "mkdir /mnt/fixed/d", "chmod 777 /mnt/fixed/file"):  # fmt: skip
        await place.sh(f"({attempt}) 2>/dev/null || exit 9", code=9)
    assert [path.name for path in Path(share.source).iterdir()] == ["file"]
    assert (Path(share.source) / "file").read_text() == "fixed"
    await place.shares.unmount(share)


async def test_a_daemon_that_comes_and_goes_disturbs_no_open_file(place: Place) -> None:
    share = place.share("kept")
    await place.shares.mount(share)
    await place.sh(
        "exec >/mnt/kept/log; echo begin; (while :; do echo tick; sleep 0.2; done) & "
        "echo $! >/tmp/writer"
    )
    log = Path(share.source) / "log"
    place.ssh.drop()  # as the daemon's end does
    size = log.stat().st_size
    after = place.another_daemon()
    assert await after.mount_all([share]) == {}
    async with asyncio.timeout(SECONDS):
        while log.stat().st_size <= size:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert set(log.read_text().split()) == {"begin", "tick"}
    await place.sh("kill $(cat /tmp/writer); sleep 1")
    await after.unmount_all([share])


async def test_all_or_none_and_who_keeps_it_busy(place: Place) -> None:
    both = [place.share("one"), place.share("two")]
    (Path(both[0].source) / "file").write_text("here")
    assert await place.shares.mount_all(both) == {}
    holder = await place.ssh.start(["sleep", "1000"], cwd="/mnt/one")
    with pytest.raises(InUse, match=rf"/mnt/one .* sleep \(process {holder.pid}\)"):
        await place.shares.unmount_all(both)
    assert await place.sh("cat /mnt/one/file; grep -c fuse.sshfs /proc/mounts") == "here2\n"
    await holder.close()
    await place.shares.unmount_all(both)
    assert await place.sh("grep -c fuse.sshfs /proc/mounts || true") == "0\n"
    assert await place.shares.mount_all(both) == {}
    assert await place.sh("cat /mnt/one/file") == "here"
    await place.shares.unmount_all(both)


async def test_many_small_files(place: Place) -> None:
    share = place.share("many")
    await place.shares.mount(share)
    many = Path(share.source) / "many"
    await place.sh("mkdir /mnt/many/many")
    await place.sh(
        "cd /mnt/many/many; i=0; while [ $i -lt 2000 ]; do echo $i >$i; i=$((i + 1)); done"
    )
    assert len(os.listdir(many)) == 2000 and (many / "1999").read_text() == "1999\n"
    assert await place.sh("cd /mnt/many/many; ls | wc -l; cat * | wc -l") == "2000\n2000\n"
    await place.shares.unmount(share)


async def test_a_guest_that_was_reset_gets_them_back(place: Place) -> None:
    share = place.share("again")
    (Path(share.source) / "file").write_text("here")
    await place.shares.mount(share)
    events = place.running.events()
    await place.running.reset()
    await until(events, "reset")
    await place.shares.dropped(share)
    place.ssh.drop()
    await until(events, "ssh-open")
    await place.ssh.answers(timeout=SECONDS)
    assert await place.shares.mount_all([share]) == {}
    assert await place.sh("cat /mnt/again/file") == "here"
    await place.shares.unmount(share)
