"""Captures as pcapng: byte for byte, taken apart again, and read by others' programs."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from guesthouse.errors import Internal
from guesthouse.model.capture import CaptureQuery, whole_blocks
from guesthouse.network import capture
from guesthouse.network.capture import Counts, Packet, header, packet_block, statistics_block
from guesthouse.operations.traffic_house import _bounded

MAC = "52:67:68:00:00:01"
FRAME = bytes.fromhex("ffffffffffff 526768000001 0806") + bytes(29)  # not whole words
WHEN = 1_700_000_000_123_456_789


@pytest.fixture(autouse=True)
def _version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "__version__", "1.0")


def file(*packets: Packet) -> bytes:
    counts = Counts(received=len(packets) + 2, lost=2)
    blocks = b"".join(map(packet_block, packets))
    statistics = statistics_block(counts, started=WHEN, now=WHEN + 9, delivered=len(packets))
    return header("web/0", "card 0 of guest web", MAC, snaplen=65536) + blocks + statistics


GOLDEN = """
0a0d0d0a 34000000 4d3c2b1a 01000000 ffffffffffffffff
  04000e00 4775657374686f757365 20312e30 0000 00000000 34000000
01000000 50000000 01000000 00000100
  02000500 7765622f30 000000
  03001300 63617264203020 6f6620 677565737420 776562 00
  06000600 526768000001 0000
  09000100 09 000000
  00000000 50000000
06000000 58000000 00000000 fe9c9717 15cd853d 2b000000 2c000000
  ffffffffffff 526768000001 0806 0000000000000000000000000000000000000000000000000000000000 00
  02000400 01000000 00000000 58000000
05000000 58000000 00000000 fe9c9717 1ecd853d
  02000800 fe9c9717 15cd853d
  03000800 fe9c9717 1ecd853d
  04000800 0300000000000000
  07000800 0200000000000000
  08000800 0100000000000000
  00000000 58000000
"""


def test_the_bytes_of_a_file() -> None:
    made = file(Packet(WHEN, FRAME, 44, inbound=True))
    wanted = bytes.fromhex("".join(GOLDEN.split()))
    assert [b.data.hex() for b in whole_blocks([made])] == [
        b.data.hex() for b in whole_blocks([wanted])
    ]
    assert made == wanted


def test_blocks_are_found_however_they_come() -> None:
    made = file(*(Packet(WHEN + n, FRAME[: 20 + n], 43, inbound=bool(n % 2)) for n in range(5)))
    whole = list(whole_blocks([made]))
    assert [block.kind for block in whole] == [0x0A0D0D0A, 1, 6, 6, 6, 6, 6, 5]
    assert b"".join(block.data for block in whole) == made
    assert whole[-1].lost == 2
    one_by_one = (made[at : at + 1] for at in range(len(made) - 3))
    assert list(whole_blocks(one_by_one)) == whole[:-1], "a cut block is left out"
    with pytest.raises(Internal):
        list(whole_blocks([b"HTTP/1.1 200 OK\r\n\r\n"]))


class Waiting:
    """Packets that are there already. :ivar closed: nobody wants more."""

    def __init__(self, *batches: Sequence[Packet], lost: int = 0) -> None:
        self.batches = list(batches)
        self.lost = lost
        self.came = 0

    async def some(self) -> Sequence[Packet]:
        found = self.batches.pop(0) if self.batches else ()
        self.came += len(found)
        return found

    def counts(self) -> Counts:
        return Counts(self.came + self.lost, self.lost)

    def close(self) -> None:
        self.batches = []


def packets(count: int) -> list[Packet]:
    return [Packet(WHEN + n, FRAME, len(FRAME), inbound=False) for n in range(count)]


async def kinds(pieces: AsyncIterator[bytes]) -> list[int]:
    return [block.kind for block in whole_blocks([piece async for piece in pieces])]


async def test_it_ends_at_its_bounds() -> None:
    assert await kinds(_bounded(Waiting(packets(3)), 0, CaptureQuery())) == [6, 6, 6, 5]
    two = CaptureQuery(packets=2)
    assert await kinds(_bounded(Waiting(packets(3)), 0, two)) == [6, 6, 5]
    size = 2 * len(packet_block(packets(1)[0])) + capture.STATISTICS_SIZE
    for less, there in ((0, [6, 6, 5]), (1, [6, 5])):
        wanted = CaptureQuery(size=size - less)
        pieces = [piece async for piece in _bounded(Waiting(packets(9)), 0, wanted)]
        assert [block.kind for block in whole_blocks(pieces)] == there
        assert sum(map(len, pieces)) <= size - less


async def test_losses_are_written_when_they_grow_and_at_the_end() -> None:
    source = Waiting(packets(1), packets(1), lost=7)
    pieces = [piece async for piece in _bounded(source, 0, CaptureQuery())]
    blocks = list(whole_blocks(pieces))
    assert [block.kind for block in blocks] == [6, 5, 6, 5]
    assert [block.lost for block in blocks if block.kind == 5] == [7, 7]


@pytest.mark.parametrize("program", ["capinfos", "tshark", "tcpdump"])
def test_others_read_it(program: str, tmp_path: Path) -> None:
    found = shutil.which(program) or shutil.which(f"/usr/sbin/{program}")
    if found is None:
        pytest.skip(f"{program} is not installed")
    path = tmp_path / "file.pcapng"
    path.write_bytes(file(*packets(3)))
    argv = {
        "capinfos": [found, "-c", "-r", str(path)],
        "tshark": [found, "-r", str(path), "-T", "fields", "-e", "frame.time_epoch"],
        "tcpdump": [found, "-nn", "-tt", "-r", str(path)],
    }[program]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert ("3" if program == "capinfos" else "1700000000.123456") in done.stdout


def test_a_long_packet_is_cut_and_its_length_is_kept() -> None:
    [block] = whole_blocks([packet_block(Packet(WHEN, FRAME[:16], 9000, inbound=False))])
    assert struct.unpack_from("<II", block.data, 20) == (16, 9000)
