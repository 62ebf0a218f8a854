"""How control groups are laid out on this host, and whether we may make some."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Layout = Literal["v1", "v2", "hybrid", "none"]

_WANTED = ("cpu", "memory")


def layout(mountinfo: str) -> Layout:
    """From the text of /proc/self/mountinfo (proc(5)): which file systems are mounted.

    `hybrid` has both versions; which of them owns the controllers varies.
    """
    kinds = {
        line.split(" - ", 1)[1].split(" ", 1)[0] for line in mountinfo.splitlines() if " - " in line
    }
    if "cgroup2" in kinds:
        return "hybrid" if "cgroup" in kinds else "v2"
    return "v1" if "cgroup" in kinds else "none"


def own_groups(mountinfo: str, membership: str) -> dict[str, Path]:
    """Our group's folder for each wanted controller, from mountinfo and /proc/self/cgroup.

    Under v2 they are the same folder; one without the controller is left out.
    """
    paths: dict[str, str] = {}
    for line in membership.splitlines():
        _number, controllers, path = line.split(":", 2)
        for name in controllers.split(",") if controllers else [""]:
            paths[name] = path
    found: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split(" ")[3:5]
        kind, _source, options = after.split(" ", 2)
        if kind == "cgroup2" and "" in paths:
            folder = _below(Path(mount), root, paths[""])
            offered = _read(folder / "cgroup.controllers").split()
            found.update({name: folder for name in _WANTED if name in offered})
        elif kind == "cgroup":
            for name in set(_WANTED) & set(options.split(",")) & set(paths):
                found[name] = _below(Path(mount), root, paths[name])
    return found


def writable(groups: dict[str, Path]) -> bool:
    """May this process make groups below its own, with all the controllers that we want?"""
    return set(groups) >= set(_WANTED) and all(os.access(g, os.W_OK) for g in groups.values())


def _below(mount: Path, root: str, path: str) -> Path:
    """In a container `root` is the group that the mount shows as its top."""
    relative = path[len(root) :] if root != "/" and path.startswith(root) else path
    return mount / relative.lstrip("/")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
