"""Builds that fail, are cancelled or cannot begin; and the key of a build. No package is fetched:
a small program stands in for mmdebstrap."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from guesthouse.errors import BuildFailed, Cancelled, HostLacks, InvalidInput, UnknownImage
from guesthouse.images import build as builders
from guesthouse.images import sources, toolrun
from guesthouse.images.build import BuildRequest, build, build_key, known
from guesthouse.images.debian import _follow_apt
from guesthouse.images.micro import _applets
from guesthouse.images.recipes import FILES
from guesthouse.images.spec import part
from guesthouse.images.toolrun import ToolRunner

MICRO = BuildRequest(name="micro")


def ignore(fraction: float, doing: str) -> None:
    assert 0.0 <= fraction <= 1.0
    assert doing


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a program `mmdebstrap`, first in PATH; the test writes it."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    keyring = tmp_path / "keys.gpg"
    keyring.touch()
    monkeypatch.setattr(sources.require_keyring, "__defaults__", (keyring,))
    (folder / "apt-get").touch(mode=0o755)
    return folder


def program(folder: Path, text: str, name: str = "mmdebstrap") -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}")
    (folder / name).chmod(0o755)


async def test_a_failed_build_keeps_the_last_lines_and_leaves_nothing(
    stand_in: Path, tmp_path: Path
) -> None:
    program(stand_in, "echo first; echo 'E: Unable to connect to mirror' >&2; exit 3\n")
    into = tmp_path / "into"
    with pytest.raises(BuildFailed, match="status 3") as caught:
        await build(MICRO, into, progress=ignore)
    assert caught.value.detail["log"] == ["first", "E: Unable to connect to mirror"]
    assert "mirror" in caught.value.hint
    assert sorted(path.name for path in into.iterdir()) == ["build.log"]
    assert "Unable to connect" in (into / "build.log").read_text()


def alive(marker: str) -> list[str]:
    listed = subprocess.run(["ps", "axo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if marker in line]


async def appears(marker: str) -> None:
    async with asyncio.timeout(20):
        while not alive(marker):  # noqa: ASYNC110  # another program's process tells nobody
            await asyncio.sleep(0.05)


async def disappears(marker: str) -> None:
    """Who was killed is listed for a moment more on a busy host."""
    async with asyncio.timeout(20):
        while alive(marker):  # noqa: ASYNC110  # another program's process tells nobody
            await asyncio.sleep(0.05)


async def test_cancelling_ends_the_whole_tree(stand_in: Path, tmp_path: Path) -> None:
    # One child of its own session, as apt starts dpkg, and one in the background.
    marker = f"9{os.getpid()}7"
    program(stand_in, f"sleep {marker} & setsid sleep {marker}1 & echo started; wait\n")
    into, cancelled = tmp_path / "into", asyncio.Event()
    running = asyncio.create_task(build(MICRO, into, progress=ignore, cancelled=cancelled))
    await appears(f"sleep {marker}1")
    cancelled.set()
    with pytest.raises(Cancelled):
        await asyncio.wait_for(running, 20)
    await disappears(f"sleep {marker}")
    assert sorted(path.name for path in into.iterdir()) == ["build.log"]


async def test_a_cancelled_task_ends_its_program_too(stand_in: Path, tmp_path: Path) -> None:
    marker = f"8{os.getpid()}7"
    program(stand_in, f"sleep {marker}\n")
    into = tmp_path / "into"
    running = asyncio.create_task(build(MICRO, into, progress=ignore))
    await appears(f"sleep {marker}")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 20)
    await disappears(f"sleep {marker}")
    assert sorted(path.name for path in into.iterdir()) == ["build.log"]


async def test_a_build_cancelled_before_it_begins_runs_nothing(
    stand_in: Path, tmp_path: Path
) -> None:
    program(stand_in, f"touch {tmp_path}/ran\n")
    cancelled = asyncio.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        await build(MICRO, tmp_path / "into", progress=ignore, cancelled=cancelled)
    assert not (tmp_path / "ran").exists()


async def test_a_missing_tool_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolrun, "_SBIN", ())
    with pytest.raises(HostLacks, match="mmdebstrap") as caught:
        await build(MICRO, tmp_path / "into", progress=ignore)
    assert caught.value.hint == "Install it: apt-get install apt mmdebstrap"


async def test_unknown_names_and_architectures(tmp_path: Path) -> None:
    with pytest.raises(UnknownImage) as unknown:
        await build(BuildRequest(name="debian/1"), tmp_path / "into", progress=ignore)
    assert "debian/12" in unknown.value.hint
    with pytest.raises(InvalidInput):
        build_key(BuildRequest(name="micro", architecture="m68k"))
    assert not (tmp_path / "into").exists()


def test_known_names_have_descriptions() -> None:
    names = [name for name, text in known() if text]
    assert {"debian/12", "debian/13", "micro"} <= set(names)


def test_the_key_follows_what_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: build_key(BuildRequest(name=name)) for name, _ in known()}
    assert len(set(keys.values())) == len(keys)
    assert keys["micro"] == build_key(MICRO)
    here = tmp_path / "images"
    shutil.copytree(FILES.parent, here)
    monkeypatch.setattr(builders, "__file__", str(here / "build.py"))
    monkeypatch.setattr(builders, "FILES", here / "files")
    assert build_key(MICRO) == keys["micro"]
    with (here / "files/micro/boot").open("a") as script:
        script.write("# changed\n")
    assert build_key(MICRO) != keys["micro"]


async def test_bars_drawn_over_are_read_but_not_logged(tmp_path: Path) -> None:
    log, seen = tmp_path / "log", []
    run = ToolRunner(log)
    tail = await run.run(
        ["printf", r"(1/100%%)\r(50/100%%)\rdone\nlast"], doing="testing", on_line=seen.append
    )
    assert seen == ["(1/100%)", "(50/100%)", "done"]
    assert tail == "done\nlast"
    assert log.read_text().splitlines()[1:] == ["done", "last"]


def test_a_part_of_the_progress_never_goes_back() -> None:
    seen: list[float] = []
    report = part(lambda fraction, _doing: seen.append(fraction), 0.5, 1.0)
    for fraction in (0.0, 0.5, 0.2, 1.5):
        report(fraction, "doing")
    assert seen == [0.5, 0.75, 0.75, 1.0]


def test_apt_lines_become_a_growing_fraction() -> None:
    seen: list[float] = []
    follow = _follow_apt(lambda fraction, _doing: seen.append(fraction))
    follow("0 upgraded, 200 newly installed, 0 to remove")
    for number in range(200):
        for line in (f"Get:{number} http://", "Unpacking libc", "Setting up libc"):
            follow(line)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)
    assert 0.4 < seen[len(seen) // 2] < 0.6


def test_applets_are_found_in_the_program() -> None:
    data = b"\x7fELF\0junk\0[\0[[\0acpid\0init\0run-parts\0sh\0usage of sh\0"
    assert _applets(data) == ["[", "[[", "acpid", "init", "run-parts", "sh"]
    with pytest.raises(BuildFailed):
        _applets(b"\0[\0[[\0ls\0")


SCRIPTS = [
    path
    for path in sorted(FILES.rglob("*"))
    if path.is_file() and path.read_bytes().startswith(b"#!")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(FILES)))
def test_scripts_for_guests_parse(script: Path) -> None:
    first = script.read_text().splitlines()[0]
    check = ["perl", "-c"] if "perl" in first else ["sh", "-n"]
    done = subprocess.run([*check, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
