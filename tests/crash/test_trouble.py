"""What can happen to a house besides crashes: broken documents, other versions, full disks, …"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from typing import Any

import pytest

from guesthouse.host.keeper.procfs import read_stat, runs
from guesthouse.model.document import SCHEMA
from guesthouse.model.reports import StartRequest
from tests.crash.crashing_daemon import FILLER, fill
from tests.crash.daemon_house import CrashHouse, Street
from tests.crash.matrix import Case, Fault, Point, violations
from tests.e2e.conftest import GUEST, House, gone, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]


@pytest.fixture
def made(street: Street) -> CrashHouse:
    """A house with one guest that runs; its daemon may be killed and started at will."""
    house = street.house()
    try:
        settle_in(house)
    except Exception:  # what the test before left is not fit to live in
        street.leave()
        house = street.house()
    return house


def settle_in(house: CrashHouse) -> None:
    """As it was furnished, whatever the test before did."""
    house.revive()
    sound(house)
    assert house.bystander is not None
    kept = house.quick().guests.get(house.bystander.id)
    usable = kept is not None and kept.status.pid == house.bystander.pid
    for guest_id in house.quick().guests:
        if not usable or guest_id != house.bystander.id:
            house.remove(guest_id)
    if not usable:
        house.add_bystander()


def keeper_pid(house: CrashHouse) -> int:
    return int((house.folders.keeper_state / "keeper.lock").read_text())


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid), say=f"{pid} is gone")


def edit(house: CrashHouse, key: str, value: bytes) -> bytes:
    """Replace an entry of the database, while no daemon runs; answers what was there."""
    with sqlite3.connect(house.folders.database) as database:
        before: bytes = database.execute(
            "SELECT value FROM entries WHERE key = ?", (key,)
        ).fetchone()[0]
        database.execute("UPDATE entries SET value = ? WHERE key = ?", (value, key))
    database.close()
    return before


def change(house: CrashHouse, name: str, **fields: Any) -> None:
    """Change the launch record of a guest, while no daemon runs."""
    guest = house.quick().named(name)
    assert guest is not None
    key = f"guests/{guest.id}"
    document = json.loads(house.documents()[key])
    document["launch"].update(fields)
    if "pid" in fields:
        document["status"]["pid"] = fields["pid"]
    edit(house, key, json.dumps(document).encode())


def sound(house: CrashHouse) -> None:
    house.wait_idle()
    house.do(house.client.collect())
    deadline = time.monotonic() + 30
    while found := violations(house.snapshot()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def the_guest(house: CrashHouse) -> str:
    """The guest that runs from the beginning."""
    assert house.bystander is not None
    return house.client.guest(house.bystander.id).name


# --- documents and database -----------------------------------------------------------------------


def test_a_broken_document_is_set_aside_and_nothing_of_it_is_touched(made: CrashHouse) -> None:
    name = the_guest(made)
    guest = made.client.guest(name)
    key = f"guests/{guest.id}"
    layers = set(os.listdir(made.folders.pool / "layers"))
    made.kill()
    whole = edit(made, key, b'{"schema": 1, "id": "nonsense"')
    made.start()
    assert key in made.client.info().quarantined
    assert key in made.out("daemon", "status")
    assert made.json("ls") == []
    assert runs(guest.status.pid or 0)
    refused = made.client.job(made.client.collect().id)
    refused = until(lambda: (job := made.client.job(refused.id)).ended and job)
    assert refused.problem is not None
    assert (refused.state.value, refused.problem.code) == ("failed", "conflict")
    assert key in refused.problem.message
    assert set(os.listdir(made.folders.pool / "layers")) == layers
    other = made.launch("crash/disk", start=False)  # the rest of the house works
    made.do(made.client.delete_guest(other, now=True))
    assert runs(guest.status.pid or 0)
    made.kill()
    edit(made, key, whole)
    made.start()
    assert made.pid(name) == guest.status.pid
    assert made.out("exec", name, "--", "echo", "back") == "back\n"
    sound(made)


def test_a_newer_database_is_read_and_not_written(made: CrashHouse) -> None:
    name = the_guest(made)
    pid = made.pid(name)
    made.kill()
    schema(made, SCHEMA + 1)
    made.start()
    assert f"schema {SCHEMA + 1}" in made.client.info().read_only
    assert f"schema {SCHEMA + 1}" in made.out("daemon", "status")
    assert [guest["name"] for guest in made.json("ls")] == [name]
    assert made.pid(name) == pid
    refused = made.run("stop", name, ok=False)
    assert refused.returncode == 6, refused.stderr
    assert f"schema {SCHEMA + 1}" in refused.stderr.decode()
    assert runs(pid)
    made.kill()
    schema(made, SCHEMA)
    made.start()
    assert made.out("exec", name, "--", "echo", "back") == "back\n"
    sound(made)


def schema(house: CrashHouse, number: int) -> None:
    with sqlite3.connect(house.folders.database) as database:
        database.execute(f"PRAGMA user_version = {number:d}")
    database.close()


# --- processes that are not what they were --------------------------------------------------------


def test_a_host_that_rebooted(made: CrashHouse) -> None:
    name = the_guest(made)
    pid = made.pid(name)
    made.kill()
    end(keeper_pid(made))
    end(pid)
    change(made, name, boot_id="00000000-0000-0000-0000-000000000000")
    made.start()
    until(lambda: made.status(name)["state"] == "stopped", say="it is seen")
    assert made.status(name)["reason"] == "host-rebooted"
    sound(made)
    made.do(made.client.start(name, StartRequest(paused=True)))
    sound(made)


def test_a_host_that_rebooted_with_the_number_in_use_again(made: CrashHouse) -> None:
    """Of another boot even pid and start time together mean nothing."""
    name = the_guest(made)
    made.kill()
    end(keeper_pid(made))
    end(made.quick().engines[made.quick().named(name).id][0])  # type: ignore[union-attr]  # it is there
    with subprocess.Popen(["sleep", "1000"]) as foreign:
        ticks = read_stat(foreign.pid)[1]
        change(made, name, pid=foreign.pid, pid_start=ticks, boot_id="another")
        made.start()
        until(lambda: made.status(name)["state"] == "stopped", say="it is seen")
        assert made.status(name)["reason"] == "host-rebooted"
        assert made.run("stop", "--force", name).returncode == 0
        assert foreign.poll() is None
        foreign.kill()


def test_a_pid_that_is_another_process_now(made: CrashHouse) -> None:
    name = the_guest(made)
    pid = made.pid(name)
    made.kill()
    end(keeper_pid(made))  # nobody can tell how it ended
    end(pid)
    with subprocess.Popen(["sleep", "1000"]) as foreign:
        change(made, name, pid=foreign.pid)
        made.start()
        until(lambda: made.status(name)["state"] == "stopped", say="it is seen")
        assert made.status(name)["reason"] == "unknown"
        assert made.status(name)["pid"] is None
        for command in (["stop", "--force", name], ["rm", "--yes", "--force", "--now", name]):
            made.run(*command)
        assert foreign.poll() is None
        foreign.kill()
    sound(made)


# --- sockets, daemons, keepers --------------------------------------------------------------------


def test_sockets_that_were_left_behind(made: CrashHouse) -> None:
    name = the_guest(made)
    pid = made.pid(name)
    made.kill()
    end(keeper_pid(made))
    for path in (made.folders.socket, made.folders.keeper_socket):
        assert path.is_socket()  # what a kill leaves
    assert made.pid(name) == pid  # the command starts a daemon, and that a keeper
    assert made.out("exec", name, "--", "echo", "here") == "here\n"
    made.run("daemon", "stop")
    made.start()
    sound(made)


def test_a_second_daemon_is_refused(made: CrashHouse) -> None:
    argv = [sys.executable, "-P", "-m", "guesthouse.daemon"]
    second = subprocess.run(argv, env=made.env, capture_output=True, timeout=120, check=False)
    assert second.returncode == 5
    assert str(made.daemon_pid) in second.stderr.decode()
    assert made.status(the_guest(made))["state"] == "running"
    sound(made)


def test_the_keeper_dies_while_guests_run(made: CrashHouse) -> None:
    name = the_guest(made)
    pid, keeper = made.pid(name), keeper_pid(made)
    end(keeper)
    until(lambda: keeper_pid(made) != keeper, say="another keeper")
    assert made.pid(name) == pid
    assert made.out("exec", name, "--", "echo", "here") == "here\n"
    assert b"42-answer" in console(made, name, b"\necho $((6*7))-answer\n", b"42-answer")
    # What it started is not its child any more, yet its end is seen, though not how it came.
    end(pid)
    until(lambda: made.status(name)["state"] == "stopped", say="the end is seen")
    sound(made)


def console(house: House, name: str, typed: bytes, wanted: bytes) -> bytes:
    """Type something at `guest console` and read until it answers."""
    import pty

    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(house.env, TERM="xterm")
        os.execv(GUEST, [str(GUEST), "console", name])
    seen = b""
    ended = time.monotonic() + 60
    os.set_blocking(fd, False)
    while wanted not in seen and time.monotonic() < ended:
        os.write(fd, typed)
        time.sleep(0.5)
        try:
            seen += os.read(fd, 65536)
        except BlockingIOError:
            continue
    os.write(fd, b"\x1d")
    until(lambda: os.waitpid(pid, os.WNOHANG)[0], say="the console closes")
    os.close(fd)
    return seen


def test_the_command_line_follows_its_job_across_a_crash(made: CrashHouse) -> None:
    point = Point("guest.launch", "step:launch", "after")
    made.arm(Case("launch", point, Fault.DAEMON))
    before = made.daemon_pid
    done = made.run("launch", "crash/disk", "across", "--memory", "128M")
    assert made.struck() is not None
    assert "across" in done.stdout.decode()
    assert made.daemon_pid != before
    assert made.status("across")["ready"][-1] == "ssh"
    assert made.out("exec", "across", "--", "echo", "here") == "here\n"
    made.run("daemon", "stop")  # an ordinary one, which the command started
    made.start()
    sound(made)


# --- disks ----------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_read_only_state_folder(made: CrashHouse) -> None:
    """It says what is wrong; once it can be written again, all is as before."""
    name = the_guest(made)
    made.run("stop", "--force", name)
    made.run("daemon", "stop")
    end(keeper_pid(made))
    remount(made, "ro")
    try:
        refused = made.run("ls", ok=False)
        text = refused.stderr.decode()
        assert refused.returncode in {4, 9}, text
        assert str(made.state) in text
        assert "read-only" in text.lower()
        assert "Traceback" not in text
        argv = [sys.executable, "-P", "-m", "guesthouse.daemon"]  # as a service manager does
        alone = subprocess.run(argv, env=made.env, capture_output=True, timeout=120, check=False)
        assert alone.returncode == 9
        assert b"read-only" in alone.stderr.lower()
        assert b"Traceback" not in alone.stderr
    finally:
        remount(made, "rw")
    made.start()
    assert made.status(name)["state"] == "stopped"
    sound(made)


def remount(house: CrashHouse, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(house.state)], check=True)


@pytest.mark.root
def test_a_launch_on_a_full_disk(made: CrashHouse) -> None:
    guests = {guest["name"] for guest in made.json("ls")}
    fill(made.state / FILLER)
    refused = made.run("launch", "crash/disk", "nowhere", "--memory", "128M", ok=False)
    assert refused.returncode == 8, refused.stderr
    assert b"full" in refused.stderr or b"space" in refused.stderr
    assert {guest["name"] for guest in made.json("ls")} == guests
    made.free()
    sound(made)
    made.run("launch", "crash/disk", "nowhere", "--memory", "128M")
    sound(made)


@pytest.mark.root
def test_a_daemon_starts_on_a_full_disk(made: CrashHouse) -> None:
    """And a guest that ends there is not taken for a running one once there is room."""
    name, other = the_guest(made), made.launch("crash/disk")
    made.cut_journal()
    fill(made.state / FILLER)
    made.kill()
    made.start()
    assert {guest["name"] for guest in made.json("ls")} == {name, other}
    assert made.out("exec", name, "--", "echo", "here") == "here\n"
    end(made.pid(other))
    made.kill()
    made.start()
    assert made.out("exec", name, "--", "echo", "here") == "here\n"
    made.free()
    until(lambda: made.status(other)["state"] == "stopped", say="the end is recorded")
    assert made.status(other)["reason"] == "killed"
    sound(made)


@pytest.mark.root
@pytest.mark.parametrize("left", [0, 1 << 20])
def test_a_full_pool_pauses_the_guest_that_writes(made: CrashHouse, left: int) -> None:
    """:param left: bytes that the disk still has when the guest begins to write."""
    name = made.launch("crash/disk", ready=True, disk=64 << 20)
    pid = made.pid(name)
    fill(made.state / FILLER)
    with (made.state / FILLER).open("r+b") as filler:
        filler.truncate(os.fstat(filler.fileno()).st_size - left)
    writer = made.popen(
        "exec", name, "--", "dd", "if=/dev/urandom", "of=/dev/vda", "bs=1M", "count=32"
    )
    until(lambda: made.status(name)["state"] == "paused", say="it is paused")
    assert made.status(name)["reason"] == "io-error"
    assert made.status(name)["pid"] == pid
    early = made.run("resume", name, ok=False)  # still full: it goes on and stops again
    if early.returncode == 0:
        until(lambda: made.status(name)["state"] == "paused", say="it is paused again")
    made.free()
    made.run("resume", name)
    assert writer.wait(timeout=240) == 0
    assert made.status(name)["state"] == "running"
    assert made.out("exec", name, "--", "echo", "here") == "here\n"
    sound(made)


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-86400.0 * 400, 86400.0 * 400], ids=["back", "ahead"])
def test_a_clock_that_jumps(made: CrashHouse, jump: float) -> None:
    """The daemon's wall clock alone; that of the host stays as it is."""
    name = the_guest(made)
    pid = made.pid(name)
    made.turn_clock(jump)
    other = made.launch("crash/disk", ready=True)
    assert made.run("ls").returncode == 0
    assert made.run("info", name).returncode == 0
    made.kill()
    made.start()
    assert made.pid(name) == pid
    assert made.status(other)["state"] == "running"
    made.turn_clock(0.0)
    made.do(made.client.build_image("micro"))
    made.remove(made.client.guest(other).id)
    assert made.out("exec", name, "--", "echo", "here") == "here\n"
    sound(made)
