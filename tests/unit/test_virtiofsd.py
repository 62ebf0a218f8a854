"""Which virtiofsd a host has, by what it says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from guesthouse.host import virtiofsd

pytestmark = pytest.mark.rootless

RUST = "--shared-dir <DIR> --sandbox <KIND> --translate-uid <MAP> --readonly"


def test_it_says_what_it_can() -> None:
    assert virtiofsd.abilities("/v", RUST) == virtiofsd.Virtiofsd("/v", True, True, True)
    assert not virtiofsd.abilities("/v", "  -o source=PATH  shared directory tree").rust
    assert not virtiofsd.abilities("/v", "--shared-dir --sandbox").maps


async def test_the_one_that_is_named_is_asked_once(tmp_path: Path) -> None:
    program, asked = tmp_path / "virtiofsd", tmp_path / "asked"
    program.write_text(f"#!/bin/sh\necho >>{asked}\necho '{RUST}'\n")
    program.chmod(0o755)
    env = {virtiofsd.OVERRIDE: str(program), "PATH": "/usr/bin:/bin"}
    for _ in range(2):
        found = await virtiofsd.find(env)
        assert found.path == str(program) and found.rust and found.maps and found.read_only
    assert asked.read_text() == "\n"


async def test_none_and_one_that_does_not_run(tmp_path: Path) -> None:
    env = {virtiofsd.OVERRIDE: str(tmp_path / "none"), "PATH": "/usr/bin:/bin"}
    assert await virtiofsd.find(env) == virtiofsd.Virtiofsd()
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    found = await virtiofsd.find({**env, virtiofsd.OVERRIDE: str(broken)})
    assert found.path == str(broken) and not found.rust
