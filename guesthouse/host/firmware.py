"""UEFI firmware (OVMF): where distributions put the code and the pristine variables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")

# Debian and Ubuntu, Fedora and RHEL, Arch, openSUSE. Plain builds, without Secure Boot.
_PAIRS = (
    ("usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("usr/share/OVMF/OVMF_CODE.fd", "usr/share/OVMF/OVMF_VARS.fd"),
    ("usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("usr/share/edk2/x64/OVMF_CODE.4m.fd", "usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("usr/share/qemu/ovmf-x86_64-4m-code.bin", "usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
)


class Ovmf(NamedTuple):
    """:ivar code: mapped read-only into every guest. :ivar variables: each guest's own copy of
    this file (its NVRAM) must be as large as it is.
    """

    code: Path
    variables: Path


def find_ovmf(root: Path = ROOT, pairs: Sequence[tuple[str, str]] = _PAIRS) -> Ovmf | None:
    """The firmware installed on this host, the 4 MiB build first; None where there is none."""
    for code, variables in pairs:
        if (root / code).is_file() and (root / variables).is_file():
            return Ovmf(root / code, root / variables)
    return None
