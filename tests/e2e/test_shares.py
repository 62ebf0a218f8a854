"""Shared folders in a real micro guest: no network, no privilege, by each way that is here."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from guesthouse.errors import InUse
from guesthouse.model.share import Way
from guesthouse.shares.choosing import HostAbilities, Wanted, choose

from .qemu_guests import SECONDS
from .sharing_place import Place, virtiofsd_here
from .sharing_place import place as a_place

pytestmark = [pytest.mark.qemu, pytest.mark.rootless, pytest.mark.asyncio(loop_scope="module")]

MANY = 10_000
SOMEBODY = 54321
"""A user whom the host need not know."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[Way.SFTP, Way.VIRTIOFS])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    if request.param is Way.VIRTIOFS and not await virtiofsd_here():
        pytest.skip("no virtiofsd of Rust, 1.13 or newer")
    async with a_place() as found:
        found.way = request.param
        yield found


async def test_our_image_has_what_it_takes(place: Place) -> None:
    found = await place.shares.abilities()
    assert found.sshfs and found.port and {"fuse", "virtiofs"} <= found.file_systems
    assert choose(Wanted(), HostAbilities(), found).way is Way.SFTP
    able = HostAbilities(virtiofsd="/v", virtiofsd_maps=True, virtiofsd_read_only=True)
    assert choose(Wanted(), able, found).way is Way.VIRTIOFS
    assert (await place.running.folders_lack())[0] == ""


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
    assert await place.sh("ls -A /mnt/work") == "" and await place.mounts() == 0
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


@pytest.mark.root
async def test_roots_house_serves_with_the_rights_of_who_asked(place: Place) -> None:
    place.folder.chmod(0o755)
    share = place.share("theirs", host_uid=SOMEBODY, host_gid=SOMEBODY)
    source, secret = Path(share.source), Path(share.source) / "roots"
    secret.write_text("not theirs")
    secret.chmod(0o600)
    os.chown(source, SOMEBODY, SOMEBODY)
    record = await place.shares.mount(share)
    assert Path(f"/proc/{record.pid}").stat().st_uid in (SOMEBODY, 0)  # 0: not to be looked at
    await place.sh(
        "echo by root >/mnt/theirs/made; chown root /mnt/theirs/made; cat /mnt/theirs/made"
    )
    made = (source / "made").stat()
    assert (made.st_uid, made.st_gid) == (SOMEBODY, SOMEBODY)
    assert await place.sh("stat -c %u /mnt/theirs/made /mnt/theirs/roots; id -u ada") == (
        "1000\n65534\n1000\n"
    )
    await place.sh("cat /mnt/theirs/roots 2>/dev/null || exit 9", code=9)
    await place.sh("mknod /mnt/theirs/device c 1 3 2>/dev/null || exit 9", code=9)
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
    assert await place.sh("cat /mnt/one/file") == "here" and await place.mounts() == 2
    await holder.close()
    await place.shares.unmount_all(both)
    assert await place.mounts() == 0
    assert await place.shares.mount_all(both) == {}
    assert await place.sh("cat /mnt/one/file") == "here"
    await place.shares.unmount_all(both)


@pytest.mark.timeout(1500)
async def test_many_small_files(place: Place) -> None:
    """Most of them made by the host: the guest is emulated, and its shell slow."""
    share = place.share("many")
    await place.shares.mount(share)
    many = Path(share.source) / "many"
    await place.sh("mkdir /mnt/many/many")
    for number in range(500, MANY):
        (many / str(number)).write_text(f"{number}\n")
    make = "i=0; while [ $i -lt 500 ]; do echo $i >$i; i=$((i + 1)); done"
    await place.sh(f"cd /mnt/many/many; {make}", seconds=600)
    assert len(os.listdir(many)) == MANY and (many / "499").read_text() == "499\n"
    count = f"cd /mnt/many/many; ls | wc -l; cat ? ?? | wc -l; cat {MANY - 1}"
    told = await place.sh(count, seconds=600)
    assert told.split() == [str(MANY), "100", str(MANY - 1)]
    await place.shares.unmount(share)


async def test_a_guest_that_was_reset_gets_them_back(place: Place) -> None:
    share = place.share("again")
    (Path(share.source) / "file").write_text("here")
    await place.shares.mount(share)
    await place.reset()
    await place.shares.after_reset(share)
    assert await place.shares.mount_all([share]) == {}
    assert await place.sh("cat /mnt/again/file") == "here"
    await place.shares.unmount(share)


async def test_a_file_server_that_is_killed_is_told_and_mounted_anew(place: Place) -> None:
    share = place.share("killed")
    (Path(share.source) / "file").write_text("here")
    record = await place.shares.mount(share)
    os.kill(record.pid, signal.SIGKILL)
    async with asyncio.timeout(SECONDS):
        while await place.shares.lost() != share:  # one that another daemon let go is told, too
            pass
    assert place.shares.server(share) is None
    assert await place.shares.mount_all([share]) == {}
    assert await place.sh("cat /mnt/killed/file; echo more >/mnt/killed/new") == "here"
    assert (Path(share.source) / "new").read_text() == "more\n"
    await place.shares.unmount(share)
    assert await place.mounts() == 0 and list(place.runtime.glob("share-*.json")) == []


async def test_device_state_knows_nothing_of_them(place: Place) -> None:
    """What a snapshot does: let go of them, look at the devices, have them back."""
    both = [place.share("first"), place.share("second")]
    bare = await devices(place)
    assert await place.shares.mount_all(both) == {}
    assert len(await devices(place)) == len(bare) + 2
    await place.shares.unmount_all(both)
    assert await devices(place) == bare
    assert await place.shares.mount_all(both) == {}
    await place.shares.unmount_all(both)


async def devices(place: Place) -> list[str]:
    """What is plugged into the guest, as QEMU says."""
    monitor = place.running._monitor()  # type: ignore[attr-defined]  # the QEMU driver's
    tree = await monitor.execute("qom-list", {"path": "/machine/peripheral"})
    return sorted(one["name"] for one in tree)
