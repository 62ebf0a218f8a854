"""What is said inside a guest: here this host's shell stands in, with a real sshfs where it may."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from guesthouse.errors import AgentUnsupported, EngineError, InUse, InvalidInput
from guesthouse.model.share import Share
from guesthouse.shares import inside
from guesthouse.shares.inside import Holder
from guesthouse.shares.serving import FileServer
from tests.sftp_client import share_of


def run(argv: Sequence[str], data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, input=data, capture_output=True, check=False, timeout=60)


def start(argv: Sequence[str], stdin: object, stdout: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=stdin, stdout=stdout)  # type: ignore[call-overload]  # by what each is


def test_abilities_are_read() -> None:
    found = inside.abilities(b"fs fuse\nfs virtiofs\nsshfs\nport\n")
    assert found.file_systems == {"fuse", "virtiofs"} and found.sshfs and found.port
    nothing = inside.abilities(b"")
    assert not nothing.file_systems and not nothing.sshfs and not nothing.port


def test_this_hosts_own_abilities() -> None:
    done = run(inside.look())
    assert done.returncode == 0
    found = inside.abilities(done.stdout)
    assert found.sshfs == (shutil.which("sshfs") is not None)
    assert ("fuse" in found.file_systems) >= ("\tfuse\n" in Path("/proc/filesystems").read_text())


def test_users() -> None:
    done = run(inside.ask_ids("root"))
    assert inside.ids("root", done.returncode, done.stdout) == (0, 0)
    for name in ("nobody-here", "-u", "$(id)", ""):
        done = run(inside.ask_ids(name))
        with pytest.raises(InvalidInput):
            inside.ids(name, done.returncode, done.stdout)


def test_answers_to_mounting(tmp_path: Path) -> None:
    share = share_of(tmp_path)
    inside.check_mounted(share, 0, b"")
    for code, kind, word in (
        (71, AgentUnsupported, "sshfs"),
        (72, AgentUnsupported, "FUSE"),
        (73, EngineError, "port"),
        (74, EngineError, "folder"),
        (75, EngineError, "could not mount"),
        (None, EngineError, "could not mount"),
    ):
        with pytest.raises(kind, match=word):
            inside.check_mounted(share, code, b"boom\n")


def test_answers_to_unmounting(tmp_path: Path) -> None:
    share = share_of(tmp_path)
    inside.check_unmounted(share, 0, b"", b"")
    with pytest.raises(InUse, match=r"vim \(process 12\), the mount at /mnt/s/x") as caught:
        inside.check_unmounted(share, 76, b"process 12 vim\nmount /mnt/s/x\nprocess x\n", b"")
    assert caught.value.detail["holders"] == [
        {"pid": 12, "name": "vim"},
        {"pid": 0, "name": "/mnt/s/x"},
    ]
    with pytest.raises(EngineError, match="boom"):
        inside.check_unmounted(share, 1, b"", b"boom")


class Mounted(NamedTuple):
    share: Share
    source: Path
    target: Path
    port: Path


@pytest_asyncio.fixture
async def mounted() -> AsyncIterator[Mounted]:
    """A share that this host's own sshfs has mounted, by the options that guests get."""
    if os.getuid() or not shutil.which("sshfs") or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("needs root, sshfs and /dev/fuse")
    with tempfile.TemporaryDirectory(prefix="gs-") as text:
        folder = Path(text)
        source, target = folder / "source", folder / "the target's $place"
        source.mkdir()
        target.mkdir()
        made = share_of(source)
        share = Share(
            name=made.name, source=made.source, target=str(target), host_uid=0, host_gid=0
        )
        ours, theirs = socket.socketpair()
        server = await FileServer.start(
            share, ours.fileno(), guest=(4321, 4322), place=folder / "record"
        )
        ours.close()
        options = inside.mount_sftp(share, "port")[0][-3] + ",no_contain_symlinks"
        sshfs = start(["sshfs", "-f", ":/", str(target), "-o", options], theirs, theirs)
        theirs.close()
        try:
            async with asyncio.timeout(60):
                while not os.path.ismount(target):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            yield Mounted(share, source, target, folder)
        finally:
            run(["umount", "-l", str(target)])
            await asyncio.to_thread(sshfs.wait, 60)
            await server.wait(60)
            await server.stop()


@pytest.mark.root
async def test_both_sides_work_in_it_and_own_what_they_should(mounted: Mounted) -> None:
    (mounted.target / "by-guest").write_text("guest")
    (mounted.source / "by-host").write_text("host")
    assert (mounted.source / "by-guest").read_text() == "guest"
    assert (mounted.target / "by-host").read_text() == "host"
    assert (mounted.source / "by-guest").stat().st_uid == 0
    for name in ("by-guest", "by-host"):
        seen = (mounted.target / name).stat()
        assert (seen.st_uid, seen.st_gid) == (4321, 4322)
    (mounted.source / "by-host").write_text("host again, and longer")
    async with asyncio.timeout(30):
        while (mounted.target / "by-host").read_text() != "host again, and longer":  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    (mounted.target / "link").symlink_to("/etc/hostname")
    assert (mounted.source / "link").readlink() == Path("/etc/hostname")
    assert run(inside.is_mounted(mounted.share)).returncode == 0


@pytest.mark.root
@pytest.mark.parametrize("how", ["cwd", "open", "mapped"])
async def test_who_keeps_it_busy_is_named(mounted: Mounted, how: str) -> None:
    (mounted.target / "file").write_text("x" * 5000)
    code = {
        "cwd": "import os, sys; os.chdir(sys.argv[1])",
        "open": "import sys; f = open(sys.argv[1] + '/file')",
        "mapped": (
            "import mmap, os, sys; fd = os.open(sys.argv[1] + '/file', os.O_RDONLY);"
            "m = mmap.mmap(fd, 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE); os.close(fd)"
        ),
    }[how]
    holder = start(
        [sys.executable, "-c", f"{code}; print(flush=True); input()", str(mounted.target)],
        subprocess.PIPE,
        subprocess.PIPE,
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        await asyncio.to_thread(holder.stdout.readline)
        done = await asyncio.to_thread(run, inside.unmount(mounted.share))
        name = Path(f"/proc/{holder.pid}/comm").read_text().strip()
        assert Holder(holder.pid, name) in inside.holders(done.stdout)
        with pytest.raises(InUse, match=str(holder.pid)):
            inside.check_unmounted(mounted.share, done.returncode, done.stdout, done.stderr)
        assert os.path.ismount(mounted.target)
    finally:
        holder.stdin.close()
        holder.wait(60)
        holder.stdout.close()
    done = await asyncio.to_thread(run, inside.unmount(mounted.share))
    inside.check_unmounted(mounted.share, done.returncode, done.stdout, done.stderr)
    assert not os.path.ismount(mounted.target)
    assert run(inside.unmount(mounted.share)).returncode == 0
    assert run(inside.is_mounted(mounted.share)).returncode != 0


@pytest.mark.root
async def test_a_mount_within_keeps_it_busy_too(mounted: Mounted) -> None:
    within = mounted.target / "within"
    within.mkdir()
    assert run(["mount", "-t", "tmpfs", "none", str(within)]).returncode == 0
    try:
        done = await asyncio.to_thread(run, inside.unmount(mounted.share))
        assert any(one.pid == 0 for one in inside.holders(done.stdout)), done
    finally:
        assert run(["umount", str(within)]).returncode == 0
