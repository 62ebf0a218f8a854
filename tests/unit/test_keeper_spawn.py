"""What a spawned process finds: its descriptors, its environment, nothing of the keeper's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.errors import Conflict, InvalidInput, LaunchFailed, NotFound
from guesthouse.host.keeper_client import KeeperClient
from guesthouse.host.launcher import FdTable
from guesthouse.host.process import is_alive

from .keeper_house import PATH, House, keeper_house, python, read_exactly, until


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with keeper_house(tmp_path) as made:
        yield made


REPORT = """
import os, sys, json
fds = {}
for name in sorted(map(int, os.listdir("/proc/self/fd"))):
    try: fds[name] = os.readlink("/proc/self/fd/%d" % name)
    except OSError: pass
lines = open("/proc/self/status").read().splitlines()
status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
mask = os.umask(0)
print(json.dumps({"fds": fds, "cwd": os.getcwd(), "env": dict(os.environ), "umask": mask,
    "sid": os.getsid(0), "pid": os.getpid(), "oom": open("/proc/self/oom_score_adj").read().strip(),
    "blocked": status["SigBlk"], "ignored": status["SigIgn"], "caught": status["SigCgt"],
    "argv": sys.argv[1:]}))
"""


async def test_a_process_finds_a_clean_place(house: House) -> None:
    bare = ["/usr/bin/python3", "-I", "-S", "-c", REPORT, "ünï ''", ""]
    record = await house.run(*bare, env={"A": "1", "B": "zwei ☂"}, cwd=house.folder)
    assert record.exit_code == 0, record.stderr_tail
    found = json.loads(house.errors.read_text())
    fds = found["fds"]
    assert fds.pop("0") == "/dev/null"
    assert fds.pop("1") == fds.pop("2") == str(house.errors)
    assert fds == {}, "nothing else is open"
    assert found["env"].items() >= {"A": "1", "B": "zwei ☂"}.items()
    assert "PATH" not in found["env"]
    assert found["cwd"] == str(house.folder)
    assert found["umask"] == 0o077
    assert found["sid"] == found["pid"] == record.pid
    assert found["oom"] == "0"
    assert int(found["blocked"], 16) == 0
    # Python itself ignores SIGPIPE and SIGXFSZ and catches SIGINT; nothing is inherited.
    ignored = (1 << (signal.SIGPIPE - 1)) | (1 << (signal.SIGXFSZ - 1))
    assert int(found["ignored"], 16) == ignored
    assert found["argv"] == ["ünï ''", ""]
    assert house.errors.stat().st_mode & 0o777 == 0o600


async def test_signals_are_at_their_defaults(house: House) -> None:
    record = await house.run("cat", "/proc/self/status")
    assert record.exit_code == 0
    status = house.errors.read_text()
    assert "SigIgn:\t0000000000000000" in status
    assert "SigCgt:\t0000000000000000" in status


async def test_descriptors_arrive_at_their_numbers_in_any_order(house: House) -> None:
    with FdTable() as table:
        names = []
        for number in range(40):
            path = house.folder / f"file{number}"
            path.write_text(f"content {number}")
            # Opened in an order that makes sources and targets overlap in both processes.
            names.append((table.add(os.open(path, os.O_RDONLY)), number))
        assert [target for target, _ in names] == list(range(3, 43))
        code = "import os,sys\nfor n in range(3, 43): print(n, os.read(n, 99).decode())"
        record = await house.run(*python(code), fds=table)
    assert record.exit_code == 0, record.stderr_tail
    expected = [f"{target} content {number}" for target, number in names]
    assert house.errors.read_text().splitlines() == expected


async def test_targets_that_collide_with_the_keepers_own_numbers(house: House) -> None:
    # Reversed and far apart: the raw request, as FdTable only makes dense tables.
    readers = [os.pipe() for _ in range(5)]
    targets = [9, 3, 7, 500, 4]
    code = "import os\nfor n in (9, 3, 7, 500, 4): os.write(n, b'to %d' % n)"
    channel = house.client._channel
    assert channel is not None
    body = {
        "op": "spawn",
        "key": "c.1",
        "argv": python(code),
        "env": {},
        "stderr": str(house.errors),
        "fds": targets,
    }
    await channel.request(body, [writer for _, writer in readers])
    for (reader, writer), target in zip(readers, targets, strict=True):
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            text = await asyncio.to_thread(pipe.read)
        assert text == b"to %d" % target
    assert (await house.record("c.1")).exit_code == 0


async def test_what_cannot_be_executed_is_told_in_the_answer(house: House) -> None:
    before = house.fd_count()
    with pytest.raises(LaunchFailed) as missing:
        await house.spawn("no-such-program")
    assert missing.value.detail["errno"] == 2
    (house.folder / "text").write_text("no program")
    with pytest.raises(LaunchFailed, match="Permission denied"):
        await house.spawn(str(house.folder / "text"))
    with pytest.raises(LaunchFailed, match="cwd"):
        await house.spawn("true", cwd=house.folder / "nowhere")
    assert await house.client.exit_records() == []
    assert await house.client.processes() == []
    assert house.fd_count() == before
    # The key is free again.
    assert (await house.run("true", key="guest.1")).exit_code == 0


async def test_stderr_that_cannot_be_opened(house: House) -> None:
    house.errors.symlink_to(house.folder / "elsewhere")
    with pytest.raises(LaunchFailed, match="stderr"):
        await house.spawn("true")
    assert not (house.folder / "elsewhere").exists()


async def test_wrong_requests_are_refused_by_name(house: House) -> None:
    with pytest.raises(InvalidInput, match="'key'"):
        await house.spawn("true", key="../escape")
    with pytest.raises(InvalidInput, match="'argv'"):
        await house.spawn()
    with pytest.raises(InvalidInput, match="'env'"):
        await house.spawn("true", env={"A=B": "c"})


@pytest.mark.parametrize("targets", [[2], [3, 3], [3], [3, 4, 5], [3, 5000], ["3", 4]])
async def test_wrong_targets(house: House, targets: list[object]) -> None:
    channel = house.client._channel
    assert channel is not None
    before = house.fd_count()
    body = {
        "op": "spawn",
        "key": "c.1",
        "argv": ["true"],
        "env": {},
        "stderr": str(house.errors),
        "fds": targets,
    }
    with pytest.raises(InvalidInput, match="'fds'"):
        await channel.request(body, [0, 1])
    assert house.fd_count() == before


async def test_arguments_of_150_kib(house: House) -> None:
    # Quotes double in JSON, as they do in the -blockdev arguments of a real guest.
    argument = '{"a":"b"}' * 113
    argv = python("import sys; print(sum(map(len, sys.argv[1:])))", *[argument] * 150)
    assert sum(map(len, argv)) > 150_000
    record = await house.run(*argv)
    assert record.exit_code == 0
    assert int(house.errors.read_text()) == len(argument) * 150


async def test_a_request_too_long_is_refused_and_the_connection_stays(house: House) -> None:
    with pytest.raises(InvalidInput, match="too long"):
        await house.spawn("echo", *["x" * 100_000] * 100)
    assert await house.client.processes() == []


async def test_one_key_one_process(house: House) -> None:
    key, _ = await house.spawn("sleep", "1000")
    with pytest.raises(Conflict):
        await house.spawn("true", key=key)
    await house.client.signal(key, signal.SIGKILL)
    assert (await house.record(key)).signal == signal.SIGKILL
    with pytest.raises(Conflict, match="forgotten"):
        await house.spawn("true", key=key)
    await house.client.forget(key)
    await house.spawn("true", key=key)


async def test_signals_reach_only_the_living(house: House) -> None:
    key, spawned = await house.spawn("sleep", "1000")
    await house.client.signal(key, 0)
    with pytest.raises(InvalidInput):
        await house.client.signal(key, 999)
    await house.client.signal(key, signal.SIGUSR1)
    assert (await house.record(key)).signal == signal.SIGUSR1
    with pytest.raises(NotFound):
        await house.client.signal(key, signal.SIGTERM)
    with pytest.raises(NotFound):
        await house.client.info(key)
    assert not is_alive(spawned.pid, spawned.start_ticks)


async def test_a_stderr_grown_long_keeps_its_end(house: House) -> None:
    house.errors.write_bytes(b"x" * (1 << 20) + b"the end\n")
    await house.run("sh", "-c", "echo more >&2")
    text = house.errors.read_bytes()
    assert len(text) < 1 << 19
    assert text.endswith(b"the end\nmore\n")


async def test_twenty_at_once(house: House) -> None:
    clients = [
        await KeeperClient.connect(house.socket, state=house.state, start=False) for _ in range(2)
    ]
    original = house.client

    async def one(number: int) -> int | None:
        key = f"many.{number}"
        # Through three connections, as several clients do no harm to each other.
        client = [original, *clients][number % 3]
        other = House(house.folder, client)
        await other.spawn("sh", "-c", f"exit {number}", key=key)
        return (await other.record(key)).exit_code

    assert await asyncio.gather(*map(one, range(20))) == list(range(20))
    for client in clients:
        client.close()


async def test_two_hundred_spawns_leak_nothing(house: House) -> None:
    await house.run("true")
    await until(lambda: house.fd_count() < 40)
    before = house.fd_count()
    for round_number in range(10):
        keys = [f"leak.{round_number}.{number}" for number in range(20)]
        with FdTable() as table:
            table.add(os.open("/dev/null", os.O_RDONLY))
            await asyncio.gather(*(house.spawn("true", key=key, fds=table) for key in keys))
        for key in keys:
            assert (await house.record(key)).exit_code == 0
            await house.client.forget(key)
    assert house.fd_count() == before
    children = Path(f"/proc/{house.client.pid}/task/{house.client.pid}/children").read_text()
    assert children == "", "all are reaped"


async def test_only_the_child_holds_what_it_was_given(house: House) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with FdTable() as table:
        number = table.add(theirs.detach())
        await house.spawn("sh", "-c", f"echo hello >&{number}", fds=table)
    # The stream ends with the child: neither the keeper nor we keep a copy open.
    assert await read_exactly(ours, 100) == b"hello\n"
    ours.close()


async def test_programs_are_found_on_the_path_of_the_request(house: House) -> None:
    program = house.folder / "bin" / "mine"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 5\n")
    program.chmod(0o755)
    record = await house.run("mine", env={"PATH": f"{program.parent}:{PATH}"})
    assert record.exit_code == 5
