"""The few words that we and systemd have for each other: sd_notify(3) and sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.errors import Conflict
from guesthouse.host.listening import bind
from guesthouse.host.service_manager import ServiceManager

CHILD = """
import os, sys
from guesthouse.errors import InvalidInput
from guesthouse.host.service_manager import ServiceManager
meant = {"us": os.getpid(), "another": os.getppid()}[sys.argv[1]]
os.environ |= {"LISTEN_PID": str(meant), "LISTEN_FDS": sys.argv[2], "LISTEN_FDNAMES": "api"}
service = ServiceManager(os.environ, pid=os.getpid())
assert not [name for name in os.environ if name.startswith("LISTEN_")]
try:
    listener = service.listener()
except InvalidInput as error:
    print("refused:", error.hint)
else:
    print(listener.getsockname() if listener else "none", os.get_inheritable(3))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gh-") as path:
        yield Path(path)


def passed(meant: str, *sockets: socket.socket) -> str:
    """What a process finds that is started with these sockets as its descriptors 3, 4, …"""

    def arrange() -> None:
        high = [os.dup2(one.fileno(), 100 + at) for at, one in enumerate(sockets)]
        for at, fd in enumerate(high):
            os.dup2(fd, 3 + at)

    done = subprocess.run(
        [sys.executable, "-c", CHILD, meant, str(len(sockets))],
        preexec_fn=arrange,
        close_fds=False,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def listening(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(str(path))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


def test_a_socket_that_was_bound_for_us_is_used(folder: Path) -> None:
    with listening(folder / "api.sock") as ours:
        assert passed("us", ours) == f"{folder}/api.sock False"


def test_one_that_was_meant_for_another_process_is_not(folder: Path) -> None:
    with listening(folder / "api.sock") as ours:
        assert passed("another", ours) == "none True"


def test_anything_else_is_refused(folder: Path) -> None:
    with listening(folder / "api.sock") as ours, listening(folder / "two") as second:
        assert passed("us", ours, second).startswith("refused: The socket unit needs exactly one")
    with listening(folder / "datagram", socket.SOCK_DGRAM) as wrong:
        assert passed("us", wrong).startswith("refused:")
    with socket.create_server(("127.0.0.1", 0)) as wrong:
        assert passed("us", wrong).startswith("refused:")
    with socket.socket(socket.AF_UNIX) as wrong:
        assert passed("us", wrong).startswith("refused:")


@pytest.mark.parametrize("count", ["", "two", "-1", "\u0663"])
def test_nonsense_in_the_environment_is_no_socket(count: str) -> None:
    environment = {"LISTEN_PID": "7", "LISTEN_FDS": count}
    assert ServiceManager(environment, pid=7).listener() is None
    assert environment == {}


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_how_far_we_are(folder: Path, abstract: bool) -> None:
    address = f"@guesthouse-test-{os.getpid()}" if abstract else f"{folder}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(address.replace("@", "\0") if abstract else address)
        environment = {"NOTIFY_SOCKET": address, "HOME": "/"}
        service = ServiceManager(environment, pid=os.getpid())
        assert environment == {"HOME": "/"}
        assert service.present
        service.ready()
        service.says("two guests")
        service.stopping()
        said = [ear.recv(100).decode() for _ in range(3)]
    assert said == ["READY=1", "STATUS=two guests", "STOPPING=1"]


def test_without_one_or_with_a_deaf_one_nothing_happens(folder: Path) -> None:
    alone = ServiceManager({}, pid=1)
    assert not alone.present
    alone.ready()
    ServiceManager({"NOTIFY_SOCKET": f"{folder}/nobody"}, pid=1).ready()


# --- binding our own ------------------------------------------------------------------------------


def test_our_own_socket_is_ours_alone_and_a_stale_one_is_replaced(folder: Path) -> None:
    path = folder / "api.sock"
    listening(path).close()
    with bind(path) as listener, socket.socket(socket.AF_UNIX) as client:
        assert path.stat().st_mode & 0o777 == 0o600
        client.connect(str(path))
        assert not listener.getblocking()


def test_one_that_answers_is_left_to_whoever_listens(folder: Path) -> None:
    path = folder / "api.sock"
    with listening(path) as theirs:
        with pytest.raises(Conflict, match="Something listens"):
            bind(path)
        theirs.settimeout(30)
        theirs.accept()[0].close()  # our trial; their socket is where it was


@pytest.mark.root
def test_the_socket_of_the_machine_is_opened_to_its_group(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guesthouse.host.listening.GROUP", "daemon")
    with bind(folder / "api.sock", "system"):
        found = (folder / "api.sock").stat()
        assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o660, 0, 1)
    monkeypatch.setattr("guesthouse.host.listening.GROUP", "no-such-group")
    with bind(folder / "other.sock", "system"):
        assert (folder / "other.sock").stat().st_mode & 0o777 == 0o600
