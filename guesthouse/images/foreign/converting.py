"""From an untrusted file to a qcow2 of ours, by a qemu-img that may do next to nothing.

It runs as nobody in particular, without capabilities, without a network (as root), bounded in
memory, time and what it writes, and no longer than the daemon lives. It is given two open files
and no path: the source for reading alone, the target for writing. Formats are named, and backing
files cut off, whatever the source says. What it writes is judged by its header like any layer.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from guesthouse.errors import GuesthouseError, ToolFailed
from guesthouse.host.launcher import (
    Confinement,
    GuestIdentity,
    Namespaces,
    confine,
    tool_identity,
)
from guesthouse.host.spawn import Finished, ensure_success, run
from guesthouse.images.foreign.window import Foreign, damaged, refused
from guesthouse.model.image import SourceFormat
from guesthouse.storage.durable import RESERVE, no_space, require_space, space_of
from guesthouse.storage.qcow2 import read_header
from guesthouse.storage.transfer import Progress

_MEMORY = 2 << 30
"""Bytes of address space; a conversion was seen to get by with a fourth of it."""
_CPU_SECONDS = 900
_CPU_RATE = 3 << 20
"""Bytes of the source for one more second of CPU: it may be packed, and the host slow."""
_LATEST = 86400.0 * 7
_SLACK = 256 << 20
_HARMLESS = (0, 3, 63)  # qemu-img check: clean, leaks only, the format knows no check
_WITH_BACKING = frozenset({SourceFormat.QCOW2, SourceFormat.VMDK})
_CHECKED = frozenset({SourceFormat.QCOW2, SourceFormat.VDI, SourceFormat.VHDX})
_SYS_ADMIN = 21  # capability number, linux/capability.h
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "LC_ALL": "C.UTF-8",
    # Else glibc reserves 64 MiB of addresses for each of many threads.
    "MALLOC_ARENA_MAX": "2",
}
_FULL = ("No space left on device", "Disk quota exceeded")
_TOO_LARGE = ("File too large",)
_PURPOSE = "convert the image"
_ELSEWHERE = "Convert it where it was made, if you trust it: qemu-img convert -O qcow2 IMAGE NEW"


async def convert(
    source: Path, found: Foreign, target: Path, *, progress: Progress, room: int | None = None
) -> int:
    """Write the disk in `source` into the new file `target`; answers its virtual size in bytes.

    :param found: what `looking.look` said of it. :param room: bytes that it may take instead of
        what is free. Nobody else writes either file meanwhile.
    :raise InvalidInput: damaged, or it unfolds to far more than a disk image holds.
    :raise NoSpace: :raise HostLacks: :raise ToolFailed:
    """
    folder, size = target.parent, source.stat().st_blocks * 512
    await asyncio.to_thread(require_space, folder, 0, _PURPOSE)
    free = space_of(folder).free - RESERVE if room is None else room
    # Both are packed, so one has about the size of the other. A file whose map leads many times
    # to the same place would grow beyond all measure.
    bound = 2 * size + found.size // 1024 + _SLACK
    with _opened(source, target) as (reader, writer):
        if found.format in _CHECKED:
            await _check(found, reader, size)
        argv = ["qemu-img", "convert", "-p", "-c", "-W", "-O", "qcow2"]
        argv += ["-o", "compression_type=zstd,lazy_refcounts=off,cluster_size=65536"]
        argv += [_node(found.format, reader), f"/proc/self/fd/{writer}"]
        done = await run(
            confined(argv, size, min(free, bound)),
            fds=(reader, writer),
            env=_ENVIRONMENT,
            timeout=_LATEST,
            check=False,
            on_output=_percent(progress),
        )
        if done.code:
            raise _failed(found, done, folder, grew=bound < free)
    return read_header(target).size


@contextmanager
def _opened(source: Path, target: Path) -> Iterator[tuple[int, int]]:
    """Both files, so that an unprivileged process can open them again by their descriptors.

    Their folder is private: nobody reaches them by a path. After a failure `target` is gone.
    """
    am_root = os.geteuid() == 0
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(reader, 0o444)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        writer = os.open(target, flags, 0o600)
        try:
            if am_root:
                who = _identity()
                os.fchown(writer, who.uid or 0, who.gid or 0)
            yield reader, writer
            if am_root:
                os.fchown(writer, 0, 0)
        except BaseException:
            target.unlink()
            raise
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _node(kind: SourceFormat, fd: int) -> str:
    file = {"driver": "file", "filename": f"/proc/self/fd/{fd}", "read-only": True}
    node: dict[str, object] = {"driver": kind.value, "read-only": True, "file": file}
    if kind in _WITH_BACKING:
        node["backing"] = None
    return "json:" + json.dumps(node)


async def _check(found: Foreign, reader: int, size: int) -> None:
    """:raise InvalidInput: its tables contradict each other."""
    argv = ["qemu-img", "check", "--output=json", _node(found.format, reader)]
    done = await run(
        confined(argv, size, 0),
        fds=(reader,),
        env=_ENVIRONMENT,
        timeout=_LATEST,
        check=False,
    )
    if done.code not in _HARMLESS:
        raise _unsound(found, done)


def confined(argv: Sequence[str], size: int, largest: int) -> list[str]:
    """:param size: bytes to read. :param largest: bytes that a file may grow to."""
    am_root = os.geteuid() == 0
    identity = _identity()
    confinement = Confinement(
        uid=identity.uid,
        gid=identity.gid,
        limits=(
            ("core", 0),
            ("as", _MEMORY),
            ("cpu", _CPU_SECONDS + size // _CPU_RATE),
            ("fsize", max(0, largest)),
            ("nofile", 64),
        ),
        namespaces=Namespaces(empty_network=am_root and _may_make_namespaces()),
        # The next daemon begins anew; nobody would want what this one still writes.
        die_with_parent=True,
    )
    return confine(argv, confinement, am_root=am_root)


def _identity() -> GuestIdentity:
    return tool_identity(
        am_root=os.geteuid() == 0, subuid=_read("/etc/subuid"), subgid=_read("/etc/subgid")
    )


def _may_make_namespaces() -> bool:
    """Root in a container may lack the right."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", _read("/proc/self/status"), re.MULTILINE)
    return bool(found and int(found[1], 16) >> _SYS_ADMIN & 1)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _percent(progress: Progress) -> Callable[[bytes], None]:
    def tell(piece: bytes) -> None:
        if numbers := _PERCENT.findall(piece):
            progress(min(1.0, float(numbers[-1]) / 100))

    return tell


def _failed(found: Foreign, done: Finished, folder: Path, *, grew: bool) -> GuesthouseError:
    """Why it ended. :param grew: it met the bound of what an image may unfold to, not of space."""
    words = done.err.decode("utf-8", "replace")
    if done.code == -signal.SIGXFSZ or any(text in words for text in _TOO_LARGE):
        if not grew:
            return no_space(folder, 0, _PURPOSE)
        return refused(
            found.format,
            "it unfolds to many times its own size",
            f"No disk image does that by accident. {_ELSEWHERE}",
            reason="bomb",
        )
    if any(text in words for text in _FULL):
        return no_space(folder, 0, _PURPOSE)
    return _unsound(found, done)


def _unsound(found: Foreign, done: Finished) -> GuesthouseError:
    """What qemu-img found wrong in it, its own words being kept; or that it found no end."""
    if done.code in {-signal.SIGXCPU, -signal.SIGKILL}:
        return refused(
            found.format,
            "to read it takes more time than any image of its size needs",
            _ELSEWHERE,
            reason="bomb",
        )
    if done.code < 0 or b"setpriv" in done.err or b"unshare" in done.err:
        try:
            ensure_success(done)
        except ToolFailed as error:
            return error
    lines = done.err.decode("utf-8", "replace").strip().splitlines()
    said = next((line.rpartition(": ")[2] for line in reversed(lines) if line), "")
    return damaged(found.format, f"its tables contradict each other{_said(said)}")


def _said(words: str) -> str:
    return f" (qemu-img says: {words.rstrip('.')})" if words else ""
