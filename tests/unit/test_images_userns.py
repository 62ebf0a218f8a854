"""Subordinate ids, and entering a namespace of our own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from guesthouse.errors import HostLacks
from guesthouse.host import userns
from guesthouse.host.userns import IdRange, subordinate_range


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann:100000:65536\n", IdRange(100000, 65536)),
        ("1001:200000:70000\n", IdRange(200000, 70000)),
        ("bob:1:65536\nann:5:10\nann:300000:65535\n", IdRange(300000, 65535)),
        ("annie:100000:65536\n", None),
        ("ann:100000:1000\n", None),
        ("ann:x:y\nnonsense\n", None),
        ("", None),
    ],
)
def test_the_first_range_that_is_large_enough(
    tmp_path: Path, text: str, expected: IdRange | None
) -> None:
    (tmp_path / "subuid").write_text(text)
    assert subordinate_range(tmp_path / "subuid", "ann", 1001) == expected


def test_no_file_is_no_range(tmp_path: Path) -> None:
    assert subordinate_range(tmp_path / "subuid", "ann", 1001) is None


def test_no_range_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("newuidmap", "newgidmap"):
        (tmp_path / tool).touch(mode=0o755)
    monkeypatch.setattr(userns, "_TOOL_PATH", str(tmp_path))
    with pytest.raises(HostLacks) as caught:
        userns.require_ranges(tmp_path)
    assert caught.value.detail["capability"] == "userns"
    assert "--add-subuids" in caught.value.hint


def test_missing_tools_name_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userns, "_TOOL_PATH", str(tmp_path))
    with pytest.raises(HostLacks, match="newuidmap") as caught:
        userns.require_ranges(tmp_path)
    assert "uidmap" in caught.value.hint


@pytest.mark.parametrize(
    ("switch", "value", "cure"),
    [
        ("_MAXIMUM", "0", "max_user_namespaces"),
        ("_DEBIAN_SWITCH", "0", "unprivileged_userns_clone"),
        ("_APPARMOR", "1", "AppArmor"),
    ],
)
def test_the_cure_fits_the_switch_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str, value: str, cure: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1001)
    for name in ("_MAXIMUM", "_DEBIAN_SWITCH", "_APPARMOR"):
        monkeypatch.setattr(userns, name, tmp_path / name)
    (tmp_path / switch).write_text(value + "\n")
    assert cure in userns._cure()


async def test_a_refused_namespace_is_a_lack_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unshare").write_text("#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n")
    for tool in ("unshare", "newuidmap", "newgidmap"):
        (tmp_path / tool).touch()
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setattr(userns, "_TOOL_PATH", str(tmp_path) + ":/bin:/usr/bin")
    monkeypatch.setattr(userns, "require_ranges", lambda: None)
    with pytest.raises(HostLacks, match="Operation not permitted") as caught:
        await userns.enter()
    assert caught.value.detail["capability"] == "userns"


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.mark.rootless
async def test_inside_we_are_root_with_many_ids(tmp_path: Path) -> None:
    prefix = await userns.enter()
    file = tmp_path / "file"
    script = 'id -u; echo x >"$1"; chown 33:44 "$1"; stat -c %u:%g "$1"'
    assert run(*prefix, "sh", "-c", script, "sh", str(file)).split() == ["0", "33:44"]
    owner = file.stat().st_uid
    assert owner == 33 if os.geteuid() == 0 else owner not in (0, 33, os.geteuid())
    (tmp_path / "deep/er").mkdir(parents=True)
    run(*prefix, "chown", "-R", "33", str(tmp_path / "deep"))
    await userns.remove_tree(tmp_path / "deep")
    assert not (tmp_path / "deep").exists()
    await userns.remove_tree(tmp_path / "deep")
