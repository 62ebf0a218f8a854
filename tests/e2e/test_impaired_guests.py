"""Two guests on a bad network, seen from inside, and their packets captured: by the command."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.model.capture import Block, whole_blocks
from tests.unit.namespace_house import need_ids, need_tun

from .conftest import GUEST, House, until

pytestmark = [pytest.mark.qemu, pytest.mark.rootless]


@pytest.fixture(scope="module")
def pair(house: House) -> Iterator[House]:
    need_ids()
    need_tun()
    house.run("network", "create", "bad")
    for name in ("near", "far"):
        house.run("launch", "micro", name, "--memory", "192M", "--network", "bad")
    until(lambda: received(house, 1) == 1, say="they reach each other", seconds=120)
    yield house


def received(house: House, count: int) -> int:
    """How many of so many pings to far were answered, as near sees it."""
    # By its address: names are asked for by the same bad network.
    members = house.json("network", "info", "bad")["members"]
    [far] = [one["address4"] for one in members if one["guest"] == "far"]
    argv = ["exec", "near", "--", "ping", "-c", str(count), "-i", "0.2", "-W", "1", far]
    done = house.run(*argv, ok=False)
    said = (done.stdout + done.stderr).decode()
    if "unreachable" in said:  # it has no address yet, for which it asks by that network too
        return 0
    found = re.search(rf"{count} packets transmitted, (\d+) (packets )?received", said)
    assert found, said
    return int(found[1])


def test_loss_seen_from_inside(pair: House) -> None:
    assert received(pair, 10) == 10
    said = pair.out("nic", "set", "near", "0", "in.loss=100%")
    assert said == "Card 0 of near: in.loss=100%\n"
    assert received(pair, 3) == 0
    pair.run("nic", "set", "near", "0", "in.loss=0", "out.loss=50%")
    assert 3 <= received(pair, 40) <= 37
    assert "impaired: out.loss=50%" in pair.out("info", "near")
    pair.run("nic", "set", "near", "0", "clear")
    assert received(pair, 10) == 10


def test_it_stays_with_the_card(pair: House) -> None:
    pair.run("nic", "set", "near", "0", "loss=100%")
    pair.kill_daemon()
    assert received(pair, 2) == 0, "another daemon has found it"
    pair.run("restart", "--force", "near")
    assert received(pair, 2) == 0, "a new incarnation has it"
    pair.run("nic", "set", "near", "0", "clear")
    pair.run("restart", "--force", "near")
    until(lambda: received(pair, 2) == 2, say="it is gone", seconds=120)


def test_latency_where_the_kernel_has_it(pair: House) -> None:
    able = {one["name"]: one for one in pair.json("doctor")["capabilities"]}
    done = pair.run("nic", "set", "near", "0", "in.latency=300ms", ok=False)
    if not able["netem"]["available"]:
        assert done.returncode == 9 and b"CONFIG_NET_SCH_NETEM" in done.stderr
        assert received(pair, 2) == 2, "nothing was done"
        pytest.skip("this kernel lacks netem (CONFIG_NET_SCH_NETEM)")
    assert done.returncode == 0
    said = pair.out("exec", "near", "--", "ping", "-c", "3", "far")
    least = re.search(r"min/avg/max = ([0-9.]+)", said)
    assert least and float(least[1]) >= 300
    pair.run("nic", "set", "near", "0", "clear")


def test_a_capture_holds_both_directions_and_ctrl_c_ends_it(pair: House) -> None:
    path = pair.folder / "near.pcapng"
    process = pair.popen("nic", "capture", "near", "0", "-o", str(path))
    until(lambda: path.exists() and path.stat().st_size > 100, say="it has begun")
    assert received(pair, 5) == 5
    until(lambda: len(echoes(path)) >= 10, say="it has them")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and b"Wrote " in said, said
    data = path.read_bytes()
    assert b"".join(block.data for block in whole_blocks([data])) == data, "whole blocks alone"
    found = echoes(path)
    assert found.count(("outbound", 8)) >= 5 and found.count(("inbound", 0)) >= 5
    assert not {("inbound", 8), ("outbound", 0)} & set(found)


def test_a_pipe_and_bounds(pair: House) -> None:
    process = pair.popen("nic", "capture", "far", "0", "-o", "-", "--packets", "4")
    assert received(pair, 5) == 5
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [block.kind for block in whole_blocks([out])] == [0x0A0D0D0A, 1, 6, 6, 6, 6, 5]
    path = pair.folder / "small.pcapng"
    pair.run("nic", "capture", "far", "0", "-o", str(path), "--seconds", "1s", "--size", "5000")
    assert 0 < path.stat().st_size <= 5000


def test_nobody_reads_and_neither_guest_nor_daemon_suffer(pair: House) -> None:
    """What is too much is lost and counted."""
    before = resident(pair.daemon_pid)
    argv = [str(GUEST), "nic", "capture", "near", "0", "-o", "-", "--seconds", "20s"]
    reader = subprocess.Popen(argv, env=pair.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # 16 MB there, and as much back.
    flood = ["ping", "-c", "270", "-i", "0.005", "-s", "60000", "-q", "far"]
    for _ in range(2):
        assert "270 packets transmitted" in pair.out("exec", "near", "--", *flood)
    assert resident(pair.daemon_pid) - before < 40 << 20
    out, said = reader.communicate(timeout=60)
    assert reader.returncode == 0 and b"more came and were lost" in said
    last = list(whole_blocks([out]))[-1]
    assert last.kind == 5 and last.lost > 0 and len(out) < 40 << 20


def resident(pid: int) -> int:
    """Bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def echoes(path: Path) -> list[tuple[str, int]]:
    """Echo requests (8) and answers (0) of a capture, and which way they went."""
    return [
        ({1: "inbound", 2: "outbound"}[block.data[-12]], frame[34])
        for block in whole_blocks([path.read_bytes()])
        if block.kind == 6
        for frame in [_frame(block)]
        if frame[12:14] == b"\x08\x00" and frame[23] == 1
    ]


def _frame(block: Block) -> bytes:
    return block.data[28 : 28 + int.from_bytes(block.data[20:24], "little")]
