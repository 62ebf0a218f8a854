"""The mover: brings an interface of the host into a bridge, and back unless somebody confirms.

    mover.py FOLDER NETWORK SECONDS LOCK [--unattended]

It outlives the daemon, since whoever loses the connection cannot confirm, and the daemon may die in
between. It runs with the standard library alone. FOLDER/NETWORK.moving.json is the plan; to rename
it decides: to `.kept.json` whoever confirms, to `.returning.json` whoever takes back, and the first
one wins. Whatever is killed, a later start finds the name and takes back.
LOCK is a descriptor with a lock on it; as long as it is held somebody is at work.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_ANSWER_SECONDS = 10.0
"""In which a gateway must answer: bridges and switches may need a moment to learn."""
_ANSWERED_BEFORE_SECONDS = 2.0
_LOOK_SECONDS = 0.1
_SO_BINDTODEVICE = 25
_DISCARD = 9
_KNOWN = {"REACHABLE", "PERMANENT", "NOARP", "DELAY", "PROBE", "STALE"}


class Mover:
    def __init__(self, folder: Path, network: str) -> None:
        self.moving = folder / f"{network}.moving.json"
        self.returning = folder / f"{network}.returning.json"
        self.kept = folder / f"{network}.kept.json"
        self.checked = folder / f"{network}.checked"
        self.outcome = folder / f"{network}.outcome"

    def go(self, seconds: float, *, unattended: bool) -> bool:
        """Move; whether it was kept. :param seconds: in which somebody must confirm."""
        plan = json.loads(self.moving.read_text())
        before = [
            gateway
            for gateway in plan["gateways"]
            if answers(gateway, plan["interface"], _ANSWERED_BEFORE_SECONDS)
        ]
        trouble = batch(plan["forward"])
        if trouble:
            return self.take_back(f"ip says: {trouble}")
        silent = [one for one in before if not answers(one, plan["bridge"], _ANSWER_SECONDS)]
        if silent:
            return self.take_back(
                f"the gateway {silent[0]} answered on {plan['interface']}, and does not any more"
            )
        if unattended:
            self.moving.rename(self.kept)
            return True
        self.checked.write_text(str(time.time() + seconds))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.moving.exists():
                break
            time.sleep(_LOOK_SECONDS)
        return self.take_back(f"nobody confirmed it within {seconds:g} seconds")

    def take_back(self, why: str) -> bool:
        """Unless it is confirmed already; answers whether it is."""
        try:
            self.moving.rename(self.returning)
        except FileNotFoundError:
            return self.kept.exists()
        self.finish(why)
        return False

    def finish(self, why: str) -> None:
        """Take back what was decided to be taken back. Idempotent."""
        plan = json.loads(self.returning.read_text())
        batch(plan["back"], go_on=True)
        if why:
            new = self.outcome.with_suffix(".new")
            new.write_text(why)
            new.rename(self.outcome)
        for file in (self.checked, self.returning):
            with suppress(FileNotFoundError):
                file.unlink()


def batch(lines: list[str], *, go_on: bool = False) -> str:
    """What went wrong; empty if all was done. :param go_on: what fails is no obstacle."""
    argv = ["ip", *(["-force"] if go_on else []), "-batch", "-"]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    said = done.stderr.strip().splitlines()
    return (said[0] if said else f"exit code {done.returncode}") if done.returncode else ""


def answers(address: str, device: str, seconds: float) -> bool:
    """Whether a neighbour says where it is, asked afresh."""
    subprocess.run(
        ["ip", "neighbour", "delete", address, "dev", device], capture_output=True, check=False
    )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, device.encode() + b"\0")
            sock.sendto(b"", (address, _DISCARD))  # for that the kernel must know its MAC
        if _is_known(address, device):
            return True
        time.sleep(_LOOK_SECONDS)
    return False


def _is_known(address: str, device: str) -> bool:
    argv = ["ip", "-j", "neighbour", "show", "to", address, "dev", device]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    try:
        listed: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    except ValueError:
        return False
    return any(_KNOWN.intersection(one.get("state", ())) for one in listed)


def main() -> int:
    folder, network, seconds, lock = sys.argv[1:5]
    os.fstat(int(lock))  # it is held as long as we live
    mover = Mover(Path(folder), network)
    try:
        return 0 if mover.go(float(seconds), unattended="--unattended" in sys.argv) else 1
    except Exception as error:
        mover.take_back(f"the move failed: {error}")
        raise


if __name__ == "__main__":
    sys.exit(main())
