"""`guest doctor`: what it shows of host and house, and what its exit code says."""

from __future__ import annotations

import os
import pty
from pathlib import Path

import pytest

from guesthouse.host.capabilities import of_kvm
from guesthouse.host.kvm_device import examine
from guesthouse.host.probe_kvm import KvmVerdict, Trial, _failed, without_trial
from guesthouse.model.checkup import Check, Health
from guesthouse.model.host import Capability

from .cli_room import Room

QEMU = Capability(name="qemu", available=True, reason="QEMU 7.2.19 at /usr/bin/qemu.")


def test_all_is_well(guest: Room) -> None:
    said = guest("doctor")
    assert said.code == 0
    assert "Guests can run here.\n" in said.out
    assert guest.json("doctor")["healthy"] is True


def test_what_the_host_lacks_comes_first_with_its_cure(guest: Room) -> None:
    guest.house.capabilities = (
        QEMU,
        Capability(name="kvm", available=False, reason="No /dev/kvm.", cure="modprobe kvm"),
    )
    said = guest("doctor")
    assert said.code == 0
    lines = [line.split() for line in said.out.splitlines()]
    assert lines.index(["no", "kvm", "No", "/dev/kvm."]) < lines.index(
        ["ok", "qemu", "QEMU", "7.2.19", "at", "/usr/bin/qemu."]
    )
    assert ["cure:", "modprobe", "kvm"] in lines
    assert "Guests can run here; 1 thing would make it better." in said.out
    assert guest.json("doctor")["capabilities"][1]["cure"] == "modprobe kvm"


def test_without_what_matters_the_exit_code_is_1(guest: Room) -> None:
    guest.house.capabilities = (
        Capability(name="qemu", available=False, reason="None.", cure="apt install qemu"),
    )
    said = guest("doctor")
    assert said.code == 1
    assert "MISSING qemu" in said.out
    assert "Guests cannot run here: qemu missing." in said.out
    assert guest("doctor", "--json").code == 1


def test_trouble_of_the_house(guest: Room) -> None:
    guest.house.checks = (
        Check(name="keeper", health=Health.FINE, message="It is there."),
        Check(name="space", health=Health.NOTICE, message="It is getting full.", cure="guest rm x"),
        Check(name="documents", health=Health.TROUBLE, message="One is broken.", cure="Mend it."),
    )
    said = guest("doctor")
    assert said.code == 1
    house = said.out.split("How the house is\n")[1].splitlines()
    assert [line.split()[0] for line in house if line] == [
        "TROUBLE", "cure:", "note", "cure:", "ok", "Guests",
    ]  # fmt: skip
    assert "The house has trouble: documents." in said.out
    said = guest("doctor", "--json")
    assert said.code == 1
    assert '"healthy": false' in said.out
    guest.house.checks = guest.house.checks[:2]
    assert guest("doctor").code == 0  # a notice breaks nothing


def _no_permission(tmp_path: Path) -> KvmVerdict | None:
    """The device of another group, as an ordinary user finds it."""
    device = tmp_path / "kvm"
    device.touch(mode=0o660)
    found = examine(am_root=True, path=device)._replace(
        opens=False,
        reason="/dev/kvm belongs to group kvm and you are not in it.",
        cure="sudo usermod -aG kvm $USER, then log in again",
    )
    return without_trial(found)


VERDICTS = {
    "works": lambda _: KvmVerdict(verdict="works", reason="A trial guest ran to its end."),
    "cannot-run": lambda _: _failed(
        Trial(exit_code=None, letters="AB", error="KVM internal error")
    ),
    "no-permission": _no_permission,
    "absent": lambda folder: without_trial(examine(am_root=True, path=folder / "none")),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_every_verdict_on_kvm_is_shown_with_its_cure(
    guest: Room, tmp_path: Path, name: str
) -> None:
    verdict = VERDICTS[name](tmp_path)
    assert verdict is not None
    assert verdict.verdict == name
    guest.house.capabilities = (QEMU, of_kvm(verdict))
    said = guest("doctor")
    assert said.code == 0
    assert verdict.reason in said.out
    kvm = guest.json("doctor")["capabilities"][1]
    assert (kvm["verdict"], kvm["available"]) == (name, name == "works")
    cures = {
        "works": "",
        "cannot-run": "nested virtualisation",
        "no-permission": "sudo usermod -aG kvm $USER",
        "absent": "sudo modprobe kvm_intel || sudo modprobe kvm_amd",
    }
    assert cures[name] in kvm["cure"]
    assert (f"cure: {kvm['cure']}" in said.out) == (name != "works")


def test_a_kvm_that_qemu_cannot_use_has_a_cure_too() -> None:
    verdict = _failed(Trial(exit_code=1, letters="", error="failed to initialize kvm: Bad"))
    assert (verdict.verdict, "dmesg" in verdict.cure) == ("cannot-run", True)


@pytest.mark.parametrize("columns", [50, 80])
def test_it_fits_the_terminal(guest: Room, columns: int) -> None:
    import termios

    long = "word " * 40
    guest.house.capabilities = (
        QEMU, Capability(name="kvm", available=False, reason=long, cure=long),
    )  # fmt: skip
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    process = guest.process("doctor", stdout=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # EIO: the other end has closed
            break
    os.close(ours)
    assert process.wait(30) == 0
    assert max(map(len, seen.decode().splitlines())) <= columns
