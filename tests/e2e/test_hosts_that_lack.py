"""Hosts that lack something, and guests that do not come up: clear errors, nothing left behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import House

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]


@pytest.fixture
def bare() -> Iterator[House]:
    """A house whose environment a test may spoil before its daemon starts."""
    made = House(Path(tempfile.mkdtemp(prefix="gh-")))
    try:
        yield made
    finally:
        made.close()


def test_qemu_missing(bare: House) -> None:
    bare.env["GUESTHOUSE_QEMU"] = "/nonexistent/qemu"
    done = bare.run("launch", "micro", "m", ok=False)
    text = done.stderr.decode()
    assert (done.returncode, "Traceback" in text) == (9, False), text
    # Not that QEMU is not installed: the setting is what is wrong.
    assert "GUESTHOUSE_QEMU is '/nonexistent/qemu'" in text
    assert "guest daemon restart" in text
    assert "PATH" not in text
    assert bare.json("ls") == []
    doctor = bare.run("doctor", ok=False)
    assert doctor.returncode == 1
    assert b"qemu" in doctor.stdout


def test_a_guest_that_is_not_ready_in_time_stays_and_says_what_it_waits_for(bare: House) -> None:
    done = bare.run("launch", "micro", "slow", "--timeout", "0.5", ok=False)
    text = done.stderr.decode()
    assert done.returncode == 7, text
    assert "runs on" in text or "not ready" in text
    assert "guest logs" in text or "guest console" in text
    assert bare.status("slow")["state"] == "running"
    failed = next(job for job in bare.json("job", "ls") if job["kind"] == "guest.launch")
    assert failed["problem"]["code"] == "not-ready"
    assert failed["problem"]["detail"]["check"]


def test_kvm_that_cannot_run_guests_is_seen_through(bare: House) -> None:
    """Where KVM works this proves nothing; where it does not, asking for it must say why."""
    facts = bare.json("doctor")
    if facts["accelerator"] == "kvm":
        bare.run("launch", "micro", "m", "--accelerator", "kvm")
        assert bare.json("info", "m")["launch"]["accelerator"] == "kvm"
        return
    done = bare.run("launch", "micro", "m", "--accelerator", "kvm", ok=False)
    assert done.returncode == 9
    assert "kvm" in done.stderr.decode().lower()
    assert bare.json("ls") == []
    bare.run("launch", "micro", "m", "--no-wait")
    launch = bare.json("info", "m")["launch"]
    assert launch["accelerator"] == "tcg"
    assert launch["accelerator_reason"]


def test_without_networks_a_guest_has_one_of_its_own_and_is_told_why(bare: House) -> None:
    """Where this host has networks the guest is on one; where it has not, all else works."""
    facts = bare.json("doctor")
    networks = next(one for one in facts["capabilities"] if one["name"] == "networks")
    bare.run("launch", "micro", "m", "--memory", "128M")
    (nic,) = bare.json("info", "m")["spec"]["nics"]
    launch = next(job for job in bare.json("job", "ls") if job["kind"] == "guest.launch")
    log = bare.out("job", "log", launch["id"])
    bare.run("network", "create", "lab", "--kind", "isolated")
    if networks["available"]:
        assert nic["network"] != "builtin" and bare.json("network", "info", "default")["members"]
        bare.run("launch", "micro", "n", "--memory", "128M", "--network", "lab", "--no-wait")
        return
    assert networks["cure"]
    reason = networks["reason"].partition(": ")[2]
    assert (nic["network"], reason in log) == ("builtin", True), log
    assert "MemTotal" in bare.out("exec", "m", "--", "cat", "/proc/meminfo")
    bare.run("publish", "m", "0:22")
    done = bare.run("launch", "micro", "n", "--network", "lab", ok=False)
    text = done.stderr.decode()
    assert (done.returncode, reason in text) == (9, True), text
    assert networks["cure"] in text


def test_a_port_that_a_program_holds(bare: House) -> None:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = bare.run("launch", "micro", "m", "--publish", f"{port}:80", ok=False)
        assert done.returncode == 5
        assert "process" in done.stderr.decode()
        assert bare.json("ls") == []
    bare.run("launch", "micro", "m", "--publish", f"{port}:80", "--no-wait")
