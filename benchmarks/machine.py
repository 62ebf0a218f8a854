"""On what was measured, and how busy it was."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path


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
    }


def load() -> str:
    """Processes that ran or wanted to, as averages of 1, 5 and 15 minutes."""
    return " ".join(f"{average:.1f}" for average in os.getloadavg())


def cpu_seconds(pid: int) -> float:
    """CPU time of a process that lives, to the nanosecond: that of its present threads."""
    tasks = Path(f"/proc/{pid}/task").glob("[0-9]*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def memory(pid: int) -> tuple[float, float]:
    """(RSS, PSS) of a process in MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {line.split()[0]: int(line.split()[1]) / 1024 for line in text.splitlines()[1:]}
    return found["Rss:"], found["Pss:"]


def _first_line(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.partition("\n")[0]
