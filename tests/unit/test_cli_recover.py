"""`guest recover` and `guest doctor --bundle`: what is said, asked and written."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.client import aside
from guesthouse.client.aside import set_aside
from guesthouse.client.start import Reached
from guesthouse.client.transport import Transport
from guesthouse.errors import Conflict, CorruptStore, Forbidden
from guesthouse.model.folders import Folders, resolve
from guesthouse.model.reports import Finding, FindingKind

from .cli_room import Room

KIND = FindingKind


def lose(guest: Room) -> None:
    guest.house.lost = [
        Finding(kind=KIND.GUEST, id="A", name="db", state="running"),
        Finding(kind=KIND.GUEST, id="B", name="old", state="trash"),
        Finding(kind=KIND.GUEST, id="C", name="web", state="failed", problem="its disk F is gone"),
        Finding(kind=KIND.IMAGE, id="D", name="debian/12"),
        Finding(kind=KIND.VOLUME, id="E"),
        Finding(kind=KIND.VOLUME, id="F", problem="its file is missing"),
        Finding(kind=KIND.LAYER, id="G", back=False, problem="no document tells what it is"),
    ]


# --- recover ---


def test_nothing_to_recover(guest: Room) -> None:
    said = guest("recover")
    assert (said.code, said.out) == (0, "")
    assert "nothing to recover" in said.err
    assert not guest.house.jobs


def test_what_would_come_back(guest: Room) -> None:
    lose(guest)
    said = guest("recover", "--dry-run")
    assert said.out.splitlines() == [
        "WHAT    NAME       COMES BACK    NOTE",
        "guest   db         running",
        "guest   old        in the trash",
        "guest   web        failed        its disk F is gone",
        "image   debian/12  yes",
        "volume  F          yes           its file is missing",
        "layer   G          no            no document tells what it is",
    ]
    assert not guest.house.jobs
    assert [one["id"] for one in guest.json("recover", "--dry-run")["findings"]] == [*"ABCDEFG"]


def test_recover_asks_and_says_what_it_did(guest: Room) -> None:
    lose(guest)
    refused = guest("recover")
    assert refused.code == 2
    assert "guest recover --yes" in refused.err
    assert not guest.house.jobs
    guest.house.results["house.recover"] = {"result": {"renamed": {"db": "db-2"}}}
    said = guest("recover", "--yes")
    assert said.out.splitlines()[-1] == "Recovered 3 guests, 1 image and 2 disks"
    assert "the recovered one is called db-2" in said.err


def test_every_command_tells_of_a_lost_database(guest: Room) -> None:
    lose(guest)
    said = guest("stop", "web")
    assert "7 documents lie beside the disks" in said.err
    assert "hint: Bring them back: guest recover" in said.err
    assert "7 documents" in guest("daemon", "status").out
    assert "7 documents" not in guest("recover", "--dry-run").err


# --- a damaged database ---


@pytest.fixture
def damaged(guest: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folders]:
    """A state folder whose database the daemon refuses, until it is not there any more."""
    monkeypatch.setenv("GUESTHOUSE_STATE", str(tmp_path / "state"))
    folders = resolve(os.environ, uid=os.geteuid())
    folders.state.mkdir(mode=0o700)
    folders.database.write_bytes(b"rubbish")

    def reach(*rest: object, **named: object) -> Reached:
        if folders.database.exists():
            error = CorruptStore("The database is damaged.", hint="guest recover")
            error.detail = {"path": str(folders.database)}
            raise error
        return Reached(Transport(str(guest.house.path)), started=True)

    monkeypatch.setattr("guesthouse.cli.session.reach", reach)
    yield folders


def test_a_damaged_database_is_moved_aside(guest: Room, damaged: Folders) -> None:
    lose(guest)
    assert guest("ls", "--quiet", "--json").code == 6
    assert guest("recover", "--dry-run").code == 6
    assert guest("recover").code == 2
    assert damaged.database.read_bytes() == b"rubbish"
    said = guest("recover", "--yes")
    assert said.code == 0, said
    (moved,) = damaged.state.glob("guesthouse.db.damaged-*")
    assert moved.read_bytes() == b"rubbish"
    assert str(moved) in said.err
    assert "Recovered 3 guests" in said.out


def test_another_house_s_database_is_left_alone(
    guest: Room, damaged: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon that answered is not the one that this environment names."""
    (tmp_path / "other").mkdir(mode=0o700)
    monkeypatch.setenv("GUESTHOUSE_STATE", str(tmp_path / "other"))
    assert guest("recover", "--yes").code == 6
    assert damaged.database.exists()


def test_the_log_goes_with_its_database(damaged: Folders) -> None:
    for part in ("-wal", "-shm"):
        Path(f"{damaged.database}{part}").write_bytes(part.encode())
    first = set_aside(damaged)
    assert first.read_bytes() == b"rubbish"
    assert Path(f"{first}-wal").read_bytes() == b"-wal"
    damaged.database.write_bytes(b"again")
    second = set_aside(damaged)
    assert second != first
    assert {path.name for path in damaged.state.glob("guesthouse.db*")} == {
        "guesthouse.db.lock",
        *(f"{path.name}{part}" for path in (first,) for part in ("", "-wal", "-shm")),
        second.name,
    }


async def test_a_database_in_use_is_not_moved(damaged: Folders) -> None:
    from guesthouse.store.sqlite import SqliteStore

    damaged.database.unlink()
    store = await SqliteStore.open(damaged.database)
    with pytest.raises(Conflict, match="in use"):
        set_aside(damaged)
    await store.close()
    assert set_aside(damaged).exists()


def test_a_folder_that_cannot_be_written(damaged: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*rest: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(Forbidden, match="cannot be moved aside"):
        aside.set_aside(damaged)
    assert damaged.database.exists()


async def test_what_is_moved_aside_can_still_be_opened(damaged: Folders) -> None:
    """With its log: whoever knows SQLite may save more from it."""
    damaged.database.unlink()
    database = sqlite3.connect(damaged.database)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE t (x)")
    database.execute("INSERT INTO t VALUES (7)")
    database.commit()
    moved = set_aside(damaged)
    other = sqlite3.connect(moved)
    assert other.execute("SELECT x FROM t").fetchall() == [(7,)]
    other.close()
    database.close()


# --- bundle ---


def test_bundle(guest: Room, tmp_path: Path) -> None:
    path = tmp_path / "help.tar.gz"
    said = guest("doctor", "--bundle", str(path))
    assert said.code == 0
    assert path.read_bytes() == b"first second"
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(path) in said.out
    assert guest("doctor", "--bundle", str(path)).code == 5
    assert path.read_bytes() == b"first second"
    assert guest("doctor", "--bundle", str(tmp_path / "none" / "x")).code == 2
    assert guest("doctor", "--json", "--bundle", "x").code == 2


def test_half_a_bundle_is_none(guest: Room, tmp_path: Path) -> None:
    guest.house.bundle_breaks = True
    path = tmp_path / "help.tar.gz"
    assert guest("doctor", "--bundle", str(path)).code == 6
    assert not path.exists()
