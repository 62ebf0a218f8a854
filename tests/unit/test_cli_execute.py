"""`guest exec`, `shell` and `console`: real processes, pipes and terminals around them."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from guesthouse.cli.execute import exit_code
from guesthouse.cli.terminal import key_name, parse_key
from guesthouse.errors import InvalidInput
from guesthouse.model.reports import Exit

from .cli_room import GUEST, Room


def test_streams_and_exit_code(guest: Room) -> None:
    process = guest.process("exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 37")
    assert process.communicate(timeout=30) == (b"out\n", b"err\n")
    assert process.returncode == 37
    (command,) = guest.house.commands
    assert command["argv"] == ["sh", "-c", "echo out; echo err >&2; exit 37"]
    assert (command["user"], command["tty"], command["stdin"]) == ("root", None, True)


def test_options_travel_and_stop_at_the_name(guest: Room) -> None:
    process = guest.process(
        "exec", "-u", "jo", "-e", "A=b c", "--env", "HOME", "--cwd", "/srv", "-n", "--timeout", "5",
        "web", "sh", "-c", 'echo "$A"', "--user", "x",
        env={**os.environ, "HOME": "/home/me"},
    )  # fmt: skip
    out, _ = process.communicate(timeout=30)
    (command,) = guest.house.commands
    assert command == {
        "argv": ["sh", "-c", 'echo "$A"', "--user", "x"],
        "user": "jo",
        "env": {"A": "b c", "HOME": "/home/me"},
        "cwd": "/srv",
        "tty": None,
        "stdin": False,
        "timeout": 5.0,
    }
    assert (process.returncode, out) == (0, b"b c\n")


def test_input_reaches_the_command_and_ends(guest: Room) -> None:
    data = os.urandom(8 << 20)
    process = guest.process("exec", "web", "--", "cat", stdin=subprocess.PIPE)
    out, err = process.communicate(data, timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


def _peak(pid: int) -> int:
    """Peak memory of a process in KiB (proc(5), VmHWM)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0])


@pytest.mark.parametrize(
    "size", [96 << 20, pytest.param(1 << 30, marks=pytest.mark.full)], ids=["96M", "1G"]
)
def test_memory_stays_flat_whatever_flows(guest: Room, size: int) -> None:
    process = guest.process("exec", "web", "--", "cat", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    piece = os.urandom(1 << 20)

    def feed() -> None:
        for _ in range(size >> 20):
            process.stdin.write(piece)  # type: ignore[union-attr]  # it was started with a pipe
        process.stdin.close()  # type: ignore[union-attr]  # it was started with a pipe

    threading.Thread(target=feed, daemon=True).start()
    got, early = 0, 0
    while got < size:
        got += len(process.stdout.read(1 << 20))
        if not early and got > 8 << 20:
            early = _peak(process.pid)
    late = _peak(process.pid)
    assert process.wait(60) == 0
    assert late - early < 24 << 10, f"grew from {early} to {late} KiB"


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "USR1"])
def test_signals_are_the_commands(guest: Room, name: str) -> None:
    script = f"trap 'echo got {name}; exit 5' {name}; echo ready; while :; do sleep 0.05; done"
    process = guest.process("exec", "-n", "web", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(getattr(signal, f"SIG{name}"))
    if name == "HUP":  # our terminal is gone: there is nobody to show anything to
        assert process.wait(30) in {130, 255}
        return
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (5, f"got {name}\n".encode())


def test_a_command_that_ignores_ctrl_c_can_be_left(guest: Room) -> None:
    script = "trap '' INT; echo ready; sleep 600"
    process = guest.process("exec", "-n", "web", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # signals of one kind that are pending together count once
    assert process.wait(30) == 130


def test_death_by_a_signal_is_reported_as_shells_do(guest: Room) -> None:
    process = guest.process("exec", "-n", "web", "--", "sh", "-c", "kill -TERM $$")
    assert process.wait(30) == 128 + 15


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (Exit(code=0), 0),
        (Exit(code=255), 255),
        (Exit(signal="KILL"), 137),
        (Exit(signal="SIGSEGV"), 139),
        (Exit(signal="NONSENSE"), 255),
        (Exit(), 255),
    ],
)
def test_exit_codes(ended: Exit, code: int) -> None:
    assert exit_code(ended) == code


def test_our_own_failures_are_255(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    said = guest("exec", "-n", "nobody", "--", "true")
    assert said.code == 255
    assert "nobody" in said.err
    assert guest("exec", "-n", "web", "--", "no-such-command").code == 255
    monkeypatch.setenv("GUESTHOUSE_SOCKET", "/nowhere")
    assert guest("exec", "-n", "web", "--", "true").code == 255


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["web"], "guest shell web"),
        (["web", "--"], "Which command"),
        (["web", "-t", "--", "top"], "before the guest's name"),
        (["-t", "web", "--", "top"], "standard input is none"),
        (["-e", "SURELY_NOT_SET_HERE", "web", "--", "true"], "names no variable"),
    ],
)
def test_wrong_use(guest: Room, arguments: list[str], says: str) -> None:
    process = guest.process("exec", *arguments)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert says in err.decode()
    assert guest.house.commands == []


def test_whoever_reads_us_may_have_enough(guest: Room) -> None:
    process = guest.process("exec", "-n", "web", "--", "yes")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(4096)
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(30) == 141
    assert said == b""


def test_a_pipe_of_tars(guest: Room, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "page").write_bytes(os.urandom(200_000))
    packing = subprocess.Popen(["tar", "-C", str(tmp_path), "-c", "site"], stdout=subprocess.PIPE)
    process = guest.process("exec", "web", "--", "tar", "-x", stdin=packing.stdout)
    assert process.wait(60) == 0
    assert packing.wait(60) == 0
    copied = guest.house.root / "site" / "page"
    assert copied.read_bytes() == (tmp_path / "site" / "page").read_bytes()


class Terminal:
    """A pseudo-terminal with `guest` in front of it."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(GUEST[0], [*GUEST, *arguments])
        self.seen = b""

    def expect(self, text: bytes, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            if select.select([self.fd], [], [], left)[0]:
                try:
                    self.seen += os.read(self.fd, 4096)
                except OSError:
                    assert text in self.seen, self.seen

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def wait(self) -> int:
        """Its exit code; drains what it still writes, as a terminal does."""
        while True:
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code


def test_shell_in_a_terminal(guest: Room) -> None:
    terminal = Terminal("shell", "web")
    terminal.type(b"stty size; echo $((6*7))-answer; tty\n")
    terminal.expect(b"42-answer")
    terminal.expect(b"/dev/pts/")
    terminal.type(b"exit 3\n")
    assert terminal.wait() == 3
    (command,) = guest.house.commands
    assert command["argv"] == []
    assert command["tty"]["term"] == "xterm"


def test_a_resized_terminal_is_told(guest: Room) -> None:
    import fcntl
    import struct
    import termios

    terminal = Terminal("exec", "-t", "web", "--", "sh", "-c", "echo ready; read x; stty size")
    terminal.expect(b"ready")
    fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("4H", 33, 101, 0, 0))
    time.sleep(0.5)
    terminal.type(b"\n")
    terminal.expect(b"33 101")
    assert terminal.wait() == 0


def test_ctrl_c_in_a_terminal_is_the_guests(guest: Room) -> None:
    # exec: a shell that is just starting a child may lose the signal in between.
    terminal = Terminal("exec", "-t", "web", "--", "sh", "-c", "echo ready; exec sleep 600")
    terminal.expect(b"ready")
    terminal.type(b"\x03")
    assert terminal.wait() == 130


def test_the_terminal_is_as_before(guest: Room, tmp_path: Path) -> None:
    """Also after an error in the middle, and what was typed meanwhile is the next program's."""
    line = " ".join(f"'{word}'" for word in GUEST)
    script = (
        f"stty -a > {tmp_path}/before; {line} exec -t web -- sh -c 'echo ready; kill -9 $$';"
        f" echo code=$?; stty -a > {tmp_path}/after; echo end"
    )
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp("sh", ["sh", "-c", script])
    seen = b""
    while b"end" not in seen:
        seen += os.read(fd, 4096)
    os.waitpid(pid, 0)
    assert b"code=137" in seen
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()


def test_shell_reads_a_script(guest: Room) -> None:
    process = guest.process("shell", "web", stdin=subprocess.PIPE)
    out, _ = process.communicate(b"echo $((6*7)); exit 4\n", timeout=30)
    assert (process.returncode, out) == (4, b"42\n")
    assert guest.house.commands[0]["tty"] is None


# --- console ---


def test_console_in_a_terminal(guest: Room) -> None:
    terminal = Terminal("console", "web")
    terminal.expect(b"leave it with Ctrl-]")
    terminal.expect(b"login: ")
    terminal.type(b"\x03root")
    terminal.expect(b"root")
    terminal.type(b"\x1dnot sent")
    assert terminal.wait() == 0
    assert bytes(guest.house.console_received) == b"\x03root"


def test_console_with_another_key(guest: Room) -> None:
    terminal = Terminal("console", "--detach-key", "ctrl-a", "web")
    terminal.expect(b"leave it with Ctrl-A")
    terminal.expect(b"login: ")
    terminal.type(b"a\x1db\x01")
    assert terminal.wait() == 0
    assert bytes(guest.house.console_received) == b"a\x1db"


def test_console_that_ends_by_itself(guest: Room) -> None:
    terminal = Terminal("console", "web")
    terminal.expect(b"login: ")
    terminal.type(b"die")
    terminal.expect(b"has ended")
    assert terminal.wait() == 0


def test_console_in_a_pipe(guest: Room) -> None:
    process = guest.process("console", "web", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.read(7) == b"login: "
    process.stdin.write(b"\x1droot\n")
    process.stdin.flush()
    assert process.stdout.read(8) == b"<\x1droot\n>"
    process.stdin.close()
    assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("text", "key"),
    [("ctrl-]", b"\x1d"), ("^]", b"\x1d"), ("Ctrl-A", b"\x01"), ("c-@", b"\x00"), ("none", b"")],
)
def test_keys(text: str, key: bytes) -> None:
    assert parse_key(text) == key
    assert re.fullmatch(r"no key|Ctrl-.", key_name(key))


@pytest.mark.parametrize("text", ["", "a", "ctrl-", "ctrl-ab", "ctrl-1", "esc"])
def test_keys_that_are_not(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_key(text)
