"""On what was measured, and how busy it was."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple


def facts() -> dict[str, str]:
    """Names are those of the write-up."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    kib = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "date": f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "CPU": f"{os.cpu_count()} x {model[1] if model else platform.machine()}",
        "memory": f"{int(kib[1]) / (1 << 20):.1f} GiB" if kib else "unknown",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "QEMU": _first_line("qemu-system-x86_64", "--version"),
        "libvirt": _first_line("libvirtd", "--version"),
    }


def load() -> str:
    """Processes that ran or wanted to, as averages of 1, 5 and 15 minutes."""
    return " ".join(f"{average:.1f}" for average in os.getloadavg())


class Spent(NamedTuple):
    """What a process has used since its start.

    :ivar cpu: seconds, to the nanosecond, of its present threads. :ivar ticks: user and system time
        as the kernel bills it, in clock ticks. :ivar switches: how often it fell asleep by itself,
        that is: how often something had woken it.
    """

    cpu: float
    ticks: int
    switches: int

    def minus(self, before: Spent) -> Spent:
        return Spent(
            self.cpu - before.cpu, self.ticks - before.ticks, self.switches - before.switches
        )


def spent(pid: int) -> Spent:
    """Of a process that lives."""
    tasks = list(Path(f"/proc/{pid}/task").glob("[0-9]*"))
    status = "".join((task / "status").read_text() for task in tasks)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Spent(
        sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9,
        int(fields[11]) + int(fields[12]),
        sum(map(int, re.findall(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE))),
    )


def memory(pid: int) -> tuple[float, float]:
    """(RSS, PSS) of a process in MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {line.split()[0]: int(line.split()[1]) / 1024 for line in text.splitlines()[1:]}
    return found["Rss:"], found["Pss:"]


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return "not installed"
    return done.stdout.partition("\n")[0]
