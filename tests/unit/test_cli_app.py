"""The command line as a whole: help, errors, spelling, what it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from guesthouse import __version__
from guesthouse.cli.app import COMMANDS, ELSEWHERE, app
from guesthouse.cli.codes import INTERRUPTED, OUR_FAILURE, PIPE_CLOSED
from guesthouse.cli.command import Command
from guesthouse.cli.family import Family
from guesthouse.errors import InUse, NoMemory, all_errors

from .cli_room import Room


def every_command() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    context = click.Context(app)
    for name in COMMANDS:
        command = app.get_command(context, name)
        assert command is not None
        found += with_members(name, command)
    return found


def with_members(path: str, command: click.Command) -> list[tuple[str, click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        for below, one in command.commands.items():
            found += with_members(f"{path} {below}", one)
    return found


EVERY = every_command()


@pytest.mark.parametrize(("path", "command"), EVERY, ids=[path for path, _ in EVERY])
def test_every_command_explains_itself(path: str, command: click.Command, guest: Room) -> None:
    assert isinstance(command, Command | Family)
    said = guest(*path.split(), "--help")
    assert said.code == 0
    assert "\nExamples:\n" in said.out
    assert f"Usage: guest {path} " in said.out
    assert command.examples
    for line, _ in command.examples:
        assert "guest" in line
        assert line in said.out
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help or option.name == "limit", f"{path}: {option.name} has no help"


@pytest.mark.parametrize("name", COMMANDS)
def test_summaries_are_the_commands_own(name: str) -> None:
    command = dict(EVERY)[name]
    assert command.help is not None
    first = command.help.split("\n\n")[0].replace("\n", " ")
    own = COMMANDS[name].summary
    assert first == own or first.startswith(own.rstrip("."))


def test_what_others_call_it_leads_to_commands_that_exist() -> None:
    paths = {path for path, _ in EVERY}
    assert {own.split(" --")[0] for own in ELSEWHERE.values()} <= paths
    assert not set(ELSEWHERE) & set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["lauch"], "'guest launch'"),
        (["list"], "'guest ls'"),
        (["images"], "'guest image ls'"),
        (["image", "list"], "'guest image ls'"),
        (["daemon", "statsu"], "'guest daemon status'"),
        (["xyzzy"], "guest --help"),
        (["ls", "--jsno"], "--json"),
    ],
)
def test_misspelt(guest: Room, arguments: list[str], meant: str) -> None:
    said = guest(*arguments)
    assert said.code == 2
    assert said.err.startswith("guest: error: ")
    assert meant in said.err.splitlines()[1]
    assert said.err.splitlines()[1].startswith("  hint: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["start"],
        ["launch", "--cpus", "many"],
        ["exec", "web"],
        ["set", "web"],
        ["completion", "tcsh"],
    ],
)
def test_wrong_use_is_2_and_points_to_the_help(guest: Room, arguments: list[str]) -> None:
    said = guest(*arguments)
    assert said.code == 2
    assert said.err.startswith("guest: error: ")
    assert f"See: guest {arguments[0]} --help" in said.err
    assert said.out == ""


def test_no_command_shows_the_help(guest: Room) -> None:
    said = guest()
    assert said.code == 2
    assert "Inside a guest:" in said.err


def test_help_is_a_word_too(guest: Room) -> None:
    assert guest("help") == guest("--help")
    assert guest("help", "image", "build") == guest("image", "build", "--help")
    assert guest("help", "lauch").code == 2


def test_choices_are_listed_in_one_line(guest: Room) -> None:
    err = guest("completion").err
    assert "Choose from: bash, zsh, fish" in err
    assert "\N{REPLACEMENT CHARACTER}" not in err


def test_errors_of_the_house_keep_their_exit_codes(guest: Room) -> None:
    said = guest("start", "nobody")
    assert (said.code, said.out) == (3, "")
    assert said.err == (
        "guest: error: There is no guest 'nobody'.\n  hint: See what there is: guest ls\n"
    )
    guest.house.fail["guest.start"] = InUse("Somebody sleeps in it.")
    assert guest("start", "web").code == 5
    guest.house.fail = {"guest.start:later": NoMemory("Too little memory.", hint="Buy some.")}
    assert guest("start", "web") == (
        8,
        "",
        "guest: error: Too little memory.\n  hint: Buy some.\n",
    )


def test_messages_cannot_steer_the_terminal(guest: Room) -> None:
    guest.house.fail["guest.start"] = InUse("Evil \x1b]0;title\x07 \x9b31m\nsecond line")
    said = guest("start", "web")
    assert "\x1b" not in said.err
    assert "\x9b" not in said.err
    assert "\n  second line\n" in said.err


def test_a_defect_is_said_to_be_one(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("guesthouse.client.house.House.guest", broken)
    said = guest("info", "web")
    assert said.code == 1
    assert "defect of guest itself: ZeroDivisionError: oops" in said.err
    assert "Traceback" not in said.err
    monkeypatch.setenv("GUESTHOUSE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        guest("info", "web")


def test_no_daemon_at_a_named_socket(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUESTHOUSE_SOCKET", str(guest.house.root / "nothing"))
    said = guest("info", "web")
    assert said.code == 6
    assert "GUESTHOUSE_SOCKET" in said.err


def test_another_version_is_warned_of(guest: Room) -> None:
    guest.house.version = "9.9"
    said = guest("info", "web")
    assert said.code == 0
    assert f"the daemon is of version 9.9, this program of {__version__}" in said.err
    assert "guest daemon restart" in said.err


def test_version(guest: Room) -> None:
    assert guest("--version").out == f"guest, version {__version__}\n"
    assert guest("version").out == f"guest {__version__}\ndaemon {__version__}\n"
    assert guest.json("version") == {"guest": __version__, "daemon": __version__}


def test_a_closed_pipe_is_no_defect(guest: Room) -> None:
    process = guest.process("--help")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() in {0, 141}
    assert said == b""


@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--json"], ["info", "web"], ["--help"]])
def test_a_full_disk_is_said(guest: Room, arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        process = guest.process(*arguments, stdout=full)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 8
    assert err.count(b"cannot be written") == 1
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err


@pytest.mark.parametrize("arguments", [["ls"], ["info", "web"]])
def test_the_process_itself_says_all_and_leaves_well(guest: Room, arguments: list[str]) -> None:
    process = guest.process(*arguments)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert b"web" in out


def _imported(*arguments: str, env: dict[str, str]) -> set[str]:
    code = (
        "import sys; from guesthouse.cli import entry; arguments = sys.argv[1:];"
        "entry.short(arguments) or entry.full(arguments); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *arguments], env=env, capture_output=True, check=True
    )
    return set(done.stdout.decode().splitlines()[-1].split())


def test_ls_imports_next_to_nothing(guest: Room) -> None:
    env = {"GUESTHOUSE_SOCKET": str(guest.house.path)}
    modules = _imported("ls", env=env)
    heavy = {"click", "msgspec", "rich", "asyncio", "http", "http.client", "argparse", "ssl",
             "subprocess", "threading", "websockets", "importlib.metadata"}  # fmt: skip
    assert not modules & heavy
    assert "guesthouse.cli.fast" in modules


def test_a_command_imports_its_own_module_only(guest: Room) -> None:
    modules = _imported("info", "web", env={"GUESTHOUSE_SOCKET": str(guest.house.path)})
    assert "guesthouse.cli.info" in modules
    assert not modules & {"guesthouse.cli.copy", "guesthouse.cli.execute", "rich", "websockets"}


def test_the_page_of_exit_codes_tells_the_truth() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "exit-codes.md"
    rows = [line.split("|")[1].strip() for line in page.read_text().splitlines() if "|" in line]
    written = {int(row) for row in rows if row.isdigit()}
    assert {kind.exit_code for kind in all_errors().values()} <= written
    assert {0, INTERRUPTED, PIPE_CLOSED, OUR_FAILURE} <= written
