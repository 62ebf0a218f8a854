"""A whole house for the crash matrix: daemon, keeper, QEMU, on a small file system if we may."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guesthouse.client.house import House as Client
from guesthouse.client.transport import Transport
from guesthouse.errors import DaemonUnreachable, GuesthouseError
from guesthouse.host.keeper.procfs import read_stat
from guesthouse.host.keeper_client import KeeperClient
from guesthouse.images.catalogue import Catalogue
from guesthouse.images.spec import BuiltImage
from guesthouse.model.folders import resolve
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job
from guesthouse.model.reports import LaunchRequest
from guesthouse.model.states import LIVE
from guesthouse.storage import qemu_img
from guesthouse.storage.pool import DirectoryPool
from guesthouse.store.documents import (
    GROUPS,
    GUESTS,
    IMAGES,
    JOBS,
    NETWORKS,
    SETS,
    VOLUMES,
    Documents,
)
from guesthouse.store.sqlite import SqliteStore
from guesthouse.store.view import View
from tests.crash.crashing_daemon import FILLER, engines, kill_all
from tests.crash.matrix import Bystander, Case, Fault, Snapshot, is_ours
from tests.e2e.conftest import House, until
from tests.e2e.micro_image import micro

ROOT = Path(__file__).parents[2]
SIZE = "192m"
"""Of the small file system: images, disks and logs take a third of it."""
DISK = 8 << 20
IDLE_SECONDS = 120
MEMORY = 128 << 20


class Street:
    """The house that tests share; a new one after a test that went wrong."""

    def __init__(self) -> None:
        self._house: CrashHouse | None = None

    def house(self) -> CrashHouse:
        if self._house is None:
            folder = Path(tempfile.mkdtemp(prefix="gh-"))
            self._house = CrashHouse(folder, small=os.geteuid() == 0)
            self._house.furnish()
        return self._house

    def leave(self) -> None:
        if self._house is not None:
            house, self._house = self._house, None
            house.close()


class CrashHouse(House):
    """:ivar control: see `crashing_daemon`."""

    def __init__(self, folder: Path, *, small: bool) -> None:
        super().__init__(folder)
        self.control = folder / "control"
        self.control.mkdir()
        self.state.mkdir(mode=0o700)
        self.small = small
        if small:
            options = f"size={SIZE},mode=700"
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "crash", str(self.state)], check=True
            )
        self.folders = resolve(self.env, uid=os.geteuid())
        self.client = Client(Transport(str(self.folders.socket)))
        self.process: subprocess.Popen[bytes] | None = None
        self.bystander: Bystander | None = None
        self._names = 0

    def fresh(self) -> str:
        self._names += 1
        return f"t{self._names}"

    # --- the daemon -----------------------------------------------------------------------------

    def start(self, *, doomed: bool = False) -> None:
        """Start the daemon that can be struck, and wait until it is ready.

        :param doomed: or until it has been struck.
        """
        ready, word = os.pipe()
        env = self.env | {"CRASH_CONTROL": str(self.control), "PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "tests.crash.crashing_daemon", "--ready-fd", str(word)]
        with (self.control / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(word,),
                start_new_session=True,
            )
        os.close(word)
        with os.fdopen(ready, "rb") as said:
            assert select.select([said], [], [], 90)[0], "the daemon is not ready"
            assert said.readline() == b"ok\n" or (doomed and self.struck()), self.log_end()

    def revive(self) -> None:
        """Start the daemon if it has died."""
        assert self.process is not None
        if self.process.poll() is not None:
            self.start()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def log_end(self) -> str:
        return (self.control / "daemon.log").read_text(errors="replace")[-4000:]

    def close(self) -> None:
        self.free()
        ids = set(os.listdir(self.folders.state / "guests"))
        try:
            super().close()
        finally:
            if self.process is not None:
                self.kill()
            # Of a test that failed in the middle something may be left that no daemon knows.
            kill_all([pid for id, pids in engines().items() if id in ids for pid in pids])
            if self.small:
                subprocess.run(["umount", "-l", str(self.state)], check=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- faults ---------------------------------------------------------------------------------

    def arm(self, case: Case) -> None:
        (self.control / "struck.json").unlink(missing_ok=True)
        if case.fault is Fault.FULL:
            self.cut_journal()
        told = self.control / "fault.tmp"
        told.write_text(json.dumps(case.point._asdict() | {"fault": case.fault.value}))
        told.rename(self.control / "fault.json")

    def cut_journal(self) -> None:
        """Leave no room in SQLite's journal: every later write needs new pages of the disk."""
        with sqlite3.connect(self.folders.database) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()

    def struck(self) -> dict[str, Any] | None:
        """The fault that struck, or None while none has."""
        try:
            found: dict[str, Any] = json.loads((self.control / "struck.json").read_bytes())
            return found
        except FileNotFoundError:
            return None

    def free(self) -> None:
        """Give back the space that a fault took."""
        (self.state / FILLER).unlink(missing_ok=True)

    def turn_clock(self, ahead: float) -> None:
        """:param ahead: seconds by which the daemon's wall clock goes before the host's."""
        told = self.control / "clock.tmp"
        told.write_text(f"{ahead}")
        told.rename(self.control / "clock")

    def points(self) -> list[dict[str, str]]:
        """What was passed since the last call."""
        notes = self.control / "points"
        lines = notes.read_text().splitlines() if notes.exists() else []
        notes.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    # --- what is there --------------------------------------------------------------------------

    def documents(self) -> dict[str, bytes]:
        """The store's entries, past the daemon."""
        with sqlite3.connect(f"{self.folders.database.as_uri()}?mode=ro", uri=True) as database:
            rows = dict(database.execute("SELECT key, value FROM entries").fetchall())
        database.close()
        return rows

    def forget(self, *keys: str) -> None:
        """Take entries out of the database, while no daemon runs."""
        with sqlite3.connect(self.folders.database) as database:
            database.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in keys])
        database.close()

    def quick(self) -> Snapshot:
        """Documents, processes, and which files the pool has."""
        now = Snapshot()
        for key, value in self.documents().items():
            room, _, rest = key.partition("/")
            match room:
                case "guests":
                    now.guests[rest] = GUESTS.decode(key, value)
                case "volumes":
                    now.volumes[rest] = VOLUMES.decode(key, value)
                case "images":
                    now.images[rest] = IMAGES.decode(key, value)
                case "networks":
                    now.networks[rest] = NETWORKS.decode(key, value)
                case "security-groups":
                    now.groups[rest] = GROUPS.decode(key, value)
                case "address-sets":
                    now.sets[rest] = SETS.decode(key, value)
                case "jobs":
                    now.jobs[rest] = JOBS.decode(key, value)
                case "names":
                    now.names[rest] = value.decode()
                case "numbers":
                    now.numbers[int(rest.rpartition("/")[2])] = value.decode()
        known = now.guests.keys() | {j.target.partition("/")[2] for j in now.jobs.values()}
        now.engines = {id: pids for id, pids in engines().items() if id in known}
        now.layers = dict.fromkeys(os.listdir(self.folders.pool / "layers"), 0)
        now.listening = {pid: ports_of(pid) for pids in now.engines.values() for pid in pids}
        return now

    def snapshot(self) -> Snapshot:
        """Everything that the invariants look at."""
        now = self.quick()
        folders = self.folders
        now.layers = {path.name: look_at(path) for path in (folders.pool / "layers").iterdir()}
        for folder in (folders.pool / "documents").iterdir():
            now.copies[folder.name] = {path.stem: path.read_bytes() for path in folder.iterdir()}
        now.secrets = set(os.listdir(folders.secrets))
        now.boot_folders = set(os.listdir(folders.images))
        now.guest_folders = {
            *os.listdir(folders.state / "guests"),
            *os.listdir(folders.runtime / "guests"),
        }
        now.left = [str(p) for p in self.state.rglob("*") if p.is_file() and not is_ours(p)]
        live = {guest.id for guest in now.guests.values() if guest.state in LIVE}
        now.left += [
            str(path)
            for path in (folders.runtime / "guests").glob("*/*.sock")
            if path.parent.name not in live
        ]
        now.halted = asyncio.run(halted(folders.keeper_socket, folders.keeper_state))
        return now

    def wait_idle(self) -> None:
        """Until no job is active."""
        until(lambda: not self.client.jobs(active=True), seconds=IDLE_SECONDS, say="no active job")

    def do(self, job: Job) -> Job:
        """See a job to its end, which must be good."""
        ended = until(
            lambda: (now := self.client.job(job.id)).ended and now, seconds=IDLE_SECONDS, say=job.id
        )
        assert ended.state.value == "done", ended.problem
        found: Job = ended
        return found

    def remove(self, guest_id: str) -> None:
        """Remove a guest for good, also from the trash."""
        if self.quick().guests[guest_id].in_trash:
            self.do(self.client.purge(guest_id))
        else:
            self.do(self.client.delete_guest(guest_id, force=True, now=True))

    def launch(self, image: str, *, start: bool = True, ready: bool = False, **more: Any) -> str:
        """A guest; answers its name."""
        name = self.fresh()
        wish = LaunchRequest(
            image=image,
            name=name,
            memory=MEMORY,
            start=start,
            wait_ready=ready,
            networks=("builtin",),  # so that a guest's own process holds its ports
            **more,
        )
        self.do(self.client.launch(wish))
        return name

    # --- its furniture --------------------------------------------------------------------------

    def furnish(self) -> None:
        """Images of the tests, the daemon, and a guest that runs all the time."""
        asyncio.run(self._add_images())
        self.start()
        self.add_bystander()

    def add_bystander(self) -> None:
        port = free_port_of_host()
        name = self.launch("crash/disk", ready=True, publish=(published(port),))
        guest = self.client.guest(name)
        assert guest.status.pid is not None
        ticks = read_stat(guest.status.pid)[1]
        self.bystander = Bystander(guest.id, guest.status.pid, ticks, guest.status.started_at)

    async def _add_images(self) -> None:
        """`crash/disk` boots micro, `crash/ends` switches itself off at once, `crash/reboots`
        restarts itself out of its first boot; each has a small empty disk."""
        built = await micro()
        disk = self.folder / "small.qcow2"
        await qemu_img.create(disk, DISK)
        store = await SqliteStore.open(self.folders.database)
        view = await View.open(store)
        pool = await DirectoryPool.open(self.folders.pool)
        catalogue = Catalogue(Documents(store), view, pool, self.folders.images)
        quiet = "console=ttyS0 quiet no_timer_check cryptomgr.notests"
        for name, cmdline in (
            ("crash/disk", built.cmdline),
            ("crash/ends", f"{quiet} rdinit=/bin/poweroff -- -f"),
            ("crash/reboots", f"{quiet} rdinit=/bin/reboot -- -f"),
        ):
            image = BuiltImage(
                name=name,
                build_key=name,
                disk=disk,
                kernel=built.kernel,
                initrd=built.initrd,
                cmdline=cmdline,
                virtual_size=DISK,
                os={},
                facts={},
            )
            await catalogue.add_built(image, image_id=new_id(), volume_id=new_id())
        await view.close()
        await store.close()

    def ask_again(self, doing: Callable[[], Job]) -> Job | None:
        """Submit; None when the fault takes the answer away."""
        try:
            return doing()
        except DaemonUnreachable:
            return None
        except GuesthouseError as error:
            assert error.exit_code == 8, error  # a full disk is told as one
            return None


def published(port: int) -> Any:
    from guesthouse.model.device import Publish

    return Publish(host_port=port, guest_port=22)


def free_port_of_host() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


def ports_of(pid: int) -> set[int]:
    """TCP ports of IPv4 on which a process listens; of one with an id of its own, all of the id."""
    listening: dict[str, int] = {}
    by_owner: dict[int, set[int]] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            port = int(fields[1].rpartition(":")[2], 16)
            listening[f"socket:[{fields[9]}]"] = port
            by_owner.setdefault(int(fields[7]), set()).add(port)
    process = Path(f"/proc/{pid}")
    try:
        links = [os.readlink(fd) for fd in (process / "fd").iterdir()]
    except PermissionError:
        status = (process / "status").read_text().splitlines()
        uids = next(line for line in status if line.startswith("Uid:"))
        return by_owner.get(int(uids.split()[1]), set())
    except OSError:
        return set()
    return {listening[link] for link in links if link in listening}


def look_at(path: Path) -> int | str:
    """The virtual size of a layer, or what is wrong with it."""
    argv = ["qemu-img", "check", "-U", "-f", "qcow2", "--output=json", str(path)]
    done = subprocess.run(argv, capture_output=True, check=False)
    if done.returncode:
        return f"qemu-img check says {done.returncode}: {(done.stderr or done.stdout).decode()}"
    with path.open("rb") as file:
        return int.from_bytes(file.read(32)[24:32], "big")


async def halted(socket: Path, state: Path) -> dict[str, bool]:
    """By guest, whether its CPUs stand still, as far as the keeper has seen."""
    try:
        keeper = await KeeperClient.connect(socket, state=state, start=False)
    except GuesthouseError:
        return {}
    try:
        return {
            process.key.partition(".")[0]: (process.stopped_at or 0) > (process.resumed_at or 0)
            for process in await keeper.processes()
            if process.alive and (process.stopped_at or process.resumed_at)
        }
    finally:
        keeper.close()
