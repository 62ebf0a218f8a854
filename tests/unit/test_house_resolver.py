"""Names of the world are asked of the host's resolver, whichever that is by then."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from guesthouse.errors import ToolFailed

from ..house_network import test_house

pytestmark = pytest.mark.root

ON_A_HOST = (
    "ip link set lo up && ip address add 198.51.100.1/32 dev lo && "
    "mount --bind $1/etc /etc && exec $2 -m tests.unit.test_house_resolver $1"
)
FILES = ("group", "hosts", "ld.so.cache", "nsswitch.conf", "passwd", "subgid", "subuid")
NAME = "one.example.com"


async def test_the_hosts_resolver_is_followed(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    for name in FILES:
        with suppress(FileNotFoundError):
            shutil.copy(f"/etc/{name}", etc)
    shell = ["unshare", "--mount", "--net", "--propagation=private", "sh", "-c", ON_A_HOST, "-"]
    process = await asyncio.create_subprocess_exec(
        *shell,
        str(tmp_path),
        sys.executable,
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 240)
    assert said.decode().split("\n") == [
        "at first: 0 192.0.2.5",
        "remembered: 0 192.0.2.5",
        "another: 0 192.0.2.6",
        "a link: 0 192.0.2.5",
        "the second: 0 192.0.2.1",
        "",
    ]


def serve(ip: str, last: int) -> None:
    """A DNS server whose answer to everything is 192.0.2.`last`, for an hour."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((ip, 53))

    def answer() -> None:
        while True:
            query, whom = sock.recvfrom(4096)
            head = query[:2] + b"\x81\x80" + struct.pack("!HHHH", 1, 1, 0, 0)
            record = struct.pack("!HHHIH", 0xC00C, 1, 1, 3600, 4) + bytes([192, 0, 2, last])
            sock.sendto(head + query[12:] + record, whom)

    threading.Thread(target=answer, daemon=True).start()


async def main(folder: Path) -> None:
    for ip, last in [("127.0.0.5", 5), ("127.0.0.6", 6), ("198.51.100.1", 1)]:
        serve(ip, last)
    file = Path("/etc/resolv.conf")
    file.write_text("nameserver 127.0.0.5\n")
    async with test_house(folder / "house") as house:
        web = await house.boot("web")

        async def says(title: str, name: str, last: int) -> None:
            """Until it does, or a while."""
            said = ""
            for _ in range(60):
                with suppress(ToolFailed):  # nobody answers while the server is started anew
                    said = await web.ask("10.201.1.1", name)
                if said.endswith(f".{last}"):
                    break
                await asyncio.sleep(0.5)
            print(f"{title}: {said}", flush=True)

        await says("at first", NAME, 5)
        print(f"remembered: {await web.ask('10.201.1.1', NAME)}", flush=True)
        new = Path("/etc/new")
        new.write_text("nameserver 127.0.0.6\n")
        new.replace(file)
        await says("another", NAME, 6)
        # As systemd-resolved has it.
        stub = Path("/run") / folder.name
        stub.mkdir()
        try:
            (stub / "stub.conf").write_text("nameserver 127.0.0.5\n")
            new.symlink_to(stub / "stub.conf")
            new.replace(file)
            await says("a link", NAME, 5)
            (stub / "stub.conf").write_text("nameserver 127.0.0.9\nnameserver 198.51.100.1\n")
            await says("the second", NAME, 1)
        finally:
            shutil.rmtree(stub)
    shutil.rmtree(folder / "house")


if __name__ == "__main__":
    (Path(sys.argv[1]) / "house").mkdir()
    asyncio.run(main(Path(sys.argv[1])))
