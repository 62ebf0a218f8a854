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
from guesthouse.model.host import Capability, QemuBinary

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


STEADY_QEMU = (8, 2)
"""Before it QEMU did not wait until the server had taken up a queue ("vhost-user: call
VHOST_USER_SET_VRING_ENABLE synchronously", 8.2). With 7.2 and virtiofsd 1.13 one of some seventy
mounts never answered."""

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


def capability(found: Virtiofsd, qemu: QemuBinary | None, cure: str) -> Capability:
    """Whether shares go by virtiofs here unless somebody wants another way.

    :param cure: what installs virtiofsd.
    """
    newer = "Install virtiofsd 1.13 or newer."
    if not found.path:
        reason = "There is no virtiofsd."
    elif not found.rust:
        reason, cure = (
            f"{found.path} does not run, or is the old one that only root can run.",
            newer,
        )
    elif not (found.maps and found.read_only):
        reason, cure = f"{found.path} cannot map owners and keep a share read-only.", newer
    elif qemu is None:
        reason, cure = "Without QEMU there are no shares.", ""
    elif qemu.version < STEADY_QEMU:
        wanted = ".".join(map(str, STEADY_QEMU))
        reason = f"A mount may hang for ever with QEMU {qemu.version_text}: it needs {wanted}."
        cure = f"Install QEMU {wanted} or newer; or risk it for a share: --way virtiofs"
    else:
        return Capability(name="virtiofs", available=True, reason=f"virtiofsd is at {found.path}.")
    return Capability(
        name="virtiofs", available=False, reason=f"Shares go by sftp: {reason}", cure=cure
    )


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
