"""Names of the world are asked of the host's resolver, whichever that is by then."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import sys
import threading
from pathlib import Path

import pytest

from ..house_network import test_house

pytestmark = pytest.mark.root

IN_A_MOUNT_NAMESPACE = (
    "mount --bind $1/resolv.conf /etc/resolv.conf && exec $2 -m tests.unit.test_house_resolver $1"
)


async def test_the_hosts_resolver_is_followed(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").touch()
    shell = ["unshare", "--mount", "--propagation=private", "sh", "-c", IN_A_MOUNT_NAMESPACE, "-"]
    process = await asyncio.create_subprocess_exec(
        *shell,
        str(tmp_path),
        sys.executable,
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 120)
    assert said.decode().split("\n") == ["0 192.0.2.5", "0 192.0.2.6", ""]


def serve(ip: str, last: int) -> None:
    """A DNS server whose answer to everything is 192.0.2.`last`."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((ip, 53))

    def answer() -> None:
        while True:
            query, whom = sock.recvfrom(4096)
            head = query[:2] + b"\x81\x80" + struct.pack("!HHHH", 1, 1, 0, 0)
            record = struct.pack("!HHHIH", 0xC00C, 1, 1, 0, 4) + bytes([192, 0, 2, last])
            sock.sendto(head + query[12:] + record, whom)

    threading.Thread(target=answer, daemon=True).start()


async def main(folder: Path) -> None:
    for last in (5, 6):
        serve(f"127.0.0.{last}", last)
    Path("/etc/resolv.conf").write_text("nameserver 127.0.0.5\n")
    async with test_house(folder / "house") as house:
        web = await house.boot("web")
        print(await web.ask("10.201.1.1", "one.example.com"), flush=True)
        Path("/etc/resolv.conf").write_text("nameserver 127.0.0.6\n")
        for _ in range(100):  # libslirp looks once a second
            said = await web.ask("10.201.1.1", f"{_}.example.com")
            if said.endswith("6"):
                break
            await asyncio.sleep(0.1)
        print(said)
    shutil.rmtree(folder / "house")


if __name__ == "__main__":
    (Path(sys.argv[1]) / "house").mkdir()
    asyncio.run(main(Path(sys.argv[1])))
