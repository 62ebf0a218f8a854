"""`guest nic set` of impairments, and `guest nic capture`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from guesthouse.errors import HostLacks
from guesthouse.model.capture import whole_blocks
from guesthouse.model.impairment import Impairment, NicImpairment

from .cli_room import Room, make_room

PATH = "/v1/guests/web/nics/0/impairment"


@pytest.fixture
def guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Room]:
    yield from make_room(tmp_path, monkeypatch, capfd)


def sent(guest: Room) -> list[NicImpairment]:
    return [msgspec.convert(body, NicImpairment) for body in guest.bodies("PUT", PATH)]


def test_words_change_what_they_name_and_leave_the_rest(guest: Room) -> None:
    said = guest("nic", "set", "web", "0", "latency=80ms", "in.loss=1%")
    assert said.out == "Card 0 of web: latency=80ms in.loss=1%\n", said
    assert guest("nic", "set", "web", "0", "rate=8mbit", "in.latency=0").code == 0
    assert sent(guest)[-1] == NicImpairment(
        incoming=Impairment(loss=0.01, rate=8_000_000),
        outgoing=Impairment(latency=0.08, rate=8_000_000),
    )
    shown = guest("info", "web").out
    assert "impaired: out.latency=80ms in.loss=1% rate=8mbit" in " ".join(shown.split())
    said = guest("nic", "set", "web", "0", "clear")
    assert said.out == "Card 0 of web: not impaired\n" and sent(guest)[-1] == NicImpairment()
    assert "impaired" not in guest("info", "web").out
    # Clear, and then this.
    guest("nic", "set", "web", "0", "loss=5%", "clear")
    both = Impairment(loss=0.05)
    assert sent(guest)[-1] == NicImpairment(incoming=both, outgoing=both)


def test_a_card_by_its_mac(guest: Room) -> None:
    said = guest("nic", "set", "web", "52:67:68:00:00:01", "loss=1%")
    assert said.code == 0 and "loss=1%" in said.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lag=5ms"], "changes nothing"),
        (["latancy=5ms"], "Did you mean latency=…?"),
        (["latency"], "impairs nothing"),
        (["loss=101%"], "A loss of 101% is not possible"),
        (["rate=fast"], "is not a rate"),
        (["jitter=5ms"], "larger than the latency"),
        (["reorder=5%"], "Add a latency"),
        (["loss=1%", "loss=2%"], "given twice"),
        (["up.loss=1%"], "changes nothing"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_asked(
    guest: Room, words: list[str], said: str
) -> None:
    answer = guest("nic", "set", "web", "0", *words)
    assert answer.code == 2 and said in answer.err
    assert sent(guest) == []


def test_no_such_card_and_what_the_kernel_lacks(guest: Room) -> None:
    answer = guest("nic", "set", "web", "3", "loss=1%")
    assert answer.code == 3 and "Its cards: 0" in answer.err
    guest.house.fail["nic.impair:later"] = HostLacks(
        "Latency is not possible: this kernel lacks netem (CONFIG_NET_SCH_NETEM).",
        hint="Load it (as root: modprobe sch_netem), or use a kernel that has it.",
    )
    answer = guest("nic", "set", "web", "0", "latency=80ms")
    assert answer.code == 9 and "modprobe sch_netem" in answer.err


def test_completion(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def completed(*words: str) -> list[str]:
        monkeypatch.setenv("_GUEST_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(("guest", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        return [line.partition(",")[2] for line in guest().out.splitlines()]

    assert completed("nic", "set", "w") == ["web"]
    assert completed("nic", "set", "web", "0", "l") == ["link=", "latency=", "loss="]
    assert completed("nic", "set", "web", "0", "loss=1%", "l") == ["link=", "latency="]
    assert "in.rate=" in completed("nic", "set", "web", "0", "in.r")


def test_a_bounded_capture_is_a_whole_file(guest: Room, tmp_path: Path) -> None:
    path = tmp_path / "web.pcapng"
    said = guest("nic", "capture", "web", "0", "-o", str(path), "--packets", "2", "--seconds", "2m")
    assert said.code == 0 and said.out.startswith(f"Wrote {path}: 2 packets, "), said
    data = path.read_bytes()
    assert b"".join(block.data for block in whole_blocks([data])) == data
    assert path.stat().st_mode & 0o777 == 0o600
    asked = [seen for _, seen, _ in guest.house.seen if "/capture" in seen]
    assert asked == ["/v1/guests/web/nics/0/capture?seconds=120.0&packets=2&snaplen=262144"]


def test_losses_are_told(guest: Room, tmp_path: Path) -> None:
    guest.house.lost_packets = 7
    said = guest("nic", "capture", "web", "0", "-o", str(tmp_path / "x"), "--packets", "2")
    assert "7 packets more came and were lost" in said.err and "--snaplen" in said.err


def test_ctrl_c_ends_it_and_the_file_is_whole(guest: Room, tmp_path: Path) -> None:
    path = tmp_path / "web.pcapng"
    process = guest.process("nic", "capture", "web", "0", "-o", str(path))
    for _ in range(600):
        if path.exists() and path.stat().st_size > 300:
            break
        time.sleep(0.05)
    time.sleep(0.2)  # so that the half block has come too
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert b": 2 packets, " in out
    data = path.read_bytes()
    assert b"".join(block.data for block in whole_blocks([data])) == data


def test_a_pipe_whose_reader_has_enough(guest: Room) -> None:
    reading, writing = os.pipe()
    process = guest.process("nic", "capture", "web", "0", "-o", "-", stdout=writing)
    os.close(writing)
    head = os.read(reading, 16)
    assert head[:4] == b"\n\r\r\n"
    guest.house.stopped.set()  # the rest comes, and the end
    os.close(reading)
    assert process.wait(30) == 0
    assert process.stderr is not None and b"error" not in process.stderr.read()


def test_it_is_piped_whole(guest: Room) -> None:
    process = guest.process(
        "nic", "capture", "web", "0", "-o", "-", "--packets", "2", stdout=subprocess.PIPE
    )
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and err == b""
    assert [block.kind for block in whole_blocks([out])] == [0x0A0D0D0A, 1, 6, 6, 5]


def test_a_file_that_cannot_be_written(guest: Room, tmp_path: Path) -> None:
    said = guest("nic", "capture", "web", "0", "-o", str(tmp_path / "no" / "x"), "--packets", "2")
    assert said.code == 4 and "another file" in said.err
    said = guest("nic", "capture", "web", "0")
    assert said.code == 2 and "--output" in said.err
    assert guest("nic", "capture", "gone", "0", "-o", str(tmp_path / "x")).code == 3
    assert not (tmp_path / "x").exists()
