"""What the benchmarks derive and judge; what they measure is not asserted."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from benchmarks.figures import OURS, Budget, Figure, table
from benchmarks.raw import opened_by, raw_argv

RECORDED = shlex.split(
    """prlimit --core=0:0 -- setpriv --no-new-privs -- /usr/bin/qemu -name guest=m1 -S
    -object memory-backend-file,id=ram,size=134217728,mem-path=/proc/self/fd/8,share=on
    -add-fd fd=11,set=1,opaque=disk0.0 -add-fd fd=12,set=1,opaque=disk0.0w
    -add-fd fd=13,set=2,opaque=disk0.1 -kernel /proc/self/fd/9 -append rdinit=/init
    -chardev socket,id=qmp,fd=3,server=on,wait=off
    -blockdev '{"filename":"/dev/fdset/2"}' -blockdev '{"filename":"/dev/fdset/1"}'"""
)
OPENED = {"kernel": "/k", "disk0.0": "/top", "disk0.0w": "/top", "disk0.1": "/base"}


def test_raw_command_has_paths_for_every_descriptor() -> None:
    argv = raw_argv(RECORDED, Path("/r"), OPENED.__getitem__, paused=True)
    assert argv == shlex.split(
        """/usr/bin/qemu -name guest=m1 -S
        -object memory-backend-memfd,id=ram,size=134217728,share=on
        -kernel /k -append rdinit=/init
        -chardev socket,id=qmp,path=/r/qmp.sock,server=on,wait=off
        -blockdev '{"filename":"/base"}' -blockdev '{"filename":"/top"}'"""
    )


def test_raw_command_runs_at_once_unless_paused() -> None:
    argv = raw_argv(RECORDED, Path("/r"), OPENED.__getitem__, paused=False)
    assert "-S" not in argv
    assert "-append" in argv


def test_descriptors_of_every_disk_have_a_path() -> None:
    guest = {"launch": {"argv": RECORDED[: RECORDED.index("-kernel")]}, "status": {"pid": 1}}
    opened = opened_by(guest, {"disk0": [Path("/top"), Path("/base")], "nvram": [Path("/vars")]})
    names = ("disk0.0", "disk0.0w", "disk0.1", "nvram.0", "nvram.0w")
    assert [opened(name) for name in names] == ["/top", "/top", "/base", "/vars", "/vars"]


def test_ratio_is_taken_within_rounds() -> None:
    figure = Figure("start", "ms", Budget(1.5, "raw"))
    for ours, raw in ((12.0, 10.0), (120.0, 100.0), (11.0, 10.0)):
        figure.add(OURS, ours)
        figure.add("raw", raw)
    assert figure.ratio("raw") == pytest.approx(1.2)
    assert figure.met() is True


@pytest.mark.parametrize(
    ("budget", "values", "met"),
    [
        (Budget(50), {OURS: [40.0, 60.0, 45.0]}, True),
        (Budget(50), {OURS: [60.0, 70.0]}, False),
        (Budget(1.5, "raw"), {OURS: [16.0], "raw": [10.0]}, False),
        (Budget(1.5, "raw"), {OURS: [16.0]}, None),
        (None, {OURS: [16.0]}, None),
    ],
)
def test_budgets(budget: Budget | None, values: dict[str, list[float]], met: bool | None) -> None:
    assert Figure("it", "ms", budget, values).met() is met


def test_table_marks_what_is_missed() -> None:
    figure = Figure("start", "ms", Budget(1.5, "raw"), {OURS: [30.0], "raw": [10.0]})
    header, rule, ours, raw = table([figure]).splitlines()
    assert len({len(header), len(rule), len(ours), len(raw)}) == 1
    assert "3.00" in ours
    assert "MISSED" in ours
    assert "MISSED" not in raw
