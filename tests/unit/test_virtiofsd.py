"""Which virtiofsd a host has, by what it says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from guesthouse.host import virtiofsd
from guesthouse.model.host import QemuBinary

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


def qemu(*version: int) -> QemuBinary:
    major, minor = version
    return QemuBinary(path="/usr/bin/qemu", version=(major, minor, 0), machine="pc-q35-8.2")


@pytest.mark.parametrize(
    ("found", "engine", "reason", "cure"),
    [
        (virtiofsd.Virtiofsd(), qemu(8, 2), "There is no virtiofsd.", "get it"),
        (virtiofsd.Virtiofsd("/v"), qemu(8, 2), "only root can run", "virtiofsd 1.13"),
        (virtiofsd.Virtiofsd("/v", True), qemu(8, 2), "cannot map owners", "virtiofsd 1.13"),
        (virtiofsd.Virtiofsd("/v", True, True, True), None, "Without QEMU", ""),
        (virtiofsd.Virtiofsd("/v", True, True, True), qemu(7, 2), "QEMU 7.2.0", "QEMU 8.2 or"),
    ],
)
def test_why_shares_do_not_go_by_virtiofs(
    found: virtiofsd.Virtiofsd, engine: QemuBinary | None, reason: str, cure: str
) -> None:
    said = virtiofsd.capability(found, engine, "get it")
    assert not said.available and said.name == "virtiofs"
    assert said.reason.startswith("Shares go by sftp: ") and reason in said.reason
    assert cure in said.cure


def test_shares_go_by_virtiofs() -> None:
    whole = virtiofsd.Virtiofsd("/v", True, True, True)
    for version in ((8, 2), (9, 0)):
        assert virtiofsd.capability(whole, qemu(*version), "get it").available
