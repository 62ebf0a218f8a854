"""The units in packaging/: systemd understands them, and they leave guests alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from guesthouse.model.folders import resolve

UNITS = Path(__file__).parents[2] / "packaging" / "systemd"
ROOMS = ("system", "user")


def settings(unit: Path) -> dict[str, list[str]]:
    """Values by `Section.Key`, as often as they are given (systemd.syntax(7))."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and line[0] not in "#;":
            key, _, value = line.partition("=")
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_systemd_understands_them(room: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    for unit in (UNITS / room).iterdir():
        # Our programs need not be installed for this.
        text = unit.read_text().replace("/usr/bin/guesthoused", "/bin/true")
        (tmp_path / unit.name).write_text(text.replace("/usr/bin/guest ", "/bin/true "))
    done = subprocess.run(
        [analyze, f"--{room}", "verify", "--man=no", *sorted(map(str, tmp_path.iterdir()))],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("room", ROOMS)
def test_the_daemon_may_end_without_its_guests(room: str) -> None:
    unit = settings(UNITS / room / "guesthouse.service")
    assert unit["Service.KillMode"] == ["process"]
    assert unit["Service.OOMPolicy"] == ["continue"]
    assert unit["Service.Delegate"] == ["yes"]
    assert unit["Service.Type"] == ["notify"]
    # Each of these would take something from guests that run on, or keep them from running.
    harmful = {"PrivateTmp", "RuntimeDirectory", "MemoryDenyWriteExecute", "PrivateDevices",
               "RestrictNamespaces", "ProtectClock", "DeviceAllow", "ProtectHostname",
               "ProtectKernelModules", "RestrictSUIDSGID", "NoNewPrivileges"}  # fmt: skip
    assert not {key.partition(".")[2] for key in unit} & harmful


@pytest.mark.parametrize("room", ROOMS)
def test_guests_are_stopped_before_all_else(room: str) -> None:
    unit = settings(UNITS / room / "guesthouse-guests.service")
    after = " ".join(unit["Unit.After"]).split()
    assert "guesthouse.service" in after
    if room == "system":
        assert {"network-online.target", "local-fs.target", "remote-fs.target"} <= {*after}
    assert unit["Service.Type"] == ["oneshot"]
    assert unit["Service.RemainAfterExit"] == ["yes"]
    assert "Service.KillMode" not in unit
    (stop,) = unit["Service.ExecStop"]
    assert stop == "-/usr/bin/guest daemon stop --guests"
    (last,) = unit["Service.ExecStopPost"]
    assert last.endswith("--shutdown-guests")
    assert ("--system" in last) == (room == "system")


@pytest.mark.parametrize("room", ROOMS)
def test_the_socket_is_where_the_command_line_looks(room: str) -> None:
    unit = settings(UNITS / room / "guesthouse.socket")
    runtime = "/run/user/1000"
    house = resolve(
        {"HOME": "/home/ann", "XDG_RUNTIME_DIR": runtime},
        uid=1000,
        mode="system" if room == "system" else "personal",
    )
    (place,) = unit["Socket.ListenStream"]
    assert place.replace("%t", runtime) == str(house.socket)
    assert unit["Socket.SocketMode"] == ["0660" if room == "system" else "0600"]
    environment = settings(UNITS / room / "guesthouse-guests.service")["Service.Environment"]
    assert environment == [f"GUESTHOUSE_SOCKET={place}"]
