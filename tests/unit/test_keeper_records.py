"""Records of exits: durable before they are told, kept over keepers and full disks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.errors import KeeperUnavailable, NotFound
from guesthouse.host.keeper.loop import Loop
from guesthouse.host.keeper.records import Records
from guesthouse.host.keeper_client import KeeperClient
from guesthouse.host.process import boot_id
from guesthouse.host.spawn import run

from .keeper_house import DEADLINE, House, keeper_house, until


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with keeper_house(tmp_path) as made:
        yield made


async def test_a_record_says_how_it_ended(house: House) -> None:
    key, spawned = await house.spawn("sh", "-c", "echo out; echo bad news >&2; exit 3")
    record = await house.record(key)
    assert record.key == key
    assert (record.pid, record.start_ticks) == (spawned.pid, spawned.start_ticks)
    assert (record.exit_code, record.signal) == (3, None)
    assert (record.shutdown, record.panic) == (None, None)
    assert record.boot_id == boot_id()
    assert record.stderr_tail == "out\nbad news\n"
    file = house.state / "exits" / f"{key}.json"
    assert json.loads(file.read_text())["exit_code"] == 3
    assert file.stat().st_mode & 0o777 == 0o600


async def test_only_the_last_two_kib_of_messages_are_kept(house: House) -> None:
    record = await house.run("sh", "-c", "yes 0123456789 | head -n 1000; printf '\\377end'")
    assert record.stderr_tail.endswith("\ufffdend")
    assert len(record.stderr_tail) == 2048


async def test_records_outlive_the_keeper_until_forgotten(house: House) -> None:
    await house.run("false", key="a.1")
    await house.run("true", key="b.1")
    await house.kill_keeper()
    await house.client.reconnect()
    assert [(r.key, r.exit_code) for r in await house.client.exit_records()] == [
        ("a.1", 1),
        ("b.1", 0),
    ]
    await house.client.forget("a.1")
    with pytest.raises(NotFound):
        await house.client.forget("a.1")
    await house.kill_keeper()
    await house.client.reconnect()
    assert [r.key for r in await house.client.exit_records()] == ["b.1"]


async def test_every_subscriber_hears_of_an_exit_once(house: House) -> None:
    async def listen(client: KeeperClient, found: list[str]) -> None:
        async for record in client.exits():
            found.append(record.key)

    other = await KeeperClient.connect(house.socket, state=house.state, start=False)
    await house.run("true", key="early.1")
    heard: list[list[str]] = [[], []]
    tasks = [
        asyncio.create_task(listen(client, found))
        for client, found in zip((house.client, other), heard, strict=True)
    ]
    keys = [f"late.{n}" for n in range(10)]
    await asyncio.gather(*(house.spawn("true", key=key) for key in keys))
    await until(lambda: all(len(found) == 11 for found in heard))
    assert all(sorted(found) == ["early.1", *keys] for found in heard)
    other.close()
    with pytest.raises(KeeperUnavailable):
        await tasks[1]
    tasks[0].cancel()


async def test_more_records_than_one_message_holds(house: House) -> None:
    # Control characters take six bytes each in JSON.
    write = "head -c 4096 /dev/zero | tr '\\0' '\\1'"
    keys = [f"page.{number:02}" for number in range(60)]
    for start in range(0, 60, 10):
        chunk = keys[start : start + 10]
        await asyncio.gather(*(house.spawn("sh", "-c", write, key=key) for key in chunk))
        for key in chunk:
            await house.record(key)
    records = await house.client.exit_records()
    assert [record.key for record in records] == keys
    assert all(record.stderr_tail == "\1" * 2048 for record in records)


async def test_a_record_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    exits = tmp_path / "state" / "exits"
    exits.mkdir(parents=True)
    (exits / "broken.1.json").write_text("{")
    (exits / "liar.1.json").write_text('{"key": "other.1"}')
    (exits / ".half.1.tmp").write_text("{")
    async with keeper_house(tmp_path) as house:
        assert await house.client.exit_records() == []
        names = sorted(file.name for file in exits.iterdir())
        assert names == ["broken.1.unreadable", "liar.1.unreadable"]


@pytest.mark.root
async def test_a_full_disk_delays_a_record_and_loses_none(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    await run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(state)])
    try:
        async with keeper_house(tmp_path) as house:
            ballast = state / "ballast"
            with ballast.open("wb", buffering=0) as file:
                with pytest.raises(OSError, match="No space"):
                    while True:
                        file.write(b"x" * 1024)
            await house.spawn("sh", "-c", "exit 9", key="full.1")
            assert (await house.record("full.1")).exit_code == 9
            assert not (state / "exits" / "full.1.json").exists()
            ballast.unlink()
            # Written by the keeper's own timer: nobody asks it anything meanwhile.
            await until((state / "exits" / "full.1.json").exists)
            await house.kill_keeper()
            await house.client.reconnect()
            assert (await house.record("full.1")).exit_code == 9
            os.kill(house.client.pid, signal.SIGTERM)
            await asyncio.wait_for(house.client.closed.wait(), DEADLINE)
            await until(lambda: not Path(f"/proc/{house.client.pid}").exists())
    finally:
        await run(["umount", "-l", str(state)])


def test_nothing_is_retried_once_all_is_written(tmp_path: Path) -> None:
    loop = Loop()
    folder = tmp_path / "exits"
    records = Records(loop, folder)
    folder.rename(tmp_path / "away")
    records.add({"key": "a.1"})
    records.add({"key": "b.1"})
    assert records.pending == 2
    assert loop._timeout() is not None
    (tmp_path / "away").rename(folder)
    records.flush()
    assert records.pending == 0
    assert loop._timeout() is None
    assert [record["key"] for record in Records(loop, folder).all()] == ["a.1", "b.1"]
