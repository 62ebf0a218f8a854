"""`guest image import`, and what `guest launch` reads for cloud-init."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guesthouse.cli.importing import data_of, name_of
from guesthouse.cli.launch import say_how_to_reach
from guesthouse.errors import Conflict, InvalidInput, NoSpace
from guesthouse.model.device import Nic, Publish
from guesthouse.model.image import Seed

from .cli_room import Room

MIB = 1 << 20
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDb0mC0mM0mC0mM0mC0mM0mC0mM0mC0mM0mC0mM0mC0m jo@desk"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/tmp/Debian-12-Generic.qcow2", "debian-12-generic"),
        ("installer.ISO", "installer"),
        ("my disk (2).vmdk", "my-disk-2"),
        ("archive.tar.img", "archive.tar"),
        ("plain", "plain"),
        ("x" * 100 + ".raw", "x" * 63),
    ],
)
def test_names_come_from_files(file: str, name: str) -> None:
    assert name_of(file) == name


@pytest.mark.parametrize("file", ["---.iso", "日本.img", ".qcow2"])
def test_files_that_give_no_name(file: str) -> None:
    with pytest.raises(InvalidInput, match="No name"):
        name_of(file)


def test_a_file_is_sent_and_imported(guest: Room, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB + 11)
    (tmp_path / "Disk One.img").write_bytes(data)
    said = guest(
        "image", "import", str(tmp_path / "Disk One.img"), "--os", "Debian 12", "--agent",
        "--seed", "none", "--description", "with snapshots", "--format", "raw",
    )  # fmt: skip
    assert said.code == 0
    assert said.out == "disk-one is imported (disk of 3.0M)\n"
    assert "2 snapshots" in said.err
    (body,) = guest.bodies("POST", "/v1/images-import")
    upload = body.pop("upload")
    assert body == {
        "name": "disk-one",
        "format": "raw",
        "description": "with snapshots",
        "os": "Debian 12",
        "agent": True,
        "seed": "none",
    }
    assert guest.bodies("PUT", f"/v1/uploads/{upload}?offset=0") == [data]
    assert not guest.house.uploads
    info = guest("image", "info", "disk-one").out
    for words in ("imported", "raw, as it was imported", "its user", "agent", "left out"):
        assert words in info
    assert guest.house.images[0].seed is Seed.NONE


def test_holes_are_not_sent(guest: Room, tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    with path.open("wb") as file:
        file.write(b"begins")
        file.seek(64 * MIB)
        file.write(b"middle")
        file.truncate(256 * MIB)
    done = guest("image", "import", str(path), "big")
    assert done.code == 0, done
    sent = [(seen, len(body)) for verb, seen, body in guest.house.seen if verb == "PUT"]
    assert [int(seen.rpartition("=")[2]) for seen, _ in sent] == [0, 64 * MIB]
    assert sum(length for _, length in sent) < MIB


def test_what_has_no_room_is_not_sent(guest: Room, tmp_path: Path) -> None:
    """Only its data counts."""
    (tmp_path / "big.img").write_bytes(b"x" * 3 * MIB)
    guest.house.room = 2 * MIB
    said = guest("image", "import", str(tmp_path / "big.img"))
    assert said.code == 8
    assert "3M of data; the house has room for 2M" in said.err
    assert not guest.house.uploads
    assert not [verb for verb, _, _ in guest.house.seen if verb == "PUT"]
    with (tmp_path / "sparse.img").open("wb") as file:
        file.write(b"x" * MIB)
        file.truncate(64 * MIB)
    assert guest("image", "import", str(tmp_path / "sparse.img")).code == 0


def test_small_holes_cost_no_request(tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    with path.open("wb") as file:
        for at in range(0, 10 * MIB, MIB // 2):
            file.seek(at)
            file.write(b"x")
        file.truncate(32 * MIB)
    with path.open("rb") as file:
        ((start, end),) = data_of(file.fileno(), 32 * MIB)
    assert start == 0
    assert 9 * MIB < end <= 11 * MIB


def test_only_holes_are_a_file_too(guest: Room, tmp_path: Path) -> None:
    path = tmp_path / "empty.img"
    with path.open("wb") as file:
        file.truncate(MIB)
    assert guest("image", "import", str(path)).code == 0
    assert not [verb for verb, _, _ in guest.house.seen if verb == "PUT"]


def test_taken_names_are_told_before_anything_is_sent(guest: Room, tmp_path: Path) -> None:
    (tmp_path / "micro.img").write_bytes(b"x")
    said = guest("image", "import", str(tmp_path / "micro.img"))
    assert (said.code, "already an image 'micro'" in said.err) == (5, True)
    assert not guest.bodies("POST", "/v1/uploads")


def test_files_that_cannot_be_sent(guest: Room, tmp_path: Path) -> None:
    (tmp_path / "void.img").touch()
    os.mkfifo(tmp_path / "pipe.img")
    cases = {"nowhere.img": 3, "void.img": 2, ".": 2, "pipe.img": 2}
    for name, code in cases.items():
        assert guest("image", "import", str(tmp_path / name), "new").code == code, name
    assert not guest.house.uploads


@pytest.mark.parametrize("when", ["upload", "image.import", "image.import:later"])
def test_what_fails_leaves_no_upload(guest: Room, tmp_path: Path, when: str) -> None:
    (tmp_path / "disk.img").write_bytes(b"x" * MIB)
    guest.house.fail[when] = NoSpace("The disk is full.")
    said = guest("image", "import", str(tmp_path / "disk.img"))
    assert (said.code, "The disk is full." in said.err) == (8, True)
    assert not guest.house.uploads


def test_an_answer_that_comes_early_is_heard(guest: Room, tmp_path: Path) -> None:
    """The house has heard enough after the first bytes of many."""
    (tmp_path / "disk.img").write_bytes(os.urandom(8 * MIB))
    guest.house.fail["upload"] = Conflict("It is being used.")
    assert "It is being used." in guest("image", "import", str(tmp_path / "disk.img")).err


def test_launch_reads_files(guest: Room, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(f"# mine\n{KEY}\n\n")
    (tmp_path / "user-data").write_text("#cloud-config\npassword: x\n")
    (tmp_path / "network").write_text("version: 2\n")
    guest(
        "launch", "cloud", "web", "--ssh-key", str(tmp_path / "key.pub"),
        "--cloud-init", str(tmp_path / "user-data"), "--network-config", str(tmp_path / "network"),
    )  # fmt: skip
    (body,) = guest.bodies("POST", "/v1/guests")
    assert (body["ssh_keys"], body["user_data"], body["network_config"]) == (
        [KEY],
        "#cloud-config\npassword: x\n",
        "version: 2\n",
    )


def test_a_private_key_is_not_sent(guest: Room, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nsecretsecret\n")
    said = guest("launch", "micro", "--ssh-key", str(key))
    assert (said.code, "stays with you" in said.err, "secretsecret" in said.err) == (2, True, False)
    assert not guest.bodies("POST", "/v1/guests")


@pytest.mark.parametrize(
    ("content", "code"), [(None, 3), (b"\xff\xfe", 2), (b"x" * (300 << 10), 2)]
)
def test_files_that_are_no_user_data(
    guest: Room, tmp_path: Path, content: bytes | None, code: int
) -> None:
    if content is not None:
        (tmp_path / "data").write_bytes(content)
    said = guest("launch", "micro", "--cloud-init", str(tmp_path / "data"))
    assert (said.code, "Traceback" in said.err) == (code, False)


def test_a_guest_without_an_agent_is_not_said_to_be_ready(guest: Room) -> None:
    guest.house.add("box", agent=False, ssh_port=False)
    assert "Ready:     not known: its image has no agent" in guest("info", "box").out


def test_how_a_guest_without_our_port_is_reached(
    guest: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    foreign = guest.house.add("box", agent=False, ssh_port=False)
    say_how_to_reach(guest.house.view(foreign))
    said = capfd.readouterr().err
    for words in ("guest console box", "guest screenshot box", "/v1/guests/box/vnc", "no agent"):
        assert words in said
    assert "ssh -p" not in said
    port = Publish(host_ip="0.0.0.0", host_port=2222, guest_port=22)
    nic = Nic(mac="52:67:68:00:00:01", ports=(port,))
    say_how_to_reach(guest.house.view(guest.house.add("web", ssh_port=False, nics=(nic,))))
    assert "ssh -p 2222 USER@127.0.0.1; guest console web" in capfd.readouterr().err
    blind = guest.house.add("blind", ssh_port=False, display=False)
    say_how_to_reach(guest.house.view(blind))
    said = capfd.readouterr().err
    assert "guest console blind" in said
    assert "screenshot" not in said
    assert "no agent" not in said
