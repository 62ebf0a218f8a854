"""The database is lost or damaged: everything comes back, and guests that run do not notice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from guesthouse.host.keeper.procfs import read_stat
from guesthouse.images.catalogue import Catalogue
from guesthouse.images.spec import BuiltImage
from guesthouse.model.folders import resolve
from guesthouse.model.ids import new_id
from guesthouse.storage import qemu_img
from guesthouse.storage.pool import DirectoryPool
from guesthouse.store.documents import Documents
from guesthouse.store.sqlite import SqliteStore
from guesthouse.store.view import View

from .conftest import House, gone, until
from .micro_image import micro as micro_image

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]

DISK = 8 << 20
WRITE = "echo {} > /tmp/data; dd if=/tmp/data of=/dev/vda conv=fsync 2>/dev/null"
READ = "head -n 1 /dev/vda"


class LostHouse(House):
    """A house with a running guest, a stopped one with data on its disk, and one in the trash."""

    def furnish(self) -> None:
        asyncio.run(self._add_image())
        self.run("launch", "t/disk", "runs", "--network", "builtin", "--memory", "128M")
        self.run("exec", "runs", "--", "sh", "-c", "echo from before > /tmp/memory")
        for name in ("rests", "trashed"):
            self.run("launch", "t/disk", name, "--network", "builtin", "--memory", "128M")
            self.run("exec", name, "--", "sh", "-c", WRITE.format(f"data of {name}"))
            self.run("stop", "--force", name)
        self.run("rm", "--yes", "trashed")

    async def _add_image(self) -> None:
        """micro's kernel beside a disk: data that survives a stop."""
        folders = resolve(self.env, uid=os.geteuid())
        built = await micro_image()
        disk = self.folder / "small.qcow2"
        await qemu_img.create(disk, DISK)
        self.state.mkdir(mode=0o700)
        store = await SqliteStore.open(folders.database)
        view = await View.open(store)
        pool = await DirectoryPool.open(folders.pool)
        catalogue = Catalogue(Documents(store), view, pool, folders.images)
        image = BuiltImage(
            name="t/disk", build_key="t", disk=disk, kernel=built.kernel, initrd=built.initrd,
            cmdline=built.cmdline, virtual_size=DISK, os={}, facts={},
        )  # fmt: skip
        await catalogue.add_built(image, image_id=new_id(), volume_id=new_id())
        await view.close()
        await store.close()

    @property
    def documents(self) -> Path:
        return self.state / "pools" / "default" / "documents"

    def copy_of(self, name: str) -> Path:
        for path in (self.documents / "guests").iterdir():
            if json.loads(path.read_bytes())["name"] == name:
                return path
        raise AssertionError(f"no copy of {name}")

    def lose(self, *parts: str) -> None:
        """The daemon dies and its database with it, once the copies are written."""
        until(self._copied, say="the copies are up to date")
        self.kill_daemon()
        for part in parts or ("", "-wal", "-shm"):
            (self.state / f"guesthouse.db{part}").unlink(missing_ok=True)
        for path in (self.documents / "guests").iterdir():
            # The disk of t/disk has no boot loader: let every boot be a first one.
            path.write_bytes(json.dumps(json.loads(path.read_bytes()) | {"booted": False}).encode())

    def _copied(self) -> bool:
        guests = {guest["id"]: guest for guest in (*self.json("ls"), *self.json("trash", "ls"))}
        copies = {path.stem: path for path in (self.documents / "guests").iterdir()}
        if not guests.keys() <= copies.keys():
            return False
        return all(
            json.loads(copies[id].read_bytes()).get(field) == guest.get(field)
            for id, guest in guests.items()
            for field in ("name", "spec", "launch", "deleted_at")
        )

    def keeper_pid(self) -> int:
        needle = str(self.folder).encode()
        for stat in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = stat.read_bytes()
            except OSError:
                continue
            if needle in line and b"host/keeper/__main__.py" in line:
                return int(stat.parent.name)
        raise AssertionError("no keeper")


@pytest.fixture(scope="module")
def lost() -> Iterator[LostHouse]:
    made = LostHouse(Path(tempfile.mkdtemp(prefix="gh-")))
    try:
        made.furnish()
        yield made
    finally:
        made.close()


def process(house: LostHouse) -> tuple[int, int]:
    """Pid and start time of the guest that runs."""
    pid = house.pid("runs")
    return pid, read_stat(pid)[1]


def all_is_back(house: LostHouse, before: tuple[int, int]) -> None:
    listed = {guest["name"]: guest["status"]["state"] for guest in house.json("ls")}
    assert listed == {"runs": "running", "rests": "stopped"}
    assert process(house) == before
    assert house.out("exec", "runs", "--", "cat", "/tmp/memory") == "from before\n"
    until(lambda: house.status("runs")["ready"][-1:] == ["ssh"], say="it is ready, as it was")
    assert [guest["name"] for guest in house.json("trash", "ls")] == ["trashed"]
    assert [image["name"] for image in house.json("image", "ls")] == ["t/disk"]
    assert house.json("daemon", "status")["unknown_copies"] == 0
    assert house.json("recover", "--dry-run")["findings"] == []


def test_database_deleted_while_a_guest_runs(lost: LostHouse) -> None:
    before = process(lost)
    lost.lose()
    assert not gone(before[0])
    said = lost.run("ls")
    assert b"no guests yet" in said.stderr
    assert b"guest recover" in said.stderr
    assert lost.json("daemon", "status")["unknown_copies"] == 8  # 3 guests, 4 disks, 1 image
    dry = lost.out("recover", "--dry-run")
    lines = {line.split()[1]: line for line in dry.splitlines()[1:]}
    assert lines.keys() == {"runs", "rests", "trashed", "t/disk"}
    assert "running" in lines["runs"] and "in the trash" in lines["trashed"]
    assert lost.json("ls") == []
    assert lost.run("recover", ok=False).returncode == 2  # it asks, and nobody is there
    assert "Recovered 3 guests, 1 image and 4 disks" in lost.out("recover", "--yes")
    all_is_back(lost, before)


def test_what_came_back_works(lost: LostHouse) -> None:
    lost.run("start", "--wait", "rests")
    assert lost.out("exec", "rests", "--", "sh", "-c", READ) == "data of rests\n"
    lost.run("undelete", "trashed")
    lost.run("start", "--wait", "trashed")
    assert lost.out("exec", "trashed", "--", "sh", "-c", READ) == "data of trashed\n"
    lost.run("stop", "--force", "trashed", "rests")
    lost.run("rm", "--yes", "trashed")
    lost.run("launch", "t/disk", "new", "--network", "builtin", "--memory", "128M")
    numbers = [guest["number"] for guest in (*lost.json("ls"), *lost.json("trash", "ls"))]
    assert sorted(numbers) == list(range(4))
    lost.run("rm", "--yes", "--force", "--now", "new")


@pytest.mark.full
def test_database_gone_and_its_log_still_there(lost: LostHouse) -> None:
    before = process(lost)
    lost.lose("", "-shm")
    assert (lost.state / "guesthouse.db-wal").exists()
    refused = lost.run("ls", ok=False)
    assert refused.returncode == 6
    assert b"guest recover" in refused.stderr
    said = lost.run("recover", "--yes")
    assert b"is now" in said.stderr
    assert list(lost.state.glob("guesthouse.db.damaged-*-wal"))
    all_is_back(lost, before)


def test_damaged_database(lost: LostHouse) -> None:
    before = process(lost)
    lost.kill_daemon()
    database = lost.state / "guesthouse.db"
    rubbish = os.urandom(64 << 10)
    database.write_bytes(rubbish)
    for part in ("-wal", "-shm"):
        (lost.state / f"guesthouse.db{part}").unlink(missing_ok=True)
    refused = lost.run("info", "runs", ok=False)
    assert refused.returncode == 6
    assert b"guest recover" in refused.stderr
    assert lost.run("recover", "--dry-run", ok=False).returncode == 6
    assert lost.run("recover", ok=False).returncode == 2
    assert database.read_bytes() == rubbish  # nothing happens before somebody agrees
    lost.run("recover", "--yes")
    (aside,) = [p for p in lost.state.glob("guesthouse.db.damaged-*") if "-wal" not in p.name]
    assert aside.read_bytes() == rubbish
    all_is_back(lost, before)


def test_database_and_keeper_lost(lost: LostHouse) -> None:
    """Pid and start time in the copy's launch record are enough."""
    before = process(lost)
    keeper = lost.keeper_pid()
    lost.lose()
    os.kill(keeper, signal.SIGKILL)
    until(lambda: gone(keeper), say="the keeper is gone")
    lost.run("recover", "--yes")
    all_is_back(lost, before)
    assert b"BusyBox" in lost.run("logs", "runs").stdout


@pytest.mark.full
def test_database_lost_and_the_copy_is_older_than_the_process(lost: LostHouse) -> None:
    """The keeper knows the process; what it was started with is told from itself."""
    before = process(lost)
    before_argv = lost.json("info", "runs")["launch"]["argv"]
    lost.lose()
    path = lost.copy_of("runs")
    old = json.loads(path.read_bytes())
    launch = old["launch"] | {"incarnation": 7, "pid": 2, "pid_start": 1}
    path.write_bytes(json.dumps(old | {"launch": launch, "booted": True}).encode())
    lost.run("recover", "--yes")
    all_is_back(lost, before)
    found = lost.json("info", "runs")["launch"]
    assert found["incarnation"] == 1
    assert found["argv"][-5:] == before_argv[-5:]
    assert found["accelerator"] in {"kvm", "tcg"}


@pytest.mark.full
def test_guest_that_ended_meanwhile(lost: LostHouse) -> None:
    lost.run("launch", "t/disk", "ends", "--network", "builtin", "--memory", "128M")
    pid = lost.pid("ends")
    until(lambda: json.loads(lost.copy_of("ends").read_bytes())["status"]["pid"], say="its copy")
    lost.lose()
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid), say="it ended")
    lost.run("recover", "--yes")
    until(lambda: lost.status("ends")["state"] == "stopped", say="its end is recorded")
    assert lost.status("ends")["reason"] == "killed"
    lost.run("rm", "--yes", "--now", "ends")


def test_names_that_are_taken_by_now(lost: LostHouse) -> None:
    """Somebody went on with an empty house before recovering the old one."""
    before = process(lost)
    lost.lose()
    lost.run("image", "build", "micro")
    lost.run("launch", "micro", "rests", "--network", "builtin", "--no-start")
    assert "rests-2" in lost.out("recover", "--dry-run")
    said = lost.run("recover", "--yes")
    assert b"rests-2" in said.stderr
    guests = {guest["name"]: guest for guest in lost.json("ls")}
    assert guests.keys() == {"runs", "rests", "rests-2"}
    assert process(lost) == before
    assert guests["rests"]["image"] == "micro"
    trash = lost.json("trash", "ls")
    numbers = [guest["number"] for guest in (*guests.values(), *trash)]
    assert len(set(numbers)) == 4
    lost.run("start", "--wait", "rests-2")
    assert lost.out("exec", "rests-2", "--", "sh", "-c", READ) == "data of rests\n"
    lost.run("stop", "--force", "rests-2")
    lost.run("rm", "--yes", "--now", "rests")
    lost.run("rename", "rests-2", "rests")
    lost.run("image", "rm", "--yes", "micro")


def test_damage_beside_the_disks(lost: LostHouse) -> None:
    """Whatever is missing or strange is named; nothing is deleted, and the rest comes back."""
    layers = lost.state / "pools" / "default" / "layers"
    top = lost.json("info", "rests")["spec"]["disks"][0]["volume"]
    trashed = lost.json("trash", "ls")[0]
    before = process(lost)
    lost.lose()
    # A layer is gone; another lacks its copy; a copy is newer, one is rubbish; a stray layer.
    (layers / f"{top}.qcow2").rename(lost.folder / "kept.qcow2")
    other = trashed["spec"]["disks"][0]["volume"]
    (lost.documents / "volumes" / f"{other}.json").unlink()
    newer, rubbish, stray = new_id(), new_id(), new_id()
    (lost.documents / "guests" / f"{newer}.json").write_bytes(
        msgspec.json.encode({"id": newer, "schema": 999})
    )
    (lost.documents / "guests" / f"{rubbish}.json").write_bytes(b"\0")
    (layers / f"{stray}.qcow2").write_bytes((lost.folder / "kept.qcow2").read_bytes())
    found: dict[str, Any] = {
        one["id"]: one for one in lost.json("recover", "--dry-run")["findings"]
    }
    assert "schema 999" in found[newer]["problem"] and not found[newer]["back"]
    assert not found[rubbish]["back"]
    assert (found[stray]["kind"], found[stray]["back"]) == ("layer", False)
    assert "its file tells the same" in found[other]["problem"]
    assert found[top]["problem"] == "its file is missing"
    lost.run("recover", "--yes")
    status = lost.status("rests")
    assert (status["state"], status["reason"]) == ("failed", "disk-missing")
    assert top in status["message"]
    assert process(lost) == before
    refused = lost.run("start", "rests", ok=False)
    assert refused.returncode != 0 and top in refused.stderr.decode()
    # The trashed guest came back with a volume told from its file.
    lost.run("undelete", "trashed")
    lost.run("start", "--wait", "trashed")
    assert lost.out("exec", "trashed", "--", "sh", "-c", READ) == "data of trashed\n"
    lost.run("stop", "--force", "trashed")
    # A file that is brought back from a backup is all that a failed guest needs.
    (lost.folder / "kept.qcow2").rename(layers / f"{top}.qcow2")
    lost.run("start", "--wait", "rests")
    assert lost.out("exec", "rests", "--", "sh", "-c", READ) == "data of rests\n"
    assert (layers / f"{stray}.qcow2").exists()
    assert (lost.documents / "guests" / f"{newer}.json").exists()
    assert (lost.documents / "guests" / f"{rubbish}.json").exists()
