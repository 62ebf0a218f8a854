"""The texts for a guest's shell, tried in shells of this host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from guesthouse.errors import InvalidInput
from guesthouse.guestos.ssh_command import (
    MAX_TEXT,
    Announcement,
    AnnouncementFinder,
    command_text,
    explain,
    kill_text,
)

TOKEN = "0123456789abcdef"
SHELLS = [
    pytest.param(["sh"], id="sh"),
    pytest.param(["bash"], id="bash"),
    pytest.param(["busybox", "sh"], id="busybox"),
]


def run(
    text: str, shell: list[str] | None = None, **options: object
) -> tuple[Announcement, subprocess.CompletedProcess[bytes]]:
    """Run the text as sshd would; the announcement is taken out of stderr."""
    done = subprocess.run(
        [*(shell or ["sh"]), "-c", text], capture_output=True, check=False, timeout=60, **options
    )  # type: ignore[call-overload]  # options are subprocess's own
    found = AnnouncementFinder(TOKEN).feed(done.stderr)
    assert found is not None, done.stderr
    done.stderr = found[1]
    return found[0], done


@pytest.mark.parametrize("shell", SHELLS)
def test_arguments_arrive_as_they_are(shell: list[str]) -> None:
    argv = ["printf", "[%s]", "a b", "$HOME", "'q'", '"', "", "\\", "ü", "*", "-n", "a=b", "\n"]
    announcement, done = run(command_text(argv, token=TOKEN), shell)
    expected = "".join(f"[{word}]" for word in argv[2:])
    assert done.stdout.decode() == expected
    assert (done.returncode, done.stderr) == (0, b"")
    assert announcement.problem == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_the_announced_pid_is_the_command_itself(shell: list[str]) -> None:
    argv = ["sh", "-c", "echo $$; cut -d' ' -f5,6 /proc/$$/stat; exit 3"]
    announcement, done = run(command_text(argv, token=TOKEN), shell)
    pid, group, session = done.stdout.split()
    assert int(pid) == announcement.pid
    assert group == session == pid  # a session of its own, so that kill 0 hits nobody else
    assert done.returncode == 3


def test_a_signal_s_death_is_the_command_s_own() -> None:
    _, done = run(command_text(["sh", "-c", "kill -USR1 $$"], token=TOKEN))
    assert done.returncode == -10


def test_environment_and_folder(tmp_path: Path) -> None:
    odd = tmp_path / "-a 'b'"
    odd.mkdir()
    text = command_text(
        ["sh", "-c", 'pwd; printf "%s" "$A1"'],
        token=TOKEN,
        env={"A1": "x'$y\nz", "_B": ""},
        cwd=str(odd),
    )
    assert run(text)[1].stdout.decode() == f"{odd}\nx'$y\nz"


def test_home_is_the_default_folder(tmp_path: Path) -> None:
    text = command_text(["pwd"], token=TOKEN)
    assert run(text, env={**os.environ, "HOME": str(tmp_path)})[1].stdout.decode() == (
        f"{tmp_path}\n"
    )
    assert run(text, env={**os.environ, "HOME": "/nowhere"})[1].stdout == b"/\n"


def test_an_unknown_folder_is_announced() -> None:
    announcement, done = run(command_text(["touch", "/x"], token=TOKEN, cwd="/nowhere"))
    assert announcement.problem == "unknown-folder" and done.returncode
    error = explain(announcement, user="root", cwd="/nowhere")
    assert error is not None and error.detail["field"] == "cwd"


def test_unknown_commands_give_127() -> None:
    _, done = run(command_text(["nonesuch-command"], token=TOKEN))
    assert done.returncode == 127
    assert b"nonesuch-command" in done.stderr and TOKEN.encode() not in done.stderr


def test_no_command_is_a_login_shell() -> None:
    text = command_text([], token=TOKEN)
    _, done = run(text, input=b"shopt -q login_shell && echo login\n", env={"SHELL": "/bin/bash"})
    assert done.stdout == b"login\n"


@pytest.mark.root
def test_another_user(tmp_path: Path) -> None:
    argv = ["sh", "-c", 'id -un; id -Gn; echo "$HOME $USER $KEPT"; echo $$']
    text = command_text(argv, token=TOKEN, user="daemon", env={"KEPT": "yes"})
    announcement, done = run(text, env={**os.environ, "SECRET_OF_ROOT": "1"})
    name, groups, words, pid = done.stdout.decode().splitlines()
    assert (name, groups) == ("daemon", "daemon")
    assert words.split()[1:] == ["daemon", "yes"]
    assert int(pid) == announcement.pid
    announcement, done = run(command_text(["id"], token=TOKEN, user="nonesuch"))
    assert announcement.problem == "unknown-user" and done.stdout == b""
    error = explain(announcement, user="nonesuch", cwd=None)
    assert error is not None and error.detail["field"] == "user"


@pytest.mark.root
def test_another_user_where_there_is_only_busybox(tmp_path: Path) -> None:
    """The su of busybox; the micro guest has nothing else."""
    for applet in ("sh", "su", "id", "setpriv", "setsid"):
        (tmp_path / applet).symlink_to(shutil.which("busybox") or "")
    text = command_text(
        ["/bin/sh", "-c", 'id -un; echo "$A $1"; echo $$', "sh", "x y"],
        token=TOKEN,
        user="daemon",
        env={"A": "1"},
    )
    tmp_path.chmod(0o755)
    for folder in list(tmp_path.parents)[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)
    announcement, done = run(text, ["/bin/sh"], env={"PATH": str(tmp_path)})
    assert done.stdout.decode().splitlines() == ["daemon", "1 x y", str(announcement.pid)]


@pytest.mark.parametrize(
    "options",
    [
        {"user": "a b"},
        {"user": "-x"},
        {"user": "$(id)"},
        {"env": {"A-B": "x"}},
        {"env": {"1A": "x"}},
        {"env": {"A;id": "x"}},
        {"env": {"A": "x\0"}},
        {"cwd": "/\0"},
        {"argv": ["a\0"]},
        {"argv": ["x" * (MAX_TEXT + 1)]},
    ],
)
def test_what_cannot_be_passed_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        command_text(**{"argv": ["true"], "token": TOKEN, **options})  # type: ignore[arg-type]  # options are the function's own
    assert caught.value.detail["field"] == next(iter(options))


def test_the_longest_text_still_runs() -> None:
    argv = ["printf", "%s", "x" * (MAX_TEXT - 2000)]
    assert len(run(command_text(argv, token=TOKEN))[1].stdout) == MAX_TEXT - 2000


def test_announcements_are_found_in_pieces_and_among_noise() -> None:
    stream = b"motd\n\x1e" + TOKEN.encode() + b" started 42\r\nrest"
    for cut in range(len(stream)):
        finder = AnnouncementFinder(TOKEN)
        found = finder.feed(stream[:cut])
        found = found or finder.feed(stream[cut:])
        assert found is not None and found[0] == Announcement("", 42)
        assert found[1] in (b"motd\nrest", b"motd\n" + stream[stream.index(b"rest") : cut])
    forged = AnnouncementFinder(TOKEN)
    assert forged.feed(b"\x1e" + b"f" * 16 + b" started 1\n") is None
    assert b"started" in forged.held


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("shell", SHELLS)
def test_a_kill_reaches_the_whole_tree(shell: list[str], tmp_path: Path) -> None:
    """Descendants in other sessions too; nobody else."""
    pids = tmp_path / "pids"
    inner = f"setsid sleep 300 & echo $! >>{pids}; sleep 300 & echo $! >>{pids}; echo up; wait"
    bystander = subprocess.Popen(["sleep", "300"])
    process = subprocess.Popen(["sh", "-c", inner], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout and process.stdout.readline() == b"up\n"
        time.sleep(0.1)  # setsid and sleep have become themselves
        subprocess.run([*shell, "-c", kill_text("KILL", process.pid)], check=True, timeout=60)
        assert process.wait(60) == -9
        children = [int(pid) for pid in re.findall(r"\d+", pids.read_text())]
        deadline = time.monotonic() + 60
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(alive, children))
        assert alive(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("name", ["", "INT; id", "int", "9", "-9", "SIG"])
def test_signals_are_names(name: str) -> None:
    with pytest.raises(InvalidInput):
        kill_text(name, 1)
    assert kill_text("SIGINT", 1) == kill_text("INT", 1)
