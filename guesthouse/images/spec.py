"""What a builder is asked for and what it hands back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from guesthouse.model.image import Seed

Progress = Callable[[float, str], None]
"""Told a fraction from 0 to 1 and what is happening now."""


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is one of `known()`; `architecture` is Debian's name of it."""

    name: str
    architecture: str = "amd64"


class BuiltImage(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a finished image, all read-only (0444).

    `disk` is a compressed qcow2, None for an image that lives in its initrd. `kernel`, `initrd` and
    `cmdline` start it without a boot loader; `virtual_size` is in bytes, 0 without a disk.
    `build_key` is the hash of everything that built it. `os` has id, version and pretty.
    """

    name: str
    build_key: str
    disk: Path | None
    kernel: Path | None
    initrd: Path | None
    cmdline: str
    virtual_size: int
    os: dict[str, str]
    facts: dict[str, str]
    seed: Seed = Seed.HOUSE


class Workplace(msgspec.Struct, frozen=True, kw_only=True):
    """Where one build works: results go to `into`, everything else to `work`, which is removed."""

    into: Path
    work: Path
    mirrors: tuple[str, ...] = ()


def part(progress: Progress, start: float, end: float) -> Progress:
    """A progress that fills `start`..`end` of another one and never goes back."""
    reached = start

    def report(fraction: float, doing: str) -> None:
        nonlocal reached
        reached = max(reached, start + (end - start) * min(max(fraction, 0.0), 1.0))
        progress(reached, doing)

    return report
