"""The main job with the micro guest: launch, work in it, stop, start, change, remove."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from .conftest import GUEST, House, gone, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]


def test_launch_and_exec(house: House, micro: str) -> None:
    assert "MemTotal" in house.out("exec", micro, "--", "cat", "/proc/meminfo")
    info = house.json("info", micro)
    assert info["status"]["state"] == "running"
    assert info["status"]["ready"] == ["process", "kernel", "agent", "network", "ssh"]
    assert not gone(info["status"]["pid"])
    assert info["addresses"]


def test_exit_code_signal_and_streams(house: House, micro: str) -> None:
    done = house.run("exec", micro, "--", "sh", "-c", "echo out; echo err >&2; exit 37", ok=False)
    assert (done.returncode, done.stdout) == (37, b"out\n")
    assert b"err" in done.stderr
    killed = house.run("exec", micro, "--", "sh", "-c", "kill -TERM $$", ok=False)
    assert killed.returncode in (128 + 15, 255)
    spaced = house.out("exec", micro, "--", "printf", "%s|", "a b", "$HOME", "'q'", "")
    assert spaced == "a b|$HOME|'q'||"


def test_exec_streams_both_ways(house: House, micro: str) -> None:
    data = os.urandom(8 << 20)
    back = house.run("exec", micro, "--", "cat", stdin=data)
    assert hashlib.sha256(back.stdout).digest() == hashlib.sha256(data).digest()


def test_exec_timeout_kills_the_command(house: House, micro: str) -> None:
    done = house.run("exec", "--timeout", "1", micro, "--", "sleep", "1234", ok=False)
    assert done.returncode != 0
    until(
        lambda: "sleep 1234" not in house.out("exec", micro, "--", "ps"), say="the command is gone"
    )


def test_copy_in_and_out(house: House, micro: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "a file").write_bytes(os.urandom(300_000))
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    house.run("cp", "-r", str(tree), f"{micro}:/tmp/tree")
    house.run("cp", "-r", f"{micro}:/tmp/tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "deep" / "a file").read_bytes() == (
        tree / "deep" / "a file"
    ).read_bytes()
    assert (tmp_path / "back" / "run").stat().st_mode & 0o777 == 0o755


def test_a_port_that_cannot_be_published_live_is_refused_cleanly(house: House) -> None:
    house.run("launch", "micro", "own", "--memory", "128M", "--network", "builtin")
    done = house.run("publish", "own", "[::1]:8022:22", ok=False)
    assert done.returncode == 2
    assert "IPv6" in done.stderr.decode()
    failed = house.json("job", "ls")[0]
    assert failed["kind"] == "guest.publish"
    assert "undoing failed" not in house.out("job", "log", failed["id"])
    assert "Traceback" not in (house.state / "daemon.log").read_text()
    assert not house.json("info", "own")["spec"]["nics"][0]["ports"]
    house.run("rm", "--yes", "--force", "own")


def test_published_port_reaches_the_guest_live(house: House, micro: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    house.run("publish", micro, f"{port}:22")

    def banner() -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                return connection.recv(64)
        except OSError:
            return b""

    assert until(banner, say="ssh's banner through the port").startswith(b"SSH-")
    taken = house.run("launch", "micro", "clash", "--publish", f"{port}:80", ok=False)
    assert taken.returncode == 5
    assert micro in taken.stderr.decode()
    house.run("unpublish", micro, str(port))
    assert banner() == b""


def test_pause_resume_screenshot_logs(house: House, micro: str, tmp_path: Path) -> None:
    house.run("pause", micro)
    status = house.status(micro)
    assert (status["state"], status["reason"]) == ("paused", "user")
    house.run("resume", micro)
    assert house.status(micro)["state"] == "running"
    house.run("screenshot", micro, "-o", str(tmp_path / "screen.png"))
    assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
    assert "BusyBox" in house.out("logs", micro)


def test_daemon_killed_guest_lives_on(house: House, micro: str) -> None:
    before = house.status(micro)
    uptime = float(house.out("exec", micro, "--", "cat", "/proc/uptime").split()[0])
    house.kill_daemon()
    assert not gone(before["pid"])
    listed = {guest["name"]: guest for guest in house.json("ls")}
    assert listed[micro]["status"]["state"] == "running"
    after = house.status(micro)
    assert (after["pid"], after["started_at"]) == (before["pid"], before["started_at"])
    assert float(house.out("exec", micro, "--", "cat", "/proc/uptime").split()[0]) > uptime


def test_own_power_off_is_told_from_a_kill(house: House) -> None:
    house.run("launch", "micro", "ends", "--memory", "128M")
    house.run("exec", "ends", "--", "poweroff", ok=False)
    until(lambda: house.status("ends")["state"] == "stopped", say="it powered off")
    assert house.status("ends")["reason"] == "guest-shutdown"
    house.run("start", "ends", "--wait")
    os.kill(house.pid("ends"), 9)
    until(lambda: house.status("ends")["state"] in ("stopped", "failed"), say="the kill is seen")
    assert house.status("ends")["reason"] == "killed"
    house.run("rm", "--yes", "ends")


def test_power_off_while_no_daemon_runs(house: House) -> None:
    house.run("launch", "micro", "away", "--memory", "128M")
    pid = house.pid("away")
    # It powers off after the daemon is gone.
    house.run("exec", "away", "--", "sh", "-c", "(sleep 4; poweroff) >/dev/null 2>&1 &")
    house.kill_daemon()
    until(lambda: gone(pid), say="the guest powered off")
    until(lambda: house.status("away")["state"] == "stopped", say="the end is recorded")
    assert house.status("away")["reason"] == "guest-shutdown"
    house.run("rm", "--yes", "away")


def test_guest_panic_is_a_failure_with_its_reason(house: House) -> None:
    house.run("launch", "micro", "panics", "--memory", "128M")
    house.run(
        "exec",
        "--timeout",
        "20",
        "panics",
        "--",
        "sh",
        "-c",
        "echo c > /proc/sysrq-trigger",
        ok=False,
    )
    until(lambda: house.status("panics")["state"] == "failed", say="the panic is seen")
    assert house.status("panics")["reason"] == "guest-panic"
    house.run("rm", "--yes", "panics")


def test_set_rename_restart(house: House) -> None:
    house.run("launch", "micro", "old", "--memory", "128M")
    house.run("set", "old", "memory=192M", "cpus=2")
    assert set(house.json("info", "old")["pending"]) == {"memory", "cpus"}
    house.run("rename", "old", "new")
    house.run("restart", "new")
    assert house.json("info", "new")["pending"] == []
    until(lambda: house.status("new")["ready"][-1:] == ["ssh"], seconds=120, say="ready again")
    assert house.out("exec", "new", "--", "nproc").strip() == "2"
    assert house.out("exec", "new", "--", "hostname").strip() == "new"
    house.run("rm", "--yes", "--force", "new")
    assert house.run("info", "new", ok=False).returncode == 3


def test_two_commands_at_once_on_one_guest(house: House) -> None:
    house.run("launch", "micro", "busy", "--memory", "128M")
    both = [house.popen("stop", "busy"), house.popen("restart", "busy")]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert house.status("busy")["state"] in {"stopped", "running"}
    house.run("rm", "--yes", "--force", "busy")


def test_bad_input_is_explained(house: House) -> None:
    cases = {
        ("launch", "no-such-image"): (3, "can be built"),
        ("launch", "micro", "Bad_Name"): (2, "lower-case"),
        ("launch", "micro", "m1"): (5, "m1"),
        ("launch", "micro", "big", "--memory", "900T"): (2, "memory"),
        ("start", "nobody"): (3, "nobody"),
        ("set", "m1", "cpus=zero"): (2, "cpus"),
        ("launch", "micro", "x", "--publish", "eighty"): (2, "8080:80"),
    }
    for args, (code, says) in cases.items():
        done = house.run(*args, ok=False)
        text = done.stderr.decode()
        assert (done.returncode, says in text, "Traceback" in text) == (code, True, False), (
            args,
            done.returncode,
            text,
        )


def test_list_is_for_programs_too(house: House, micro: str) -> None:
    listed = json.loads(house.out("ls", "--json"))
    assert micro in [guest["name"] for guest in listed]
    assert micro in house.out("ls", "-q").split()
    assert "NAME" in house.out("ls").splitlines()[0].upper()


def test_shell_and_console_in_a_terminal(house: House, micro: str) -> None:
    """A real pseudo-terminal in front of `guest shell` and `guest console`."""
    import pty

    for command, leave in ((["shell", micro], b"exit\n"), (["console", micro], b"\x1d")):
        pid, fd = pty.fork()
        if pid == 0:
            os.environ.update(house.env, TERM="xterm")
            os.execv(GUEST, [str(GUEST), *command])
        seen = bytearray()

        def pump(fd: int = fd, seen: bytearray = seen) -> None:
            try:
                while data := os.read(fd, 4096):
                    seen.extend(data)
            except OSError:
                pass

        reader = threading.Thread(target=pump, daemon=True)
        reader.start()
        time.sleep(2)
        os.write(fd, b"\necho $((6*7))-answer\n")
        until(lambda seen=seen: b"42-answer" in seen, say=f"{command}: {bytes(seen)!r}")
        os.write(fd, leave)
        until(lambda pid=pid: os.waitpid(pid, os.WNOHANG)[0], say="it leaves")
        os.close(fd)


def test_daemon_stop_and_start_again(house: House, micro: str) -> None:
    pid = house.pid(micro)
    house.run("daemon", "stop")
    assert not gone(pid)
    assert house.status(micro)["state"] == "running"
    assert (
        subprocess.run(
            [str(GUEST), "exec", micro, "--", "true"], env=house.env, check=False
        ).returncode
        == 0
    )
