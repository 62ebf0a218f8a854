"""Processes that outlive whoever started them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from guesthouse.errors import EngineError, HostLacks
from guesthouse.host.process import is_alive
from guesthouse.network.house.services import Services, start

from .keeper_house import until

pytestmark = pytest.mark.rootless
STUBBORN = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(99)"
)


@pytest.fixture
async def ended() -> list[str]:
    return []


@pytest.fixture
async def services(tmp_path: Path, ended: list[str]) -> AsyncIterator[Services]:
    made = Services(tmp_path / "services.json", ended.append)
    yield made
    for name in made.names:
        await made.stop(name)


def sleeper() -> int:
    return start(["sleep", "99"], {})


async def test_an_end_is_noticed_and_a_stop_is_not_told(
    services: Services, ended: list[str]
) -> None:
    one, two = sleeper(), sleeper()
    await services.add("one", one, "x")
    await services.add("two", two, "x")
    os.kill(one, signal.SIGKILL)
    await until(lambda: ended)
    assert ended == ["one"] and services.of("one") is None
    await services.stop("two")
    await services.stop("two")
    assert not is_alive(two) and ended == ["one"]
    for pid in (one, two):
        with pytest.raises(ProcessLookupError):  # they are reaped
            os.kill(pid, 0)


async def test_they_are_found_again(services: Services, tmp_path: Path) -> None:
    pid = sleeper()
    await services.add("one", pid, "what it is made of")
    await services.add("gone", (gone := sleeper()), "x")
    await services.close()
    os.kill(gone, signal.SIGKILL)
    await until(lambda: not is_alive(gone))
    told: list[str] = []
    after = Services(tmp_path / "services.json", told.append)
    await after.find()
    found = after.of("one")
    assert found is not None and (found.pid, found.made_of) == (pid, "what it is made of")
    assert after.names == ("one",)
    await after.stop("one")
    assert not is_alive(pid) and not told


@pytest.mark.parametrize("text", [b"", b"{", b'{"boot": "another", "services": {}}'])
async def test_a_record_that_says_nothing_is_no_obstacle(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "services.json").write_bytes(text)
    services = Services(tmp_path / "services.json", lambda _name: None)
    await services.find()
    assert services.names == ()


async def test_what_does_not_end_is_killed(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guesthouse.network.house.services._END_SECONDS", 0.3)
    ours, theirs = os.pipe()
    pid = start([sys.executable, "-c", STUBBORN], {}, output=theirs)
    os.close(theirs)
    assert os.read(ours, 1) == b"1"
    os.close(ours)
    await services.add("one", pid, "x")
    await services.stop("one")
    assert not is_alive(pid)


async def test_what_ends_at_once_is_no_service(services: Services) -> None:
    pid = start(["true"], {})
    await until(lambda: not is_alive(pid))
    with pytest.raises(EngineError, match="as soon as it began"):
        await services.add("one", pid, "x")
    with pytest.raises(HostLacks, match="not installed"):
        start(["no-such-program"], {})


def test_descriptors_get_their_numbers_whatever_ours_are() -> None:
    """Also where one of ours has the number that another is to have there."""
    ends = [os.pipe() for _ in range(3)]
    script = "import os\nfor fd in (3, 4, 5): os.write(fd, str(fd).encode())"
    pid = start([sys.executable, "-c", script], {5 - i: write for i, (_, write) in enumerate(ends)})
    os.waitpid(pid, 0)
    assert [os.read(read, 9) for read, _ in ends] == [b"5", b"4", b"3"]
    for pair in ends:
        for fd in pair:
            os.close(fd)
