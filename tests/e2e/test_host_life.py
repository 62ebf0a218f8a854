"""A real house as systemd and a host that boots and goes down would have it; without either.

systemd is played by the test: it binds the socket, passes it, and listens to what the daemon says.
A boot of the host is simulated by what the house remembers of the one before.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from guesthouse.host.process import boot_id
from guesthouse.model.folders import resolve
from tests.e2e.conftest import House, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]

EARLIER = "00000000-0000-4000-8000-000000000000"
BECOME = """
import os, sys
fd, program = int(sys.argv[1]), sys.argv[2]
os.dup2(fd, 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(program, [program])
"""
"""Has the socket as descriptor 3, and the pid that it is meant for, as sd_listen_fds(3) says."""


class Service:
    """The daemon as a unit of Type=notify behind a socket unit."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.path = resolve(house.env, uid=os.geteuid()).socket
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify = house.folder / "notify"
        self.ear.bind(str(self.notify))
        self.ear.settimeout(120)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        passed = self.listener.fileno()
        daemon = str(Path(sys.executable).with_name("guesthoused"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", BECOME, str(passed), daemon],
            env={
                **self.house.env,
                "LISTEN_FDS": "1",
                "NOTIFY_SOCKET": str(self.notify),
            },
            pass_fds=(passed,),
            stdin=subprocess.DEVNULL,
            stderr=(self.house.folder / "journal").open("ab"),
        )

    def heard(self) -> str:
        return self.ear.recv(1000).decode()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.listener.close()
        self.ear.close()
        self.path.unlink(missing_ok=True)
        self.notify.unlink(missing_ok=True)


@pytest.fixture
def service(house: House) -> Iterator[Service]:
    house.run("daemon", "stop")
    made = Service(house)
    try:
        yield made
    finally:
        made.close()


def database(house: House) -> sqlite3.Connection:
    return sqlite3.connect(house.state / "guesthouse.db")


def simulate_boot(house: House) -> None:
    """While no daemon runs: all that the house knows happened in an earlier boot of the host."""
    with closing(database(house)) as opened, opened:
        rows = opened.execute(
            "SELECT key, value FROM entries WHERE key LIKE 'guests/%' OR key LIKE 'hosts/%'"
        ).fetchall()
        for key, value in rows:
            text = value.decode().replace(boot_id(), EARLIER)
            opened.execute("UPDATE entries SET value = ? WHERE key = ?", (text.encode(), key))


def jobs(house: House, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = house.json("job", "ls")
    return sorted((job for job in found if job["kind"] == kind), key=lambda job: job["id"])


def states(house: House) -> dict[str, str]:
    return {guest["name"]: guest["status"]["state"] for guest in house.json("ls")}


@pytest.fixture(scope="module")
def guests(house: House) -> list[str]:
    """Three stopped guests: the order of their start is db, app, web."""
    for name, order in [("db", 10), ("app", 20), ("web", 100)]:
        house.run("launch", "micro", name, "--memory", "128M")
        house.run("set", name, f"autostart.order={order}")
    house.run("set", "db", "autostart=on", "autostart.delay=1s")
    house.run("set", "app", "autostart=last")
    return ["db", "app", "web"]


def test_guests_stop_before_their_host_and_start_after_it(house: House, guests: list[str]) -> None:
    house.run("set", "app", "shutdown.action=kill")
    said = house.out("daemon", "stop", "--guests")
    lines = said.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [
        "Stopped web",
        "Stopped app",
        "Stopped db",
    ]
    assert "powered off" in lines[0] and lines[1].endswith("killed as asked")
    assert lines[3].startswith("Stopped the daemon")

    # The daemon alone is started again: nothing else is.
    assert set(states(house).values()) == {"stopped"}
    (stopping,) = jobs(house, "host.stop-guests")
    assert stopping["result"]["failed"] == {}
    stops = {job["target_name"]: job for job in jobs(house, "guest.stop")}
    assert stops["web"]["ended_at"] <= stops["app"]["created_at"]
    assert stops["app"]["ended_at"] <= stops["db"]["created_at"]
    assert jobs(house, "host.start-guests") == []

    # The host was: those that want it are started, and `last` knows that it ran.
    house.run("daemon", "stop")
    simulate_boot(house)
    until(lambda: [j for j in jobs(house, "host.start-guests") if j["ended_at"]], say="autostart")
    (starting,) = jobs(house, "host.start-guests")
    assert starting["result"] == {"started": ["db", "app"], "failed": {}}
    assert starting["requester"] == "autostart"
    assert states(house) == {"db": "running", "app": "running", "web": "stopped"}
    starts = {job["target_name"]: job for job in jobs(house, "guest.start")}
    assert starts["db"]["ended_at"] <= starts["app"]["created_at"]


def test_a_host_that_crashed(house: House, guests: list[str]) -> None:
    """Nobody stopped the guests: they, the keeper and the daemon are gone with the host."""
    house.run("start", "web")
    house.run("set", "web", "autostart=last")
    house.run("stop", "--force", "app")
    running = {name: house.pid(name) for name in ("db", "web")}
    keeper = int((house.state / "keeper" / "keeper.lock").read_text())
    house.kill_daemon()
    for pid in (keeper, *running.values()):
        os.kill(pid, signal.SIGKILL)
    simulate_boot(house)
    until(lambda: len(jobs(house, "host.start-guests")) == 2, say="a second autostart")
    until(lambda: jobs(house, "host.start-guests")[1]["ended_at"], say="its end")
    again = jobs(house, "host.start-guests")[1]
    assert again["result"] == {"started": ["db", "web"], "failed": {}}
    assert states(house) == {"db": "running", "app": "stopped", "web": "running"}
    assert {house.pid("db"), house.pid("web")}.isdisjoint(running.values())


def environment_of(pid: int) -> bytes:
    """Of a guest's process, which is another user's; an ordinary user is root among its guests."""
    argv = ["cat", f"/proc/{pid}/environ"]
    if os.geteuid() and Path(f"/proc/{pid}").stat().st_uid != os.geteuid():
        argv = ["nsenter", f"--target={pid}", "--user", "--preserve-credentials", "--", *argv]
    return subprocess.run(argv, check=True, capture_output=True).stdout


def test_systemd_starts_and_stops_the_daemon_and_no_guest(
    house: House, guests: list[str], service: Service
) -> None:
    # A client is there before the daemon: it waits in the queue of the socket.
    early = house.popen("ls", "--json")
    service.start()
    assert service.heard() == "READY=1"
    assert service.process is not None
    listed, _ = early.communicate(timeout=60)
    assert {guest["name"] for guest in json.loads(listed)} == {*guests}
    about = house.json("daemon", "status")
    assert about["pid"] == service.process.pid
    assert (about["socket"], about["supervised"]) == (str(service.path), True)
    assert "journalctl --user -u guesthouse" in house.out("daemon", "status")

    before = house.pid("db")
    environment = environment_of(before)
    assert b"PATH=" in environment
    assert b"NOTIFY_SOCKET" not in environment and b"LISTEN_" not in environment
    assert service.stop() == 0
    assert service.heard() == "STOPPING=1"
    assert service.path.is_socket()  # systemd's, who goes on listening
    assert Path(f"/proc/{before}").exists()

    service.start()
    while service.heard() != "READY=1":
        pass
    assert house.pid("db") == before


def test_a_restart_goes_through_whoever_listens(
    house: House, guests: list[str], service: Service
) -> None:
    service.start()
    assert service.heard() == "READY=1"
    restart = house.popen("daemon", "restart")
    assert service.process is not None
    assert service.process.wait(60) == 0
    service.start()  # as systemd does, when the client knocks
    said, _ = restart.communicate(timeout=60)
    assert said.decode() == f"Restarted the daemon (pid {service.process.pid})\n"


def test_a_daemon_by_hand_does_not_take_systemds_place(house: House, service: Service) -> None:
    daemon = Path(sys.executable).with_name("guesthoused")
    done = subprocess.run(
        [str(daemon)], env=house.env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 5
    assert "Something listens at" in done.stderr
    assert service.path.is_socket()


def test_guests_are_stopped_without_a_daemon_too(house: House, guests: list[str]) -> None:
    """What the unit does where the daemon did not live any more."""
    house.run("start", "app", ok=False)
    running = {name: house.pid(name) for name in ("db", "web", "app")}
    house.kill_daemon()
    daemon = Path(sys.executable).with_name("guesthoused")
    done = subprocess.run(
        [str(daemon), "--shutdown-guests"],
        env=house.env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for pid in running.values():
        until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), say=f"{pid} is gone")
    assert house.run("daemon", "status", ok=False).returncode == 6
    assert set(states(house).values()) == {"stopped"}
    # With a daemon there, it is that daemon's to do.
    refused = subprocess.run(
        [str(daemon), "--shutdown-guests"], env=house.env, capture_output=True, check=False
    )
    assert refused.returncode == 5
