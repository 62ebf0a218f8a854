"""Whether guests go on after the user's last session, and the cure where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from guesthouse.host.capabilities import of_linger
from guesthouse.model.host import Capability


@pytest.fixture
def ask(tmp_path: Path):  # type: ignore[no-untyped-def]  # a function of the paths below
    run, var = tmp_path / "run", tmp_path / "var"
    (run / "user" / "1000").mkdir(parents=True)

    def asked(*, systemd: bool = True, session: bool = True, lingers: bool = False) -> Capability:
        if systemd:
            (run / "systemd" / "system").mkdir(parents=True)
        if lingers:
            (var / "systemd" / "linger").mkdir(parents=True)
            (var / "systemd" / "linger" / "ann").touch()
        runtime = str(run / "user" / "1000") if session else ""
        return of_linger(runtime, 1000, "ann", run=run, var=var)

    return asked


def test_a_session_without_lingering_is_warned_of(ask) -> None:  # type: ignore[no-untyped-def]  # see `ask`
    found = ask()
    assert (found.name, found.available) == ("linger", False)
    assert "last session of ann" in found.reason
    assert found.cure == "loginctl enable-linger"


@pytest.mark.parametrize("how", [{"lingers": True}, {"session": False}, {"systemd": False}])
def test_where_nothing_ends_all_is_well(ask, how: dict[str, bool]) -> None:  # type: ignore[no-untyped-def]  # see `ask`
    assert ask(**how).available


def test_root_is_told_whom_to_let_linger(tmp_path: Path) -> None:
    (tmp_path / "systemd" / "system").mkdir(parents=True)
    found = of_linger(str(tmp_path / "user" / "0"), 0, "root", run=tmp_path, var=tmp_path)
    assert found.cure == "loginctl enable-linger root"
