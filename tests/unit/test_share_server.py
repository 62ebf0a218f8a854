"""The file server of a share, through a real SFTP client: work, owners, walls, attacks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest
import pytest_asyncio

from guesthouse.errors import InvalidInput, LaunchFailed
from guesthouse.shares.serving import FileServer, look_at
from tests.sftp_client import GUEST, served, share_of

pytestmark = pytest.mark.rootless

SECRET = "not for guests"


class World:
    def __init__(self, folder: Path) -> None:
        self.share = folder / "share"
        self.outside = folder / "outside"
        self.record = folder / "record"
        self.share.mkdir()
        self.outside.mkdir()
        (self.outside / "secret").write_text(SECRET)
        (self.share / "file").write_text("hello")
        (self.share / "folder").mkdir()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest_asyncio.fixture
async def sftp(world: World) -> AsyncIterator[asyncssh.SFTPClient]:
    async with served(share_of(world.share), world.record) as (made, server):
        assert server.record.walls, server.record.missing
        yield made


async def contents(sftp: asyncssh.SFTPClient, path: str) -> bytes:
    async with sftp.open(path, "rb") as file:
        return bytes(await file.read())


# --- work -----------------------------------------------------------------------------------------


async def test_files_are_read_and_written(sftp: asyncssh.SFTPClient, world: World) -> None:
    assert await contents(sftp, "/file") == b"hello"
    big = os.urandom(3 << 20)
    async with sftp.open("/folder/big", "wb") as file:
        await file.write(big)
        await file.fsync()
    assert (world.share / "folder/big").read_bytes() == big
    assert await contents(sftp, "folder/big") == big
    async with sftp.open("/file", "ab") as file:
        await file.write(b" world")
    assert (world.share / "file").read_text() == "hello world"
    await sftp.truncate("/file", 4)
    assert (world.share / "file").read_text() == "hell"
    with pytest.raises(asyncssh.SFTPNoSuchFile):
        await contents(sftp, "/nowhere")
    with pytest.raises(asyncssh.SFTPError):
        await sftp.open("/file", "xb")


async def test_names_are_made_moved_and_removed(sftp: asyncssh.SFTPClient, world: World) -> None:
    await sftp.mkdir("/new")
    await sftp.rename("/file", "/new/file")
    (world.share / "other").write_text("other")
    with pytest.raises(asyncssh.SFTPError):
        await sftp.rename("/other", "/new/file")
    assert (world.share / "new/file").read_text() == "hello"
    await sftp.posix_rename("/other", "/new/file")
    assert (world.share / "new/file").read_text() == "other"
    await sftp.link("/new/file", "/hard")
    assert (world.share / "hard").samefile(world.share / "new/file")
    await sftp.symlink("new/file", "/soft")
    assert await sftp.readlink("/soft") == "new/file"
    assert (world.share / "soft").is_symlink()
    odd = "ü \n" + os.fsdecode(b"\xff")
    (world.share / odd).write_text("x")
    names = set(await sftp.listdir("/"))
    assert names == {".", "..", "new", "folder", "hard", "soft", odd}
    await sftp.remove("/soft")
    assert (world.share / "new/file").exists()
    with pytest.raises(asyncssh.SFTPError):
        await sftp.rmdir("/new")
    await sftp.remove("/new/file")
    await sftp.rmdir("/new")
    assert not (world.share / "new").exists()


async def test_modes_times_and_space(sftp: asyncssh.SFTPClient, world: World) -> None:
    await sftp.chmod("/file", 0o000)
    assert stat.S_IMODE((world.share / "file").stat().st_mode) == 0
    await sftp.chmod("/file", 0o6750)
    assert stat.S_IMODE((world.share / "file").stat().st_mode) == 0o750
    await sftp.utime("/file", (1000, 2000))
    assert (world.share / "file").stat().st_mtime == 2000
    async with sftp.open("/made", "wb", asyncssh.SFTPAttrs(permissions=0o4711)):
        pass
    assert stat.S_IMODE((world.share / "made").stat().st_mode) == 0o711
    space = await sftp.statvfs("/")
    assert space.blocks == os.statvfs(world.share).f_blocks


async def test_the_guests_user_owns_what_the_sharing_user_does(
    sftp: asyncssh.SFTPClient, world: World
) -> None:
    shown = await sftp.stat("/file")
    assert (shown.uid, shown.gid) == GUEST
    async with sftp.open("/made", "wb"):
        pass
    made = (world.share / "made").stat()
    assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())
    await sftp.chown("/file", *GUEST)
    await sftp.chown("/file", 0, 0)
    with pytest.raises(asyncssh.SFTPPermissionDenied):
        await sftp.chown("/file", 4321, GUEST[1])
    assert (world.share / "file").stat().st_uid == os.getuid()


async def test_a_mount_begins_anew_on_the_same_connection(
    sftp: asyncssh.SFTPClient, world: World
) -> None:
    file = await sftp.open("/file", "rb")
    sftp._handler._writer.write(struct.pack(">IBI", 5, 1, 3))
    with contextlib.suppress(asyncssh.SFTPError):  # VERSION is no answer to what it waits for
        await file.read()


# --- attacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/../outside/secret", "../outside/secret", "folder/../../outside/secret", "/link/secret",
     "/file-link", "/etc/passwd", "/proc/self/environ", "/folder/up/outside/secret",
     "/magic/../outside/secret", "//../..//outside/secret"],
)  # fmt: skip
async def test_no_path_leads_out(sftp: asyncssh.SFTPClient, world: World, path: str) -> None:
    (world.share / "link").symlink_to(world.outside)
    (world.share / "file-link").symlink_to(world.outside / "secret")
    (world.share / "folder/up").symlink_to("../..")
    (world.share / "magic").symlink_to("/proc/self/root")
    before = sorted(world.outside.iterdir())
    for attempt in (
        contents(sftp, path),
        sftp.open(path, "wb"),
        sftp.open(path, "ab"),
        sftp.stat(path),
        sftp.truncate(path, 0),
        sftp.chmod(path, 0o777),
        sftp.remove(path + "/x"),
        sftp.mkdir(path + "/x"),
        sftp.rename("/file", path + "/x"),
        sftp.link(path, "/stolen/x"),
        sftp.scandir(path).__anext__(),
    ):
        with pytest.raises(asyncssh.SFTPError):
            await attempt
    assert (world.outside / "secret").read_text() == SECRET
    assert sorted(world.outside.iterdir()) == before
    assert (world.share / "file").read_text() == "hello"


async def test_a_link_out_is_itself_alone(sftp: asyncssh.SFTPClient, world: World) -> None:
    """It may be seen, moved, linked and removed, which touches nothing outside."""
    (world.share / "link").symlink_to(world.outside / "secret")
    assert (await sftp.lstat("/link")).permissions is not None
    assert stat.S_ISLNK((await sftp.lstat("/link")).permissions)
    with pytest.raises(asyncssh.SFTPError):
        await sftp.stat("/link")
    await sftp.link("/link", "/link2")
    assert (world.share / "link2").is_symlink()
    with contextlib.suppress(asyncssh.SFTPError):
        await sftp.chmod("/link", 0o777)
    await sftp.utime("/link", (1, 1))
    assert (world.outside / "secret").stat().st_mtime > 1
    assert stat.S_IMODE((world.outside / "secret").stat().st_mode) != 0o777
    await sftp.remove("/link")
    assert (world.outside / "secret").read_text() == SECRET


async def test_a_guest_that_plants_its_own_links_gets_nowhere(
    sftp: asyncssh.SFTPClient, world: World
) -> None:
    for number, leads_to in enumerate(
        ("/etc", "../outside", "/proc/self/fd", "/proc/self/cwd/..", ".." + "/.." * 40 + "/etc")
    ):
        await sftp.symlink(leads_to, f"/l{number}")
        for name in ("passwd", "secret", "0"):
            with pytest.raises(asyncssh.SFTPError):
                await contents(sftp, f"/l{number}/{name}")


@pytest.mark.timeout(120)
async def test_no_race_leads_out(sftp: asyncssh.SFTPClient, world: World) -> None:
    """A folder turns into a link out and back, thousands of times, while it is walked through."""
    victim, link, spare = (world.share / name for name in ("race", "link", "spare"))
    victim.mkdir()
    (victim / "secret").write_text("mine")
    link.symlink_to(world.outside)
    mode = stat.S_IMODE((world.outside / "secret").stat().st_mode)
    over = threading.Event()
    turns = 0

    def swap() -> None:
        nonlocal turns
        while not over.is_set():
            victim.rename(spare)
            link.rename(victim)
            victim.rename(link)
            spare.rename(victim)
            turns += 1
            time.sleep(0)

    thread = threading.Thread(target=swap)
    thread.start()
    seen: dict[bytes, int] = {}
    try:
        for number in range(1500):
            try:
                data = await contents(sftp, "/race/secret")
            except asyncssh.SFTPError:
                data = b""
            seen[data] = seen.get(data, 0) + 1
            for attempt in (
                sftp.mkdir(f"/race/new{number}"),
                sftp.chmod("/race/secret", 0o640 + number % 8),
                sftp.posix_rename("/file", "/race/file"),
                sftp.posix_rename("/race/file", "/file"),
            ):
                with contextlib.suppress(asyncssh.SFTPError):
                    await attempt
    finally:
        over.set()
        thread.join()
    assert turns > 100
    assert set(seen) <= {b"mine", b""} and seen.get(b"mine"), seen
    assert [one.name for one in world.outside.iterdir()] == ["secret"]
    assert (world.outside / "secret").read_text() == SECRET
    assert stat.S_IMODE((world.outside / "secret").stat().st_mode) == mode


async def test_a_folder_moved_out_under_an_open_handle_shows_nothing_more(
    sftp: asyncssh.SFTPClient, world: World
) -> None:
    (world.share / "folder/deep").mkdir()
    (world.share / "folder").rename(world.outside / "folder")
    for path in ("/folder", "/folder/deep/../../secret", "/folder/../../outside/secret"):
        with pytest.raises(asyncssh.SFTPError):
            await contents(sftp, path)


async def test_pipes_and_sockets_hold_nobody_up(sftp: asyncssh.SFTPClient, world: World) -> None:
    os.mkfifo(world.share / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(world.share)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        for name in ("pipe", "socket"):
            for mode in ("rb", "wb"):
                with pytest.raises(asyncssh.SFTPError):
                    async with asyncio.timeout(20):
                        await sftp.open(f"/{name}", mode)


async def test_the_share_itself_stays(sftp: asyncssh.SFTPClient, world: World) -> None:
    for attempt in (
        sftp.rmdir("/"),
        sftp.rename("/", "/folder/x"),
        sftp.remove("/."),
        sftp.rmdir("/folder/.."),
        sftp.posix_rename("/folder", "/"),
    ):
        with pytest.raises(asyncssh.SFTPError):
            await attempt
    assert (world.share / "file").exists()


async def test_handles_have_a_limit_and_end_with_the_client(world: World) -> None:
    async with served(share_of(world.share), world.record) as (sftp, server):
        wild = [b"", b"\0" * 8, b"\xff" * 8, b"x" * 5000]
        for handle in wild:
            with pytest.raises(asyncssh.SFTPError):
                await sftp._handler.close(handle)
            with pytest.raises(asyncssh.SFTPError):
                await sftp._handler.read(handle, 0, 10)
        pid = server.record.pid
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "nonsense",
    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"GET / HTTP/1.0\r\n\r\n", b"\0\0\0\x06\x03\0\0\0\1\xff",
     b"\0\0\0\x09\x03\0\0\0\1\xff\xff\xff\xff", b"\0\0\0\2\1\0"],
)  # fmt: skip
async def test_nonsense_ends_the_connection(world: World, nonsense: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            server = await FileServer.start(
                share_of(world.share), theirs.fileno(), guest=GUEST, place=world.record
            )
        ours.sendall(nonsense)
        await server.wait(20)
        await server.stop()


# --- read-only ------------------------------------------------------------------------------------


async def test_read_only_stays_so(world: World) -> None:
    (world.share / "link").symlink_to("file")
    before = {path: path.lstat() for path in world.share.rglob("*")}
    async with served(share_of(world.share, read_only=True), world.record) as (sftp, _server):
        assert await contents(sftp, "/file") == b"hello"
        for attempt in (
            *(sftp.open("/file", mode) for mode in ("wb", "ab", "r+b", "xb")),
            sftp.open("/new", "wb"),
            sftp.open("/file", asyncssh.FXF_READ | asyncssh.FXF_TRUNC),
            sftp.open("/new", asyncssh.FXF_READ | asyncssh.FXF_CREAT),
            sftp.mkdir("/new"),
            sftp.rmdir("/folder"),
            sftp.remove("/file"),
            sftp.rename("/file", "/new"),
            sftp.posix_rename("/file", "/new"),
            sftp.link("/file", "/new"),
            sftp.symlink("file", "/new"),
            sftp.chmod("/file", 0o777),
            sftp.utime("/file", (1, 1)),
            sftp.truncate("/file", 0),
            sftp.chown("/file", *GUEST),
        ):
            with pytest.raises(asyncssh.SFTPError):
                await attempt
        file = await sftp.open("/file", "rb")
        with pytest.raises(asyncssh.SFTPError):
            await file.write(b"x")
        with pytest.raises(asyncssh.SFTPError):
            await file.chmod(0o777)
    after = {path: path.lstat() for path in world.share.rglob("*")}
    assert {p: (s.st_mode, s.st_size, s.st_mtime) for p, s in before.items()} == {
        p: (s.st_mode, s.st_size, s.st_mtime) for p, s in after.items()
    }


# --- the process ----------------------------------------------------------------------------------


async def test_the_process_sees_the_share_alone_and_may_nothing(world: World) -> None:
    async with served(share_of(world.share), world.record) as (_sftp, server):
        status = Path(f"/proc/{server.record.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        capabilities = int(status.partition("CapEff:\t")[2].split()[0], 16)
        assert capabilities == (0b11011 if os.getuid() == 0 else 0)
        if "namespace" in server.record.walls and os.getuid() == 0:
            root = Path(f"/proc/{server.record.pid}/root")
            assert {one.name for one in root.iterdir()} == {"file", "folder"}
            network = Path(f"/proc/{server.record.pid}/ns/net")
            assert network.readlink() != Path("/proc/self/ns/net").readlink()


async def test_it_is_found_again_and_stopped_by_another_daemon(world: World) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = await FileServer.start(
            share_of(world.share), theirs.fileno(), guest=GUEST, place=world.record
        )
        found = FileServer.find(world.record)
        assert found is not None and found.record == server.record and found.alive
        await found.stop()
        await server.wait(20)
        await server.stop()
        assert FileServer.find(world.record) is None


async def test_a_folder_that_is_not_there_or_changed(world: World) -> None:
    with pytest.raises(InvalidInput, match="cannot be shared"):
        look_at(str(world.share / "nowhere"))
    with pytest.raises(InvalidInput, match="not a folder"):
        look_at(str(world.share / "file"))
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises((InvalidInput, LaunchFailed)):
        await FileServer.start(
            share_of(world.share, uid=os.getuid() + 1) if os.getuid() else share_of(Path("/none")),
            theirs.fileno(),
            guest=GUEST,
            place=world.record,
        )


@pytest.mark.root
async def test_as_another_user_nothing_more_is_possible_than_to_that_user(world: World) -> None:
    """Root's daemon serves for an ordinary user: with that user's rights alone."""
    for path in (world.share, *world.share.parents):
        if path.stat().st_uid == os.getuid() and path.is_relative_to(world.share.parents[2]):
            path.chmod(0o755)
    (world.share / "private").write_text(SECRET)
    (world.share / "private").chmod(0o600)
    os.chown(world.share / "folder", 4242, 4242)
    async with served(share_of(world.share, uid=4242), world.record) as (sftp, server):
        assert "namespace" in server.record.walls
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await contents(sftp, "/private")
        assert (await sftp.stat("/private")).uid == 65534
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await sftp.mkdir("/new")
        await sftp.mkdir("/folder/new")
        assert (world.share / "folder/new").stat().st_uid == 4242
        assert (await sftp.stat("/folder/new")).uid == GUEST[0]


# --- many files -----------------------------------------------------------------------------------


@pytest.mark.timeout(280)
async def test_ten_thousand_files_with_bounded_memory(world: World) -> None:
    many = world.share / "many"
    many.mkdir()
    async with served(share_of(world.share), world.record) as (sftp, server):
        await contents(sftp, "/file")
        before = memory(server.record.pid)

        async def some(first: int) -> None:
            for number in range(first, first + 500):
                async with sftp.open(f"/many/{number}", "wb") as file:
                    await file.write(b"%d" % number)

        await asyncio.gather(*(some(first) for first in range(0, 10_000, 500)))
        names = set(await sftp.listdir("/many"))
        assert names == {".", "..", *map(str, range(10_000))}
        for number in range(0, 10_000, 100):
            assert await contents(sftp, f"/many/{number}") == b"%d" % number
        assert memory(server.record.pid) - before < 16 << 20
        assert len(os.listdir(many)) == 10_000


def memory(pid: int) -> int:
    """The most that the process has ever had, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) << 10
