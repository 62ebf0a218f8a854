"""QEMU without a house: the devices of a guest's own launch record, started by hand.

The command is derived from what Guesthouse recorded, so the machine is the same to the last
address. What comes as a descriptor there comes by its path here, and the confinement (setpriv,
prlimit) is left away.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from guesthouse.host.firmware import find_ovmf

NAME = "raw QEMU"
_PATIENCE = 300.0
_POLL = 0.001
_SYNC = 4711


def raw_argv(
    recorded: Sequence[str], folder: Path, opened: Callable[[str], str], *, paused: bool
) -> list[str]:
    """The command of a launch record, with paths.

    :param folder: for the sockets. :param opened: name of a descriptor -> path of what it is;
        `kernel` and `initrd`, and the names in `-add-fd opaque=` (`disk0.0` is the top layer).
    """
    words = list(recorded[recorded.index("-name") - 1 :])
    sets: dict[str, str] = {}
    argv: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        if word == "-add-fd":
            options = dict(part.split("=", 1) for part in words[position + 1].split(","))
            sets.setdefault(options["set"], opened(options["opaque"]))
            position += 2
            continue
        if word in {"-kernel", "-initrd"}:
            argv += [word, opened(word[1:])]
            position += 2
            continue
        if word != "-S" or paused:
            argv.append(_with_paths(word, folder))
        position += 1
    return [re.sub(r"/dev/fdset/(\d+)", lambda found: sets[found[1]], word) for word in argv]


def _with_paths(word: str, folder: Path) -> str:
    word = re.sub(r"^socket,id=(\w+),fd=\d+", rf"socket,id=\1,path={folder}/\1.sock", word)
    return re.sub(
        r"^memory-backend-file,(.*),mem-path=/proc/self/fd/\d+", r"memory-backend-memfd,\1", word
    )


class RawQemu:
    """One process; used as a context, it is gone afterwards."""

    def __init__(self, argv: Sequence[str], folder: Path) -> None:
        self._folder = folder
        for left in folder.glob("*.sock"):
            left.unlink()
        self.began = time.perf_counter()
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def __enter__(self) -> RawQemu:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def answers(self) -> float:
        """Seconds from its start until its monitor told its state."""
        with self._connected("qmp") as monitor, monitor.makefile("rw") as wire:
            wire.readline()
            for command in ("qmp_capabilities", "query-status"):
                wire.write(json.dumps({"execute": command}))
                wire.flush()
                while "return" not in json.loads(wire.readline()):
                    pass
        return time.perf_counter() - self.began

    def agent_answers(self) -> float:
        """Seconds from its start until its agent answered.

        Asked once: QEMU keeps what is written to the port until somebody opens it in the guest, so
        nothing is faster than this.
        """
        with self._connected("agent") as port:
            question = {"execute": "guest-sync-delimited", "arguments": {"id": _SYNC}}
            port.sendall(b"\xff" + json.dumps(question).encode() + b"\n")
            port.settimeout(_PATIENCE)
            answer = b""
            while str(_SYNC).encode() not in answer:
                try:
                    piece = port.recv(4096)
                except ConnectionResetError:
                    piece = b""
                if not piece:
                    raise RuntimeError(f"QEMU ended: {self._complaint()}")
                answer += piece
        return time.perf_counter() - self.began

    def kill(self) -> float:
        """Seconds until it was gone."""
        began = time.perf_counter()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        return time.perf_counter() - began

    def _connected(self, name: str) -> socket.socket:
        path = str(self._folder / f"{name}.sock")
        ended = time.monotonic() + _PATIENCE
        while time.monotonic() < ended:
            if self._process.poll() is not None:
                raise RuntimeError(f"QEMU ended: {self._complaint()}")
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                time.sleep(_POLL)
                continue
            return sock
        raise TimeoutError(path)

    def _complaint(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().decode(errors="replace").strip()


def opened_by(
    guest: Mapping[str, Any], chains: Mapping[str, Sequence[Path]]
) -> Callable[[str], str]:
    """Where the descriptors of a guest that runs now lead.

    :param chains: the layers of each disk, top first, as `OwnHouse.chains` gives them.
    """
    argv = guest["launch"]["argv"]
    held = Path(f"/proc/{guest['status']['pid']}/fd")
    firmware = find_ovmf()  # descriptors of a set are not where the command says any more
    known = {"kvm": "/dev/kvm"} | ({"code": str(firmware.code)} if firmware else {})
    for disk, chain in chains.items():
        known |= {f"{disk}.{depth}": str(path) for depth, path in enumerate(chain)}
        known[f"{disk}.0w"] = known[f"{disk}.0"]
    for word in ("kernel", "initrd"):
        if f"-{word}" in argv:
            number = argv[argv.index(f"-{word}") + 1].rpartition("/")[2]
            known[word] = os.readlink(held / number)
    return known.__getitem__
