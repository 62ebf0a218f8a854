"""The trial guest, and how its outcome is judged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guesthouse.host import kvm_trial, probe_kvm
from guesthouse.host.kvm_device import examine
from guesthouse.host.launcher import Confinement
from guesthouse.host.probe_kvm import Trial, judge, run_trial, without_trial

SOURCE = Path(kvm_trial.__file__).with_suffix(".S")
QEMU = shutil.which("qemu-system-x86_64") or ""
MACHINE = "pc-q35-7.2"


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("ld")), reason="no binutils here")
def test_bytes_are_the_assembled_source(tmp_path: Path) -> None:
    subprocess.run(["as", "--64", "-o", tmp_path / "t.o", SOURCE], check=True)
    link = [
        "ld",
        "-Ttext",
        "0x100000",
        "--oformat",
        "binary",
        "-o",
        tmp_path / "t",
        tmp_path / "t.o",
    ]
    subprocess.run(link, check=True)
    assert (tmp_path / "t").read_bytes() == kvm_trial.CODE


@pytest.mark.qemu
async def test_trial_passes_under_emulation() -> None:
    trial = await run_trial(
        QEMU, MACHINE, "tcg", confinement=Confinement(), am_root=os.geteuid() == 0
    )
    assert trial.passed, trial
    assert trial.letters == "ABCDEF"


@pytest.mark.qemu
@pytest.mark.root
async def test_trial_runs_confined_with_another_uid() -> None:
    other = Confinement(uid=0x70000001, gid=0x70000001)
    trial = await run_trial(QEMU, MACHINE, "tcg", confinement=other, am_root=True)
    assert trial.passed, trial


@pytest.mark.qemu
async def test_a_broken_guest_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid instruction where SSE2 was: the guest must say so, not pass."""
    start = kvm_trial.CODE.index(bytes.fromhex("660f6f0425"))
    broken = kvm_trial.CODE[:start] + b"\x0f\x0b" + kvm_trial.CODE[start + 2 :]
    monkeypatch.setattr(probe_kvm, "CODE", broken)
    trial = await run_trial(
        QEMU, MACHINE, "tcg", confinement=Confinement(), am_root=os.geteuid() == 0
    )
    assert not trial.passed
    assert trial.letters.startswith("AB")
    assert "F" not in trial.letters


@pytest.mark.qemu
async def test_a_hanging_guest_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_kvm, "RUN_SECONDS", 0.3)
    start = kvm_trial.CODE.index(bytes.fromhex("660f6f0425"))
    monkeypatch.setattr(
        probe_kvm, "CODE", kvm_trial.CODE[:start] + b"\xeb\xfe" + kvm_trial.CODE[start + 2 :]
    )
    trial = await run_trial(
        QEMU, MACHINE, "tcg", confinement=Confinement(), am_root=os.geteuid() == 0
    )
    assert (trial.exit_code, trial.letters) == (None, "AB")


async def test_qemu_that_does_not_start_is_quoted() -> None:
    trial = await run_trial(
        QEMU or "/bin/false",
        "no-such-machine",
        "tcg",
        confinement=Confinement(),
        am_root=os.geteuid() == 0,
    )
    assert not trial.passed
    assert trial.letters == ""


@pytest.mark.parametrize(
    ("trial", "settled", "words"),
    [
        (
            Trial(exit_code=None, letters="AB", error="KVM internal error. Suberror: 1"),
            True,
            "SSE2",
        ),
        (Trial(exit_code=None, letters="AB", error=""), False, "stopped at its first SSE2"),
        (Trial(exit_code=43, letters="ABCD!", error=""), False, "stopped somewhere"),
        (Trial(exit_code=1, letters="", error="a\nInvalid argument"), False, "Invalid argument"),
        (Trial(exit_code=85, letters="ABCDE", error=""), False, "timer"),
    ],
)
async def test_judgement_of_failures(
    trial: Trial, settled: bool, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0o666)
    device.chmod(0o666)

    async def outcome(*_args: object, **_named: object) -> Trial:
        return trial

    monkeypatch.setattr(probe_kvm, "run_trial", outcome)
    verdict = await judge(QEMU, MACHINE, am_root=False, identity=Confinement(), kvm=device)
    assert verdict.verdict == "cannot-run"
    assert verdict.settled is settled
    assert words in verdict.reason


@pytest.mark.parametrize(("mode", "verdict"), [(0o666, "works"), (0o600, "no-permission")])
async def test_a_passed_trial_works_only_where_guests_may_open_the_device(
    mode: int, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    used: list[Confinement] = []

    async def outcome(*_args: object, confinement: Confinement, **_named: object) -> Trial:
        used.append(confinement)
        return Trial(exit_code=kvm_trial.EXIT_GOOD, letters="ABCDEF", error="")

    monkeypatch.setattr(probe_kvm, "run_trial", outcome)
    identity = Confinement(uid=70000, gid=70000)
    found = await judge(QEMU, MACHINE, am_root=True, identity=identity, kvm=device)
    assert found.verdict == verdict
    assert used == [identity if mode == 0o666 else Confinement()]
    if verdict == "no-permission":
        assert "0600" in found.reason
        assert "chgrp kvm" in found.cure


def test_device_absent(tmp_path: Path) -> None:
    device = examine(am_root=True, path=tmp_path / "none")
    verdict = without_trial(device)
    assert verdict is not None
    assert verdict.verdict == "absent"
    assert "modprobe" in verdict.cure


def test_device_forbidden(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0)
    device.chmod(0)
    if os.access(device, os.R_OK):
        # Root may open anything: ask as somebody else, in a child.
        code = (
            "import os, sys; from pathlib import Path\n"
            "from guesthouse.host.kvm_device import examine\n"
            "from guesthouse.host.probe_kvm import without_trial\n"
            "os.setgroups([]); os.setuid(65534)\n"
            "print(without_trial(examine(am_root=False, path=Path(sys.argv[1]))).verdict)"
        )
        for folder in (tmp_path, *tmp_path.parents[:3]):
            if folder != Path("/tmp"):
                folder.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", code, str(device)], check=True, capture_output=True, text=True
        )
        assert done.stdout.strip() == "no-permission"
    else:
        verdict = without_trial(examine(am_root=False, path=device))
        assert verdict is not None
        assert verdict.verdict == "no-permission"


@pytest.mark.parametrize(
    ("mode", "gid", "opens", "group"),
    [(0o660, 107, True, 107), (0o666, 107, True, None), (0o600, 107, False, None)],
)
@pytest.mark.root
def test_group_that_guests_of_root_need(
    tmp_path: Path, mode: int, gid: int, opens: bool, group: int | None
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    os.chown(device, 0, gid)
    found = examine(am_root=True, path=device)
    assert (found.guests_open, found.group) == (opens, group)


@pytest.mark.root
def test_roots_own_group_is_never_kept(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(0o660)
    os.chown(device, 0, 0)
    assert not examine(am_root=True, path=device).guests_open
