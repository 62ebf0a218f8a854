"""The keeper's own life: starting, being alone, outliving the daemon, dying, being replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import textwrap
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.errors import Conflict, InUse, KeeperUnavailable, NotFound
from guesthouse.host import keeper as keeper_package
from guesthouse.host.keeper_client import AdoptRequest, KeeperClient
from guesthouse.host.process import ProcessHandle, is_alive
from guesthouse.host.spawn import run

from .keeper_house import DEADLINE, House, keeper_house, until

PROGRAM = Path(keeper_package.__file__).parent / "__main__.py"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with keeper_house(tmp_path) as made:
        yield made


def command(state: Path, path: Path) -> list[str]:
    return [
        sys.executable,
        "-I",
        "-S",
        str(PROGRAM),
        "--state",
        str(state),
        "--socket",
        str(path),
    ]


async def test_it_leaves_the_starters_session(house: House) -> None:
    pid = house.client.pid
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != os.getpgid(0)
    for fd in (0, 1, 2):
        assert os.readlink(f"/proc/{pid}/fd/{fd}") in ("/dev/null", str(house.state / "keeper.log"))
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


async def test_the_second_one_names_the_first(house: House) -> None:
    second = await run(command(house.state, house.folder / "other.sock"), check=False)
    assert second.code == 3
    assert str(house.client.pid).encode() in second.err
    assert not (house.folder / "other.sock").exists()


async def test_a_socket_that_answers_is_not_taken_from_another_house(house: House) -> None:
    other = await run(command(house.folder / "other", house.socket), check=False)
    assert other.code == 4
    assert (await house.client.processes()) == []


async def test_a_file_in_the_place_of_the_socket_is_kept(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    started = await run(command(tmp_path / "state", tmp_path / "precious"), check=False)
    assert started.code == 1
    assert (tmp_path / "precious").read_text() == "mine"


async def test_it_survives_a_hang_up_and_an_interrupt(house: House) -> None:
    os.kill(house.client.pid, signal.SIGHUP)
    os.kill(house.client.pid, signal.SIGINT)
    assert (await house.client.processes()) == []


async def test_it_is_private_and_small(house: House) -> None:
    assert house.socket.stat().st_mode & 0o777 == 0o600
    assert house.state.stat().st_mode & 0o777 == 0o700
    status = Path(f"/proc/{house.client.pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    assert resident < 15 * 1024, f"{resident} KiB"


async def test_it_uses_no_processor_time_when_idle(house: House) -> None:
    await house.spawn("sleep", "1000")

    def used() -> list[str]:
        text = Path(f"/proc/{house.client.pid}/stat").read_text()
        return text[text.rindex(")") :].split()[12:14]

    def wakeups() -> str:
        text = Path(f"/proc/{house.client.pid}/status").read_text()
        return text.split("\nvoluntary_ctxt_switches:")[1].split()[0]

    await asyncio.sleep(0.2)
    before = used(), wakeups()
    await asyncio.sleep(1.2)
    assert (used(), wakeups()) == before


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(tmp_path / "keeper.sock"))
    async with keeper_house(tmp_path) as house:
        assert (await house.client.processes()) == []


async def test_paths_longer_than_a_socket_address(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20) / ("longer" * 20)
    folder.mkdir(parents=True)
    async with keeper_house(folder) as house:
        assert (await house.run("true")).exit_code == 0


async def test_none_is_started_when_none_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(KeeperUnavailable):
        await KeeperClient.connect(tmp_path / "no.sock", state=tmp_path, start=False)
    assert list(tmp_path.iterdir()) == []


async def test_a_keeper_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(KeeperUnavailable, match="File exists"):
        await KeeperClient.connect(tmp_path / "keeper.sock", state=tmp_path / "state")


async def test_many_daemons_starting_at_once_share_one_keeper(tmp_path: Path) -> None:
    clients = await asyncio.gather(
        *(KeeperClient.connect(tmp_path / "k.sock", state=tmp_path / "state") for _ in range(4))
    )
    assert len({client.pid for client in clients}) == 1
    await clients[0].quit()
    for client in clients:
        await asyncio.wait_for(client.closed.wait(), DEADLINE)


async def test_the_death_of_the_daemon_and_its_group_touches_nothing(tmp_path: Path) -> None:
    daemon = tmp_path / "daemon.py"
    daemon.write_text(
        textwrap.dedent(
            """
            import asyncio, sys, time
            from pathlib import Path
            from guesthouse.host.keeper_client import KeeperClient, SpawnRequest
            async def main(folder):
                client = await KeeperClient.connect(folder / "keeper.sock", state=folder / "state")
                request = SpawnRequest(key="g.1", argv=("sleep", "1000"),
                    env={"PATH": "/usr/bin:/bin"}, stderr=folder / "stderr")
                spawned = await client.spawn(request)
                print(client.pid, spawned.pid, spawned.start_ticks, flush=True)
                await asyncio.sleep(1000)
            asyncio.run(main(Path(sys.argv[1])))
            """
        )
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(daemon), str(tmp_path), stdout=PIPE, start_new_session=True
    )
    assert process.stdout is not None
    keeper, child, ticks = map(int, (await process.stdout.readline()).split())
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    async with keeper_house(tmp_path) as house:
        house.pids.append((child, ticks))
        assert house.client.pid == keeper
        (info,) = await house.client.processes()
        assert (info.key, info.pid, info.start_ticks, info.child) == ("g.1", child, ticks, True)
        await house.client.signal("g.1", signal.SIGTERM)
        assert (await house.record("g.1")).signal == signal.SIGTERM


async def test_a_killed_keeper_is_replaced_and_the_new_one_adopts(house: House) -> None:
    key, spawned = await house.spawn("sleep", "1000")
    first = house.client.pid
    await house.kill_keeper()
    assert is_alive(spawned.pid, spawned.start_ticks)
    with pytest.raises(KeeperUnavailable):
        await house.client.processes()

    assert await house.client.reconnect() is True
    assert house.client.pid != first
    assert not house.client.closed.is_set()
    request = AdoptRequest(key=key, pid=spawned.pid, start_ticks=spawned.start_ticks)
    assert await house.client.adopt(request) == spawned
    assert await house.client.adopt(request) == spawned, "repeating does no harm"
    (info,) = await house.client.processes()
    assert (info.pid, info.child) == (spawned.pid, False)

    os.kill(spawned.pid, signal.SIGTERM)
    record = await house.record(key)
    assert (record.exit_code, record.signal, record.pid) == (None, None, spawned.pid)


async def test_reconnecting_to_the_same_keeper_says_so(house: House) -> None:
    house.client.close()
    assert house.client.closed.is_set()
    assert await house.client.reconnect() is False


def unreaped_sleeper() -> int:
    """A child of ours, which nobody reaps behind our back."""
    return os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})


def reap(pid: int) -> None:
    os.waitpid(pid, 0)


async def test_only_the_very_process_is_adopted(house: House) -> None:
    pid = unreaped_sleeper()
    with ProcessHandle.open(pid) as handle:
        ticks = handle.start_ticks
    with pytest.raises(NotFound):
        await house.client.adopt(AdoptRequest(key="a.1", pid=pid, start_ticks=ticks + 1))
    await house.client.adopt(AdoptRequest(key="a.1", pid=pid, start_ticks=ticks))
    with pytest.raises(Conflict):
        await house.spawn("true", key="a.1")
    os.kill(pid, signal.SIGKILL)
    # A zombie, since nobody has waited for it yet: dead all the same.
    assert (await house.record("a.1")).exit_code is None
    with pytest.raises(NotFound):
        await house.client.adopt(AdoptRequest(key="a.2", pid=pid, start_ticks=ticks))
    reap(pid)
    assert await house.client.processes() == []


async def test_quit_refuses_while_somebody_lives(house: House) -> None:
    _, spawned = await house.spawn("sleep", "1000")
    with pytest.raises(InUse):
        await house.client.quit()
    await house.client.quit(force=True)
    await asyncio.wait_for(house.client.closed.wait(), DEADLINE)
    await until(lambda: not is_alive(house.client.pid))
    assert is_alive(spawned.pid, spawned.start_ticks)
    assert not house.socket.exists()


async def test_sigterm_ends_it_and_leaves_the_guests(house: House) -> None:
    _, spawned = await house.spawn("sleep", "1000")
    os.kill(house.client.pid, signal.SIGTERM)
    await asyncio.wait_for(house.client.closed.wait(), DEADLINE)
    assert is_alive(spawned.pid, spawned.start_ticks)


@pytest.mark.root
async def test_another_user_is_turned_away(house: House) -> None:
    house.folder.chmod(0o755)
    house.socket.chmod(0o666)
    for folder in (house.folder.parent, house.folder.parent.parent):
        folder.chmod(0o755)
    code = (
        "import socket,sys\n"
        "s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n"
        "s.connect(sys.argv[1])\n"
        'try: s.send(b\'{"id":1,"op":"hello","protocol":1}\'); print(s.recv(1000))\n'
        "except OSError: print(b'')\n"
    )
    argv = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", code]
    stranger = await run([*argv, str(house.socket)])
    assert stranger.text == "b''\n"
    assert (await house.client.processes()) == []
