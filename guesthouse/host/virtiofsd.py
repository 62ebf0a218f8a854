"""Which virtiofsd this host has, and what it can do. It is asked once for each version of the file.

Facts: `--help` of virtiofsd 1.13.2 (Debian 13). The C program of Debian 12, a part of QEMU 7.2, has
the same name and other options; only root can run it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from guesthouse.errors import GuesthouseError
from guesthouse.host.spawn import run

OVERRIDE = "GUESTHOUSE_VIRTIOFSD"
_PROGRAM = "virtiofsd"
_PLACES = "/usr/libexec:/usr/lib:/usr/lib/qemu:/usr/lib/kvm"
"""Distributions keep it off PATH: Debian and Fedora in the first, Arch in the second."""
_ANSWER_SECONDS = 20.0


class Virtiofsd(NamedTuple):
    """:ivar path: empty where there is none. :ivar rust: it is the one that needs no root.

    :ivar maps: it knows `--translate-uid` (1.13). :ivar read_only: and `--readonly`.
    """

    path: str = ""
    rust: bool = False
    maps: bool = False
    read_only: bool = False


_known: dict[tuple[str, int], Virtiofsd] = {}


async def find(env: Mapping[str, str] = os.environ) -> Virtiofsd:
    """GUESTHOUSE_VIRTIOFSD, else the one that distributions install. Raises nothing."""
    path = where(env)
    if not path:
        return Virtiofsd()
    try:
        key = (path, Path(path).stat().st_mtime_ns)
        if key not in _known:
            done = await run([path, "--help"], timeout=_ANSWER_SECONDS, check=False)
            _known[key] = abilities(path, (done.out + done.err).decode("utf-8", "replace"))
    except (GuesthouseError, OSError):
        return Virtiofsd(path)
    return _known[key]


def where(env: Mapping[str, str]) -> str:
    """Its path; empty where there is none."""
    places = f"{env.get('PATH', os.defpath)}:{_PLACES}"
    return shutil.which(env.get(OVERRIDE) or _PROGRAM, path=places) or ""


def abilities(path: str, help_text: str) -> Virtiofsd:
    """What it says of itself by `--help`."""
    return Virtiofsd(
        path,
        rust="--shared-dir" in help_text and "--sandbox" in help_text,
        maps="--translate-uid" in help_text,
        read_only="--readonly" in help_text,
    )
