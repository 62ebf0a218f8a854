"""The few things that we ask of qemu-img. Formats are always given, never probed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guesthouse.errors import EngineError, InUse, ToolFailed
from guesthouse.host.spawn import Finished, ensure_success, run
from guesthouse.model.document import Noun
from guesthouse.model.volume import VolumeFormat
from guesthouse.storage.durable import no_space

_CREATE_OPTIONS = "lazy_refcounts=off,cluster_size=65536"
_CHECK_TIMEOUT = 3600.0  # reads all of the metadata, on a slow and busy disk
_FULL = ("No space left on device", "Disk quota exceeded")
_LOCKED = ("Failed to get", "lock")  # Failed to get "write" lock / Failed to get shared "write" …
_CORRUPT, _LEAKS = 2, 3  # exit codes of qemu-img check, besides 0 and 1


class CheckReport(Noun, kw_only=True, frozen=True):
    """:ivar leaks: clusters that are allocated for nothing: harmless. :ivar corruptions: are not.

    :ivar errors: parts that could not be read.
    """

    corruptions: int = 0
    leaks: int = 0
    errors: int = 0
    allocated_clusters: int = 0
    total_clusters: int = 0

    @property
    def clean(self) -> bool:
        return not (self.corruptions or self.leaks or self.errors)


class ImageInfo(Noun, kw_only=True, frozen=True):
    """:ivar virtual_size: bytes that a guest sees. :ivar allocated: bytes on disk.

    :ivar backing: the parent's name as the header has it.
    """

    virtual_size: int
    allocated: int
    backing: str = ""
    corrupt: bool = False


async def create(path: Path, size: int, *, parent: Path | None = None) -> None:
    """Write a new qcow2 over `path`, durably up to its name.

    The parent is named relatively, so it must lie in the same folder: the pool can be moved.

    :raise NoSpace: :raise ToolFailed:
    """
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", _CREATE_OPTIONS]
    if parent is not None:
        argv += ["-b", parent.name, "-F", parent.suffix.removeprefix(".")]
    await _run([*argv, str(path), str(size)], path, "create the disk")


async def fill(path: Path, raw: Path) -> None:
    """Write the content of the raw file `raw` into the qcow2 at `path`, which has its size.

    :raise NoSpace: :raise ToolFailed:
    """
    await _run(
        ["qemu-img", "convert", "-q", "-n", "-f", "raw", "-O", "qcow2", str(raw), str(path)],
        path,
        "fill the disk",
    )


async def resize(path: Path, fmt: VolumeFormat, size: int) -> None:
    """Grow to `size` bytes. :raise InUse: a process has it open. :raise NoSpace:"""
    await _run(
        ["qemu-img", "resize", "-q", "-f", fmt.value, str(path), str(size)], path, "grow the disk"
    )


async def check(path: Path, fmt: VolumeFormat) -> CheckReport:
    """Look for damage in the metadata; changes nothing. A raw file has none to look at.

    :raise InUse: a process writes it. :raise ToolFailed: the file cannot be checked at all.
    """
    if fmt is VolumeFormat.RAW:
        return CheckReport()
    done = await _run(
        ["qemu-img", "check", "-f", fmt.value, "--output=json", str(path)],
        path,
        "check the disk",
        fine=(0, _CORRUPT, _LEAKS),
        timeout=_CHECK_TIMEOUT,
    )
    raw = _json(done)
    return CheckReport(
        corruptions=raw.get("corruptions", 0),
        leaks=raw.get("leaks", 0),
        errors=raw.get("check-errors", 0),
        allocated_clusters=raw.get("allocated-clusters", 0),
        total_clusters=raw.get("total-clusters", 0),
    )


async def info(path: Path, fmt: VolumeFormat, *, in_use: bool = False) -> ImageInfo:
    """:param in_use: a guest may have it open, so the answer may be out of date at once."""
    argv = ["qemu-img", "info", "-f", fmt.value, "--output=json"]
    done = await _run([*argv, *(["-U"] if in_use else []), str(path)], path, "look at the disk")
    raw = _json(done)
    return ImageInfo(
        virtual_size=raw["virtual-size"],
        allocated=raw["actual-size"],
        backing=raw.get("backing-filename", ""),
        corrupt=raw.get("format-specific", {}).get("data", {}).get("corrupt", False),
    )


async def _run(
    argv: Sequence[str],
    path: Path,
    purpose: str,
    *,
    fine: Sequence[int] = (0,),
    timeout: float = 60.0,
) -> Finished:
    done = await run(argv, check=False, timeout=timeout)
    if done.code in fine:
        return done
    words = done.err.decode("utf-8", "replace")
    if any(text in words for text in _FULL):
        raise no_space(path.parent, 0, purpose)
    if all(text in words for text in _LOCKED):
        raise InUse(
            f"Cannot {purpose} {path.stem}: a running guest has it open.",
            hint="Stop the guest first.",
            path=str(path),
        )
    try:
        ensure_success(done)
    except ToolFailed as error:
        raise ToolFailed(
            f"Cannot {purpose}: {error.message}", hint=error.hint, argv=list(argv), code=done.code
        ) from error
    return done


def _json(done: Finished) -> dict[str, Any]:
    try:
        found = json.loads(done.out)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EngineError("qemu-img answered something that is not JSON.", answer=done.text[:200])
    return found
