"""`guest cp`: where things arrive, what travels with them, and guests that mean harm."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guesthouse.cli.copy import Place, place
from guesthouse.cli.packing import pack
from guesthouse.cli.unpacking import LARGEST_EXTENSION, unpack
from guesthouse.errors import EngineError, InvalidInput

from .cli_room import Room, make_room

OLD = 1_000_000_000


@pytest.fixture
def guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Room]:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield from make_room(tmp_path, monkeypatch, capfd)


def make_tree(at: Path) -> None:
    (at / "deep" / "empty").mkdir(parents=True)
    (at / "a file").write_text("contents")
    (at / "a file").chmod(0o640)
    (at / "deep" / "run").write_text("#!/bin/sh\n")
    (at / "deep" / "run").chmod(0o775)
    (at / "deep" / "link").symlink_to("../a file")
    os.link(at / "a file", at / "deep" / "other name")
    (at / ("n" * 150)).write_text("a long name")
    (at / "sub").mkdir(mode=0o500)
    for path in [at / "a file", at / "deep" / "run", at / "deep"]:
        os.utime(path, (OLD, OLD))


def check_tree(at: Path) -> None:
    assert (at / "a file").read_text() == "contents"
    assert stat.S_IMODE((at / "a file").stat().st_mode) == 0o640
    assert stat.S_IMODE((at / "deep" / "run").stat().st_mode) == 0o775
    assert (at / "deep" / "link").readlink() == Path("../a file")
    assert (at / "deep" / "other name").samefile(at / "a file")
    assert (at / ("n" * 150)).read_text() == "a long name"
    assert stat.S_IMODE((at / "sub").stat().st_mode) == 0o500
    assert (at / "deep" / "empty").is_dir()
    for path in [at / "a file", at / "deep" / "run", at / "deep"]:
        assert path.stat().st_mtime == OLD


def test_a_tree_there_and_back(guest: Room) -> None:
    make_tree(Path("tree"))
    assert guest("cp", "-r", "tree", "web:copy") == (0, "", "")
    check_tree(guest.house.root / "copy")
    assert guest("cp", "-r", "web:copy", "back") == (0, "", "")
    check_tree(Path("back"))


@pytest.mark.parametrize(
    ("source", "target", "lands"),
    [
        ("file", "web:new", "new"),
        ("file", "web:folder", "folder/file"),
        ("file", "web:folder/", "folder/file"),
        ("file", "web:folder/new", "folder/new"),
        ("file", "web:old", "old"),
        ("file", "web:", "file"),
        ("file", "web:~", "file"),
        ("file", "web:~/folder", "folder/file"),
        ("file", "web:-dash", "-dash"),
        ("link", "web:new", "new"),
        ("tree", "web:new", "new/file"),
        ("tree/", "web:new", "new/file"),
        ("tree", "web:folder", "folder/tree/file"),
        ("tree/.", "web:folder", "folder/file"),
        (".", "web:folder", "folder/file"),
        ("tree/.", "web:new", "new/file"),
        ("../here/tree", "web:folder", "folder/tree/file"),
    ],
)
def test_where_it_arrives_in_the_guest(guest: Room, source: str, target: str, lands: str) -> None:
    Path("file").write_text("new contents")
    Path("tree").mkdir()
    Path("tree/file").write_text("new contents")
    Path("link").symlink_to("file")
    (guest.house.root / "folder").mkdir()
    (guest.house.root / "old").write_text("old contents")
    assert guest("cp", "-r", source, target) == (0, "", "")
    arrived = guest.house.root / lands
    assert arrived.read_text() == "new contents"
    assert not arrived.is_symlink()


@pytest.mark.parametrize(
    ("source", "target", "lands"),
    [
        ("web:file", "new", "new"),
        ("web:file", ".", "file"),
        ("web:file", "folder", "folder/file"),
        ("web:file", "folder/", "folder/file"),
        ("web:file", "old", "old"),
        ("web:file", "linked", "linked"),
        ("web:link", "folder", "folder/link"),
        ("web:tree", "new", "new/file"),
        ("web:tree/", "new", "new/file"),
        ("web:tree", "folder", "folder/tree/file"),
        ("web:tree/.", "folder", "folder/file"),
        ("web:.", "folder", "folder/file"),
        ("web:tree/../tree", "folder", "folder/tree/file"),
    ],
)
def test_where_it_arrives_here(guest: Room, source: str, target: str, lands: str) -> None:
    root = guest.house.root
    (root / "file").write_text("new contents")
    (root / "tree").mkdir()
    (root / "tree" / "file").write_text("new contents")
    (root / "link").symlink_to("file")
    Path("folder").mkdir()
    Path("old").write_text("old contents")
    Path("elsewhere").write_text("elsewhere")
    Path("linked").symlink_to("elsewhere")
    assert guest("cp", "-r", source, target) == (0, "", "")
    assert Path(lands).read_text() == "new contents"
    assert not Path(lands).is_symlink()
    assert Path("elsewhere").read_text() == "elsewhere"


def test_dash_is_the_contents(guest: Room) -> None:
    process = guest.process("cp", "-", "web:made", stdin=subprocess.PIPE)
    process.communicate(b"from a pipe", timeout=30)
    assert process.returncode == 0
    assert (guest.house.root / "made").read_bytes() == b"from a pipe"
    assert guest("cp", "web:made", "-") == (0, "from a pipe", "")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["tree", "web:x"], 2, "guest cp -r"),
        (["web:tree", "x"], 2, "guest cp -r"),
        (["missing", "web:x"], 3, "missing on this host"),
        (["web:missing", "x"], 3, "missing in web"),
        (["web:no/such/folder/x", "x"], 3, "no/such/folder"),
        (["file", "web:no/such/x"], 3, "mkdir -p no/such"),
        (["file", "web:new/"], 3, "mkdir -p new/"),
        (["web:file", "no/such/x"], 3, "mkdir -p no/such"),
        (["-r", "tree", "web:file"], 2, "is a file in web"),
        (["-r", "web:tree", "file"], 2, "is a file"),
        (["file", "other"], 2, "NAME:PATH"),
        (["web:file", "db:file"], 2, "NAME:PATH"),
        (["", "web:file"], 2, "empty"),
        (["-", "web:tree"], 2, "file's name"),
        (["web:tree", "-"], 2, "tar c tree"),
        (["file", "nobody:x"], 3, "nobody"),
    ],
)
def test_what_cannot_be_copied(guest: Room, arguments: list[str], code: int, says: str) -> None:
    for root in (Path(), guest.house.root):
        (root / "file").write_text("stays")
        (root / "tree").mkdir()
    said = guest("cp", *arguments)
    assert said.code == code, said
    assert says in said.err
    assert Path("file").read_text() == (guest.house.root / "file").read_text() == "stays"


def test_an_unreadable_file_is_left_out_and_counts(guest: Room) -> None:
    Path("tree").mkdir()
    Path("tree/ok").write_text("ok")
    os.mkfifo("tree/pipe")
    said = guest("cp", "-r", "tree", "web:copy")
    assert said.code == 1
    assert "left out tree/pipe: it is a device, pipe or socket" in said.err
    assert (guest.house.root / "copy" / "ok").read_text() == "ok"


def test_a_failing_tar_is_quoted(guest: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("x" * 5_000_000)
    broken = guest.house.root / "bin"
    broken.mkdir()
    (broken / "tar").write_text("#!/bin/sh\necho 'tar: the moon is full' >&2; exit 3\n")
    (broken / "tar").chmod(0o755)
    from .fake_streams import _Running

    path = f"{broken}:{os.environ['PATH']}"
    monkeypatch.setitem(_Running.environment, "PATH", path)
    for arguments in (["file", "web:x"], ["web:bin/tar", "x"]):
        said = guest("cp", *arguments)
        assert said.code == 1
        assert "'tar' in web ended with 3: tar: the moon is full" in said.err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("web:/etc", Place("web", "/etc")),
        ("web:", Place("web", ".")),
        ("web:~/x", Place("web", "x")),
        ("web:-x", Place("web", "./-x")),
        ("./a:b", Place("", "./a:b")),
        ("/a:b", Place("", "/a:b")),
        (".:b", Place("", ".:b")),
        (":b", Place("", ":b")),
        ("plain", Place("", "plain")),
        ("-", Place("", "-")),
    ],
)
def test_places(text: str, found: Place) -> None:
    assert place(text) == found


def test_no_place() -> None:
    with pytest.raises(InvalidInput):
        place("")


# --- Guests that mean harm ---


def stream(*members: tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    made.seek(0)
    return made


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, fields.pop("mode", 0o644)
    info.linkname = fields.pop("linkname", "")
    for name_of, value in fields.items():
        setattr(info, name_of, value)
    return info


def receive(data: io.BytesIO, folder: Path, source: str = "x", name: str = "x") -> list[str]:
    left_out: list[str] = []
    unpack(data, source, folder, name, skipped=lambda path, _: left_out.append(path))
    return left_out


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../evil", "x/../../evil", "y", "xx", "./y/x", "", "x/.."]
)
def test_names_outside_are_refused(tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(EngineError, match="not part of"):
        receive(stream(entry("x", tarfile.DIRTYPE, mode=0o755), (entry(name), b"evil")), target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target"]


@pytest.mark.parametrize(
    "target",
    ["/etc", "..", "../..", "a/../../..", "d/../x", "/", "../x/../../y"],
)
def test_links_that_lead_out_are_left_out(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    left_out = receive(
        stream(
            entry("x", tarfile.DIRTYPE, mode=0o755),
            entry("x/link", tarfile.SYMTYPE, linkname=target),
            (entry("x/fine"), b"fine"),
        ),
        folder,
    )
    assert left_out == ["x/link"]
    assert not (folder / "x" / "link").is_symlink()
    assert (folder / "x" / "fine").read_bytes() == b"fine"


def test_links_within_stay(tmp_path: Path) -> None:
    left_out = receive(
        stream(
            entry("x/d/link", tarfile.SYMTYPE, linkname="../other"),
            entry("x/d/down", tarfile.SYMTYPE, linkname="./e/f"),
        ),
        tmp_path,
    )
    assert left_out == []
    assert (tmp_path / "x/d/link").readlink() == Path("../other")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A folder of the stream becomes a link later on; what follows would land behind it."""
    folder, outside = tmp_path / "f", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "x").mkdir()
    (folder / "x" / "trap").symlink_to(outside)  # lies there already
    with pytest.raises(OSError):
        receive(stream((entry("x/trap/file"), b"evil")), folder)
    assert list(outside.iterdir()) == []
    receive(stream(entry("y/d", tarfile.SYMTYPE, linkname="e")), folder, "y", "y")
    with pytest.raises(OSError):
        receive(stream((entry("y/d/file"), b"evil")), folder, "y", "y")
    # A link in the place of the file itself is replaced, not followed.
    (outside / "victim").write_text("precious")
    (folder / "x" / "file").symlink_to(outside / "victim")
    receive(stream((entry("x/file"), b"mine")), folder)
    assert (outside / "victim").read_text() == "precious"
    assert (folder / "x" / "file").read_bytes() == b"mine"


def test_hard_links_reach_only_what_was_copied(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "secret").write_text("secret")
    for target in ("secret", "/etc/passwd", "x/../secret", "../f/secret"):
        with pytest.raises(EngineError):
            receive(stream(entry("x/h", tarfile.LNKTYPE, linkname=target)), folder)
    (folder / "x" / "out").symlink_to(tmp_path)
    with pytest.raises(OSError):
        receive(stream(entry("x/h", tarfile.LNKTYPE, linkname="x/out/f/secret")), folder)
    assert receive(stream(entry("x/h", tarfile.LNKTYPE, linkname="x/gone")), folder) == ["x/h"]


def test_devices_and_set_id_bits_do_not_arrive(tmp_path: Path) -> None:
    left_out = receive(
        stream(
            entry("x", tarfile.DIRTYPE, mode=0o7777),
            entry("x/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("x/disk", tarfile.BLKTYPE, devmajor=8, devminor=0),
            entry("x/pipe", tarfile.FIFOTYPE),
            (entry("x/su", mode=0o6755, uid=0), b"#!"),
        ),
        tmp_path,
    )
    assert left_out == ["x/null", "x/disk", "x/pipe"]
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o777
    assert stat.S_IMODE((tmp_path / "x" / "su").stat().st_mode) == 0o755
    assert (tmp_path / "x" / "su").stat().st_uid == os.geteuid()


def test_a_header_that_would_fill_our_memory(tmp_path: Path) -> None:
    info = entry("x", tarfile.XHDTYPE)
    info.size = 1 << 40
    endless = io.BytesIO(info.tobuf() + bytes(1 << 20))
    with pytest.raises(EngineError, match="proper archive"):
        receive(endless, tmp_path)
    assert endless.tell() <= LARGEST_EXTENSION
    path = "x/" + "/".join(["n" * 200] * 10)  # an honest long name is no harm
    receive(stream((entry(path), b"deep")), tmp_path)
    assert (tmp_path / path).read_bytes() == b"deep"


@pytest.mark.parametrize("data", [b"", b"not a tar at all" * 100, bytes(100)])
def test_garbage_is_no_archive(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(EngineError, match="proper archive"):
        receive(io.BytesIO(data), tmp_path)


def test_a_file_cut_short(tmp_path: Path) -> None:
    whole = stream((entry("x"), b"y" * 100_000)).getvalue()
    with pytest.raises(EngineError, match="proper archive"):
        receive(io.BytesIO(whole[:50_000]), tmp_path)


def test_files_that_change_size_while_they_are_packed(tmp_path: Path) -> None:
    """The archive stays whole: the header's size counts."""
    path = tmp_path / "grows"
    path.write_bytes(b"a" * 1000)
    made = io.BytesIO()

    class Sink:
        def write(self, data: bytes, /) -> int:
            path.write_bytes(b"b" * 10)  # shrinks after its header is out
            return made.write(data)

    pack(path, "grows", Sink(), skipped=lambda *_: None)
    made.seek(0)
    with tarfile.open(fileobj=made) as tar:
        (member,) = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None
        assert len(content.read()) == 1000
