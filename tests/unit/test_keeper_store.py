"""Kept descriptors: they outlive the daemon, with what is behind them."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.errors import NotFound
from guesthouse.host.keeper_client import KeeperClient, KeptFd

from .keeper_house import House, keeper_house, until


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with keeper_house(tmp_path) as made:
        yield made


async def test_sealed_memory_outlives_the_daemon(house: House) -> None:
    memory = os.memfd_create("ram", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.truncate(memory, 1 << 20)
    os.pwrite(memory, b"precious", 4096)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    await house.client.put_fd("guest.1/ram", memory)
    os.close(memory)
    house.client.close()

    later = await KeeperClient.connect(house.socket, state=house.state, start=False)
    assert await later.fds() == [KeptFd(name="guest.1/ram", kind="memfd", size=1 << 20)]
    again = await later.get_fd("guest.1/ram")
    assert os.pread(again, 8, 4096) == b"precious"
    assert fcntl.fcntl(again, fcntl.F_GET_SEALS) == seals
    assert os.get_inheritable(again) is False
    os.close(again)
    later.close()


async def test_a_listening_socket_goes_on_listening(house: House) -> None:
    path = house.folder / "listening"
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))
        end.listen(1)
        await house.client.put_fd("end", end.fileno())
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect(str(path))
        with socket.socket(fileno=await house.client.get_fd("end")) as taken:
            taken.accept()[0].close()
    assert (await house.client.fds())[0].kind == "socket"


async def test_names_are_replaced_and_dropped(house: House) -> None:
    before = house.fd_count()
    reader, writer = os.pipe()
    with (house.folder / "file").open("w") as file:
        await house.client.put_fd("name", file.fileno())
    assert [(kept.name, kept.kind) for kept in await house.client.fds()] == [("name", "file")]
    await house.client.put_fd("name", writer)
    os.close(writer)
    assert [(kept.name, kept.kind) for kept in await house.client.fds()] == [("name", "pipe")]
    await until(lambda: house.fd_count() == before + 1)
    await house.client.drop_fd("name")
    assert os.read(reader, 1) == b"", "the keeper held the last writing end"
    os.close(reader)
    assert house.fd_count() == before
    for ask in (house.client.drop_fd, house.client.get_fd):
        with pytest.raises(NotFound):
            await ask("name")


async def test_more_names_than_one_message_holds(house: House) -> None:
    names = [f"{number:03}" + "n" * 120 for number in range(700)]
    for name in names:
        await house.client.put_fd(name, 0)
    assert [kept.name for kept in await house.client.fds()] == names
