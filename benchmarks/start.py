"""How fast guests start, answer, end and are listed, and what a house costs that does nothing."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import api_list, libvirt, machine, raw
from benchmarks.figures import OURS, Budget, Figure, table
from benchmarks.own import OwnHouse, restored
from benchmarks.raw import RawQemu, opened_by, raw_argv
from guesthouse.host.firmware import find_ovmf
from tests.e2e.conftest import until

MEMORY = "128M"
PYTHON = "python3 -I -c pass"
WHOLE = "Guesthouse, whole command"
CPU_LIMIT_MS = 10.0
"""What the kernel counts as one tick: less than it in a minute is not measured by anybody."""


@dataclass(frozen=True)
class Size:
    """How often, with how many guests, for how many seconds."""

    starts: int = 15
    boots: int = 7
    disk_boots: int = 3
    lists: int = 40
    guests: int = 20
    listed: int = 1000
    idle: float = 60.0


QUICK = Size(starts=5, boots=2, disk_boots=1, lists=10, guests=5, idle=10.0)
Say = Callable[[str], None]


@dataclass
class Bench:
    """:ivar figures: what was measured so far."""

    house: OwnHouse
    size: Size
    say: Say
    figures: list[Figure] = field(default_factory=list)

    def figure(self, name: str, unit: str, budget: Budget | None = None) -> Figure:
        self.figures.append(Figure(name, unit, budget))
        self.say(name)
        return self.figures[-1]


def in_turns(rounds: int, contenders: Sequence[Callable[[], None]]) -> None:
    """Each contender once a round, another one first in each."""
    for number in range(rounds):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            contender()


@contextmanager
def folder_for_raw() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="gh-raw-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def starts_and_kills(bench: Bench) -> None:
    """The micro guest: started paused, killed, and started until its agent answers."""
    house = bench.house
    house.run("launch", "micro", "m1", "--memory", MEMORY)
    guest = house.guest("m1")
    opened = opened_by(guest, {})
    with ExitStack() as stack:
        folder = stack.enter_context(folder_for_raw())
        other = None
        if libvirt.answers():
            other = libvirt.Libvirt(guest, opened("kernel"), opened("initrd"))
            stack.callback(other.close)
        house.kill("m1")
        _paused(
            bench, raw_argv(guest["launch"]["argv"], folder, opened, paused=True), folder, other
        )
        running = raw_argv(guest["launch"]["argv"], folder, opened, paused=False)
        _micro_boots(bench, running, folder, other)
    house.run("rm", "--yes", "--force", "--now", "m1")


def _paused(bench: Bench, argv: Sequence[str], folder: Path, other: libvirt.Libvirt | None) -> None:
    house = bench.house
    start = bench.figure("start paused", "ms", Budget(1.5, raw.NAME))
    kill = bench.figure("kill", "ms", Budget(50))

    def ours() -> None:
        start.add(OURS, house.start_paused("m1") * 1000)
        kill.add(OURS, house.kill("m1") * 1000)

    def whole() -> None:
        start.add(WHOLE, house.command("start", "--paused", "m1") * 1000)
        kill.add(WHOLE, house.command("stop", "--force", "m1") * 1000)

    def bare() -> None:
        with RawQemu(argv, folder) as qemu:
            start.add(raw.NAME, qemu.answers() * 1000)
            kill.add(raw.NAME, qemu.kill() * 1000)

    def theirs() -> None:
        assert other is not None
        start.add(f"{libvirt.NAME}, whole command", other.start_paused() * 1000)
        kill.add(f"{libvirt.NAME}, whole command", other.kill() * 1000)

    in_turns(bench.size.starts, [ours, bare, whole, *([theirs] if other else [])])


def _micro_boots(
    bench: Bench, argv: Sequence[str], folder: Path, other: libvirt.Libvirt | None
) -> None:
    house = bench.house
    boot = bench.figure("start to agent, micro by its kernel", "s", Budget(1.1, raw.NAME))

    def ours() -> None:
        boot.add(OURS, house.start_until_agent("m1"))
        house.kill("m1")

    def bare() -> None:
        with RawQemu(argv, folder) as qemu:
            boot.add(raw.NAME, qemu.agent_answers())

    def theirs() -> None:
        assert other is not None
        boot.add(f"{libvirt.NAME}, whole command", other.start_until_agent())
        other.kill()

    in_turns(bench.size.boots, [ours, bare, *([theirs] if other else [])])


def debian_boots(bench: Bench) -> None:
    """Debian, the first time by its kernel, and later from its disk, by BIOS and by UEFI: each
    boot finds the disk alike."""
    house = bench.house
    with folder_for_raw() as folder:
        house.run("launch", "debian/12", "bios", "--no-start", timeout=3600)
        _first_boots(bench, folder)
        _later_boots(bench, folder, "bios")
        if find_ovmf() is None:
            bench.say("no UEFI firmware here: apt install ovmf")
            return
        house.run("launch", "debian/12", "uefi", "--firmware", "uefi", "--no-start")
        _later_boots(bench, folder, "uefi")


def _first_boots(bench: Bench, folder: Path) -> None:
    house = bench.house
    boot = bench.figure("start to agent, debian/12 first by its kernel", "s", Budget(1.1, raw.NAME))
    chain = house.chains("bios")["disk0"]
    fresh = folder / "fresh.qcow2"
    shutil.copyfile(chain[0], fresh)
    argv: list[str] = []

    def ours() -> None:
        house.run("launch", "debian/12", "new", "--no-start")
        boot.add(OURS, house.start_until_agent("new"))
        guest = house.guest("new")
        top = folder / "disk.qcow2"
        opened = opened_by(guest, {"disk0": [top, *chain[1:]]})
        argv[:] = raw_argv(guest["launch"]["argv"], folder, opened, paused=False)
        house.run("rm", "--yes", "--force", "--now", "new")

    def bare() -> None:
        shutil.copyfile(fresh, folder / "disk.qcow2")
        with RawQemu(argv, folder) as qemu:
            boot.add(raw.NAME, qemu.agent_answers())

    for _ in range(bench.size.disk_boots):  # the record of the first is the command of the second
        ours()
        bare()


def _later_boots(bench: Bench, folder: Path, name: str) -> None:
    house = bench.house
    house.run("start", "--wait", name)
    house.run("stop", name)
    what = f"start to agent, debian/12 from its disk, {name.upper()}"
    boot = bench.figure(what, "s", Budget(1.1, raw.NAME))
    chains = house.chains(name)
    with ExitStack() as stack:
        tops = [stack.enter_context(restored(chain[0])) for chain in chains.values()]
        argv: list[str] = []

        def restore() -> None:
            for top in tops:
                top()

        def ours() -> None:
            restore()
            boot.add(OURS, house.start_until_agent(name))
            guest = house.guest(name)
            opened = opened_by(guest, chains)
            argv[:] = raw_argv(guest["launch"]["argv"], folder, opened, paused=False)
            house.kill(name)

        def bare() -> None:
            restore()
            with RawQemu(argv, folder) as qemu:
                boot.add(raw.NAME, qemu.agent_answers())

        for _ in range(bench.size.disk_boots):
            ours()
            bare()
    house.run("rm", "--yes", "--force", "--now", name)


def lists_and_idleness(bench: Bench) -> None:
    """The same guests, first held before their first instruction, so that they take no CPU from
    what lists them; then up, and left alone."""
    house, count = bench.house, bench.size.guests
    names = [f"g{number}" for number in range(count)]
    for name in names:
        house.run("launch", "micro", name, "--memory", MEMORY, "--no-start")
    house.run("start", "--paused", *names)
    _lists(bench)
    for name in names:
        house.resume(name)
        # One after another: together they would only wait for each other.
        until(partial(house.ready, name), seconds=300, say=f"{name} is ready")
    bench.say(f"{count} guests are up")
    time.sleep(10)  # connections to agents are closed after two seconds
    _idleness(bench)
    house.run("rm", "--yes", "--force", "--now", *names)


def _lists(bench: Bench) -> None:
    figure = bench.figure(f"guest ls of {bench.size.guests}", "ms", Budget(3, PYTHON))

    def ours() -> None:
        figure.add(OURS, bench.house.command("ls") * 1000)

    def bare() -> None:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", "pass"], check=True, capture_output=True)
        figure.add(PYTHON, (time.perf_counter() - began) * 1000)

    in_turns(bench.size.lists, [ours, bare])


def _idleness(bench: Bench) -> None:
    house, size = bench.house, bench.size
    pids = {"daemon": house.daemon_pid, "keeper": house.keeper_pid()}
    time.sleep(2)  # the question for its pid is answered and forgotten
    before = {name: machine.spent(pid) for name, pid in pids.items()}
    time.sleep(size.idle)
    after = {name: machine.spent(pid) for name, pid in pids.items()}
    where = f"in {size.idle:g} s, {size.guests} idle guests"
    for name in pids:
        used = after[name].minus(before[name])
        bench.figure(f"{name}'s CPU time {where}", "ms", Budget(CPU_LIMIT_MS)).add(
            OURS, used.cpu * 1000
        )
        bench.figure(f"{name}'s ticks (/proc/PID/stat) {where}", "").add(OURS, used.ticks)
        bench.figure(f"{name}'s voluntary switches {where}", "").add(OURS, used.switches)
    for name, pid in pids.items():
        rss, pss = machine.memory(pid)
        limit = Budget(90) if name == "daemon" else None
        bench.figure(f"{name}'s memory (RSS), {size.guests} guests", "MiB", limit).add(OURS, rss)
        bench.figure(f"{name}'s memory (PSS), {size.guests} guests", "MiB").add(OURS, pss)


def api_lists(bench: Bench) -> None:
    figure = bench.figure(f"API list of {bench.size.listed:,}, server time", "ms", Budget(10))
    measured = asyncio.run(api_list.measure(bench.size.listed))
    figure.values[OURS] = [seconds * 1000 for seconds in measured.server]
    whole = bench.figure(f"API list of {bench.size.listed:,}, whole exchange", "ms")
    whole.values[OURS] = [seconds * 1000 for seconds in measured.exchange]


PARTS: dict[str, Callable[[Bench], None]] = {
    "micro": starts_and_kills,
    "debian": debian_boots,
    "idle": lists_and_idleness,
    "api": api_lists,
}


def measure(size: Size, parts: Sequence[str], say: Say) -> list[Figure]:
    house = OwnHouse()
    try:
        bench = Bench(house, size, say)
        for part in parts:
            before = len(bench.figures)
            PARTS[part](bench)
            say(f"{part}:\n\n{table(bench.figures[before:])}\n")
        return bench.figures
    finally:
        house.close()
