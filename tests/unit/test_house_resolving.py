"""What the host's resolv.conf says to the house, and that its changes are noticed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from guesthouse.network.house.resolver import Resolver, ResolverWatch, look, servers_text


@pytest.mark.parametrize(
    ("servers", "asked"),
    [
        ((), "10.0.2.3 fd00::3"),
        (("127.0.0.53",), "10.0.2.3"),
        (("192.0.2.1",), "10.0.2.3"),
        # As the host does: the first, and the next ones when it is silent.
        (("10.8.0.1", "192.0.2.1", "192.0.2.2"), "10.0.2.3 192.0.2.1 192.0.2.2"),
        (("10.8.0.1", "127.0.0.1"), "10.0.2.3"),
        (("2001:db8::1", "192.0.2.1"), "fd00::3 10.0.2.3"),
        (("192.0.2.1", "fe80::1%eth0"), "10.0.2.3 fd00::3"),
        (("192.0.2.1", "2001:db8::1", "2001:db8::2"), "10.0.2.3 fd00::3 2001:db8::2"),
        (("nonsense",), "10.0.2.3 fd00::3"),
    ],
)
def test_whom_to_ask(servers: tuple[str, ...], asked: str) -> None:
    expected = [f"server={one}" for one in asked.split()]
    assert servers_text(Resolver(servers), ipv6=True).split() == expected
    without = [line for line in expected if ":" not in line]
    assert servers_text(Resolver(servers), ipv6=False).split() == without


def test_of_a_file_that_the_uplink_cannot_see() -> None:
    """As in WSL, where it is a link to /mnt/wsl."""
    text = servers_text(Resolver(("192.0.2.1", "127.0.0.1"), seen=False), ipv6=True)
    assert text == "server=192.0.2.1\n"


def test_what_stands_in_it(tmp_path: Path) -> None:
    etc, mnt = tmp_path / "etc", tmp_path / "mnt"
    etc.mkdir()
    mnt.mkdir()
    file = etc / "resolv.conf"
    assert look(file, (etc,)) == Resolver()
    file.write_text("# by hand\nsearch a.test\nnameserver 192.0.2.1\nnameserver  192.0.2.2 # x\n")
    found = look(file, (etc,))
    assert found.servers == ("192.0.2.1", "192.0.2.2") and found.seen
    file.rename(mnt / "resolv.conf")
    file.symlink_to("../mnt/resolv.conf")
    moved = look(file, (etc,))
    assert moved.servers == found.servers and not moved.seen
    assert look(file, (etc, mnt)).seen


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """As with systemd-resolved: a link to its stub, beside which it says whom it asks."""
    folder = tmp_path / "etc"
    folder.mkdir()
    resolved = tmp_path / "run" / "resolve"
    resolved.mkdir(parents=True)
    (resolved / "stub.conf").write_text("nameserver 127.0.0.53\n")
    (resolved / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    (folder / "resolv.conf").symlink_to("../run/resolve/stub.conf")
    return folder


class Told:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.event = asyncio.Event()
        self.watch = ResolverWatch(self.event.set, file)
        self.before = look(file)

    async def within(self) -> Resolver:
        await asyncio.wait_for(self.event.wait(), 30)
        await asyncio.sleep(0.02)  # what else belongs to the same change
        self.event.clear()
        before, self.before = self.before, look(self.file)
        assert before != self.before
        return self.before


@pytest.fixture
async def told(etc: Path) -> AsyncIterator[Told]:
    made = Told(etc / "resolv.conf")
    yield made
    made.watch.close()


def replace(file: Path, text: str) -> None:
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)


async def test_each_way_of_changing_it_is_told(etc: Path, told: Told) -> None:
    resolved = etc.parent / "run" / "resolve"
    steps: list[tuple[Callable[[], object], tuple[str, ...]]] = [
        # systemd-resolved asks another one now: its stub stays the same.
        (lambda: replace(resolved / "resolv.conf", "nameserver 10.8.0.1\n"), ("127.0.0.53",)),
        (lambda: replace(resolved / "stub.conf", "nameserver 127.0.0.54\n"), ("127.0.0.54",)),
        (lambda: (resolved / "stub.conf").write_text("nameserver 10.8.0.2\n"), ("10.8.0.2",)),
        # Another program takes over, with a file of its own.
        (lambda: replace(etc / "resolv.conf", "nameserver 10.8.0.3\n"), ("10.8.0.3",)),
        ((etc / "resolv.conf").unlink, ()),
        # It comes with a program that makes its folder when it starts.
        (lambda: (etc / "resolv.conf").symlink_to("../run/vpn/deep/it.conf"), ()),
        (lambda: _late(etc.parent / "run" / "vpn" / "deep"), ("10.8.0.4",)),
        (lambda: replace(etc.parent / "run/vpn/deep/it.conf", "nameserver ::1\n"), ("::1",)),
    ]
    for number, (change, servers) in enumerate(steps):
        change()
        if number == 5:
            told.event.clear()  # a link that leads nowhere says nothing new
            await asyncio.sleep(0.05)
            continue
        assert (await told.within()).servers == servers, number


def _late(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "it.conf").write_text("nameserver 10.8.0.4\n")


async def test_what_else_happens_there_is_not_told(etc: Path, told: Told) -> None:
    (etc / "passwd").write_text("root\n")
    (etc.parent / "run" / "resolve" / "io.socket").touch()
    (etc / "resolv.conf").read_text()
    await asyncio.sleep(0.1)
    assert not told.event.is_set()


async def test_nothing_stays_open(etc: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    told = Told(etc / "resolv.conf")
    replace(etc / "resolv.conf", "nameserver 10.8.0.3\n")
    await told.within()
    told.watch.close()
    assert len(os.listdir("/proc/self/fd")) == before
