"""Running other programs: output, caps, deadlines, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from guesthouse.errors import DeadlineExceeded, HostLacks, ToolFailed
from guesthouse.host.process import is_alive
from guesthouse.host.spawn import run

from .keeper_house import until

pytestmark = pytest.mark.rootless


async def test_output_and_input() -> None:
    done = await run(["cat", "-"], stdin=b"words\n" * 50_000)
    assert done.out == b"words\n" * 50_000
    assert (done.code, done.err, done.truncated) == (0, b"", False)
    done = await run(["sh", "-c", "echo ü; echo careful >&2"])
    assert (done.text, done.err) == ("ü\n", b"careful\n")


async def test_without_input_there_is_none() -> None:
    assert (await run(["cat"])).out == b""


async def test_input_that_is_not_wanted() -> None:
    assert (await run(["true"], stdin=b"x" * 1_000_000)).code == 0
    assert (await run(["head", "-c", "1"], stdin=b"x" * 1_000_000)).out == b"x"


async def test_arguments_are_never_a_shells() -> None:
    done = await run(["printf", "%s|", "a b", "$HOME", "; ls", "", "*"])
    assert done.text == "a b|$HOME|; ls||*|"


async def test_failure_quotes_the_last_lines() -> None:
    with pytest.raises(ToolFailed) as failed:
        await run(["sh", "-c", "for n in 1 2 3 4 5 6 7; do echo line $n >&2; done; exit 4"])
    message = failed.value.message
    assert message.startswith("sh failed with exit code 4.")
    assert "line 3 / line 4 / line 5 / line 6 / line 7" in message
    assert "line 2" not in message
    assert failed.value.detail["exit_code"] == 4


async def test_failure_quotes_stdout_where_stderr_is_silent() -> None:
    with pytest.raises(ToolFailed, match="It said: no luck"):
        await run(["sh", "-c", "echo no luck; exit 1"])


async def test_failure_by_a_signal() -> None:
    with pytest.raises(ToolFailed, match="signal SIGSEGV"):
        await run(["sh", "-c", "kill -SEGV $$"])
    done = await run(["sh", "-c", "kill -TERM $$"], check=False)
    assert done.code == -signal.SIGTERM


async def test_a_missing_program_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(HostLacks) as lacks:
        await run([str(tmp_path / "qemu-img"), "info"])
    assert lacks.value.hint == "Install it: apt install qemu-utils"
    assert lacks.value.detail["capability"] == "qemu-img"
    with pytest.raises(HostLacks, match="no-such-program"):
        await run(["no-such-program"])


async def test_a_folder_of_the_path_that_we_may_not_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    monkeypatch.setenv("PATH", f"{closed}:{os.environ['PATH']}")
    with pytest.raises(HostLacks):
        await run(["no-such-program"])


async def test_what_cannot_be_run_is_not_taken_for_missing(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    with pytest.raises(ToolFailed, match="Permission denied"):
        await run([str(tmp_path / "text")])
    with pytest.raises(ToolFailed, match="No such file"):
        await run(["true"], cwd=tmp_path / "nowhere")


async def test_output_is_capped_at_both_ends() -> None:
    code = "import sys\nsys.stdout.write('o' * 10**6)\nsys.stderr.write('e' * 10**6 + 'end')"
    done = await run([sys.executable, "-c", code], cap=1000)
    assert done.out == b"o" * 1000
    assert done.truncated
    assert len(done.err) == 64 << 10
    assert done.err.endswith(b"eend")


def pids_in(path: Path) -> list[int]:
    """The pids that the script below has written, once all are there."""
    return [int(word) for word in path.read_text().split()] if path.exists() else []


FAMILY = "sleep 1000 & echo $$ $! > pids; echo said something >&2; wait"


async def test_a_late_program_is_killed_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded, match=r"within 0\.5 seconds.*said something"):
        await run(["sh", "-c", FAMILY], timeout=0.5, cwd=tmp_path)
    pids = pids_in(tmp_path / "pids")
    assert len(pids) == 2
    await until(lambda: not any(map(is_alive, pids)))


async def test_a_cancelled_program_is_killed_with_its_children(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    task = asyncio.create_task(run(["sh", "-c", FAMILY], cwd=tmp_path))
    await until(lambda: len(pids_in(tmp_path / "pids")) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    shell, sleeper = pids_in(tmp_path / "pids")
    assert not is_alive(shell), "reaped before the cancellation came through"
    await until(lambda: not is_alive(sleeper))
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_leader_that_left_its_children_with_the_output(tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        await run(["sh", "-c", "sleep 1000 & echo $! > pids"], timeout=0.5, cwd=tmp_path)
    (sleeper,) = pids_in(tmp_path / "pids")
    await until(lambda: not is_alive(sleeper))


async def test_descriptors_are_passed_under_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    done = await run(["cat", f"/proc/self/fd/{fd}"], fds=[fd])
    assert done.text == "content"
    os.close(fd)
    done = await run(["ls", "/proc/self/fd"])
    assert done.text.split() == ["0", "1", "2", "3"], "3 is the folder that ls reads"


async def test_the_environment() -> None:
    assert "LC_ALL=C.UTF-8" in (await run(["env"])).text.split("\n")
    assert (await run(["/usr/bin/env"], env={"A": "b"})).text == "A=b\n"


async def test_many_at_once_leave_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    results = await asyncio.gather(*(run(["sh", "-c", f"echo {n}"]) for n in range(50)))
    assert [int(done.out) for done in results] == list(range(50))
    assert len(os.listdir("/proc/self/fd")) == before
