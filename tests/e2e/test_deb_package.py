"""The Debian package: what is in it, and that it comes and goes cleanly in a fresh Debian.

That Debian is made by mmdebstrap from what this host's apt uses, so it is the host's own release,
whose Python the package is for. It has no systemd as process 1: the units are enabled there, and
the daemon is started by hand.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import until

pytestmark = [pytest.mark.full, pytest.mark.root, pytest.mark.timeout(1800)]

TOP = Path(__file__).parents[2]
APT = Path("/etc/apt")
PREFIX = "usr/lib/guesthouse"
# What they leave is written about users, by whoever adds one: backups of the tables.
TABLES = re.compile(r"etc/(passwd|group|shadow|gshadow|subuid|subgid)-$")
LOGS = re.compile(r"var/log/|var/cache/|var/lib/dpkg/|run/adduser$|root/")


def codename() -> str:
    found = re.search(r"^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    return found[1] if found else ""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deb")
    subprocess.run(
        [str(TOP / "packaging" / "deb" / "build"), str(folder)], check=True, capture_output=True
    )
    (made,) = folder.glob("guesthouse_*.deb")
    return made


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(folder)], check=True)
    return folder


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def control(unpacked: Path) -> dict[str, str]:
    text = (unpacked / "DEBIAN" / "control").read_text()
    return dict(re.findall(r"^(\S+): (.*)$", text, re.MULTILINE))


# --- what is in it --------------------------------------------------------------------------------


def test_it_says_what_it_is_and_needs(unpacked: Path) -> None:
    fields = control(unpacked)
    assert fields["Package"] == "guesthouse"
    assert (
        fields["Version"]
        == re.findall(
            r'^version = "(.*)"', (TOP / "pyproject.toml").read_text(), re.MULTILINE
        ).pop()
    )
    (interpreter,) = (unpacked / PREFIX / "lib").iterdir()
    minor = int(interpreter.name.removeprefix("python3."))
    assert f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1})" in fields["Depends"]
    assert "qemu-system-x86 (>= 1:7.2)" in fields["Depends"]
    assert abs(
        int(fields["Installed-Size"]) - sum(p.stat().st_size for p in files(unpacked)) / 1024
    ) < (20_000)
    assert "@" not in (unpacked / "DEBIAN" / "control").read_text().replace(
        "@guesthouse.invalid", ""
    )


def test_files_are_where_and_how_they_should_be(package: Path, unpacked: Path) -> None:
    places = (
        "DEBIAN/",
        f"{PREFIX}/",
        "usr/bin/guest",
        "usr/lib/systemd/",
        "usr/share/bash-completion/completions/guest",
        "usr/share/zsh/vendor-completions/_guest",
        "usr/share/fish/vendor_completions.d/guest.fish",
        "usr/share/doc/guesthouse/",
    )
    for path in files(unpacked):
        assert str(path.relative_to(unpacked)).startswith(places), path
        script = path.parent.name in {"bin", "DEBIAN"} and path.name not in {"control", "md5sums"}
        assert path.stat().st_mode & 0o7777 == (0o755 if script else 0o644), path
    listed = subprocess.run(
        ["dpkg-deb", "--contents", str(package)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {line.split()[1] for line in listed} == {"root/root"}
    links = [line.partition(" ./")[2] for line in listed if line.startswith("l")]
    assert len(links) == 1
    assert re.fullmatch(rf"{PREFIX}/bin/python -> /usr/bin/python3\.\d+", links[0])


def test_nothing_tells_where_it_was_built(package: Path, unpacked: Path) -> None:
    told = [os.fsencode(place) for place in (TOP, package.parent, "/tmp/tmp.")]
    for path in files(unpacked):
        content = path.read_bytes()
        assert not [place for place in told if place in content], path
    assert not list(unpacked.rglob("direct_url.json"))


def test_its_sums_are_right(unpacked: Path) -> None:
    lines = (unpacked / "DEBIAN" / "md5sums").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    there = {str(path.relative_to(unpacked)): path for path in files(unpacked / "usr")}
    assert sums.keys() == there.keys()
    for name, path in there.items():
        assert hashlib.md5(path.read_bytes()).hexdigest() == sums[name], name


def test_python_has_nothing_left_to_write(unpacked: Path) -> None:
    """Each module has its bytecode, which is never compared with the module (PEP 552)."""
    sources = [path for path in files(unpacked / PREFIX) if path.suffix == ".py"]
    compiled = [path for path in files(unpacked / PREFIX) if path.suffix == ".pyc"]
    assert len(sources) > 500
    known = {path.parent.parent / f"{path.name.split('.')[0]}.py" for path in compiled}
    assert known == {*sources}
    for path in compiled:
        assert int.from_bytes(path.read_bytes()[4:8], "little") == 0b01, path


def test_what_others_wrote_is_named(unpacked: Path) -> None:
    text = (unpacked / "usr/share/doc/guesthouse/copyright").read_text()
    packages = [p for p in unpacked.rglob("*.dist-info") if not p.name.startswith("guesthouse-")]
    assert len(packages) > 15
    for package in packages:
        name, _, version = package.name.removesuffix(".dist-info").rpartition("-")
        pattern = re.sub("[-_.]+", "[-_.]", name)
        assert re.search(
            rf"^ {pattern} {re.escape(version)}: \S", text, re.MULTILINE | re.IGNORECASE
        )
    assert "setuptools" not in text


def test_scripts_are_sound_shell(unpacked: Path) -> None:
    for name in ("postinst", "prerm", "postrm"):
        script = unpacked / "DEBIAN" / name
        assert script.read_text().startswith("#!/bin/sh\n")
        assert "\nset -e\n" in script.read_text()
        subprocess.run(["sh", "-n", str(script)], check=True)


# --- coming and going -----------------------------------------------------------------------------


class Debian:
    """A small Debian in a folder, with what the package depends on."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def argv(self, *command: str) -> list[str]:
        """In a mount namespace of its own, so that nothing stays mounted."""
        enter = 'for at in proc dev; do mount --rbind /$at "$0/$at"; done; exec chroot "$0" "$@"'
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]
        return ["unshare", "--mount", "sh", "-ec", enter, str(self.root), *clean, *command]

    def run(self, *command: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*command), capture_output=True, text=True, check=False, timeout=300
        )
        assert not ok or done.returncode == 0, (command, done.stdout, done.stderr)
        return done

    def listing(self) -> set[str]:
        found = set()
        for folder, folders, names in os.walk(self.root):
            at = os.path.relpath(folder, self.root)
            folders[:] = [name for name in folders if (at, name) not in
                          {(".", "proc"), (".", "sys"), (".", "dev"), (".", "tmp")}]  # fmt: skip
            found |= {os.path.normpath(os.path.join(at, name)) for name in [*names, *folders]}
        return {name for name in found if not TABLES.match(name) and not LOGS.match(name)}

    def processes(self) -> list[int]:
        """Those that live in here."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                inside = os.readlink(entry / "root") == str(self.root)
            except OSError:
                continue
            if inside:
                found.append(int(entry.name))
        return found


@pytest.fixture(scope="module")
def debian(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    names = [re.split(r"[ (]", name)[0] for name in control(unpacked)["Depends"].split(", ")]
    sources = [*APT.glob("sources.list"), *APT.glob("sources.list.d/*")]
    root = tmp_path_factory.mktemp("debian") / "root"
    subprocess.run(
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={','.join(dict.fromkeys(names))}",
            "--aptopt=APT::Install-Recommends false",
            codename(),
            str(root),
            *map(str, sources),
        ],
        check=True,
        capture_output=True,
    )
    yield Debian(root)
    shutil.rmtree(root, ignore_errors=True)


def install(debian: Debian, package: Path) -> None:
    shutil.copy(package, debian.root / "root" / "guesthouse.deb")
    debian.run("dpkg", "--install", "/root/guesthouse.deb")


def test_it_comes_and_goes_without_a_trace(debian: Debian, package: Path) -> None:
    before = debian.listing()
    install(debian, package)
    assert debian.run("guest", "--version").stdout.startswith("guest, version ")
    assert debian.run("guest", "daemon", "status", ok=False).returncode == 6
    assert debian.run("guesthoused", "--help").stdout.startswith("usage: guesthoused")
    assert debian.run("dpkg", "--verify", "guesthouse").stdout == ""

    wanted = debian.root / "etc/systemd/system"
    for link in (
        "multi-user.target.wants/guesthouse.service",
        "multi-user.target.wants/guesthouse-guests.service",
        "sockets.target.wants/guesthouse.socket",
    ):
        assert (wanted / link).is_symlink()
    for table in ("subuid", "subgid"):
        line = (debian.root / "etc" / table).read_text().splitlines()[-1]
        owner, first, count = line.split(":")
        assert (owner, count) == ("guesthouse", "65536")
        assert int(first) >= 100_000
    assert "guesthouse:x:" in (debian.root / "etc/group").read_text()

    installed = debian.listing()
    debian.run("guest", "ls", "--help")
    debian.run("guest", "completion", "bash")
    assert debian.listing() == installed  # the programs write nothing into their own tree
    debian.run("dpkg", "--remove", "guesthouse")
    left = debian.listing() - before
    assert {
        name for name in left if not name.startswith(("etc/systemd", "var/lib/systemd"))
    } == set()
    debian.run("dpkg", "--purge", "guesthouse")
    assert debian.listing() - before == set()
    for table in ("passwd", "group", "subuid", "subgid"):
        assert "guesthouse" not in (debian.root / "etc" / table).read_text()


def test_the_machines_house_runs_and_ends_with_the_package(debian: Debian, package: Path) -> None:
    install(debian, package)
    install(debian, package)  # once more: as an upgrade, which keeps what is there
    debian.run("useradd", "--groups", "guesthouse", "member")
    debian.run("useradd", "stranger")
    daemon = subprocess.Popen(
        debian.argv("guesthoused", "--system"), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        path = debian.root / "run/guesthouse/api.sock"
        until(path.is_socket, seconds=120, say="the daemon listens")
        facts = path.stat()
        group = int(
            re.search(r"^guesthouse:x:(\d+)", (debian.root / "etc/group").read_text(), re.M)[1]
        )  # type: ignore[index]  # it is there
        assert (facts.st_mode & 0o777, facts.st_uid, facts.st_gid) == (0o660, 0, group)
        assert path.parent.stat().st_mode & 0o777 == 0o711
        listed = debian.run("runuser", "-u", "member", "--", "guest", "ls", "--json")
        assert listed.stdout.strip() == "[]"
        about = debian.run("runuser", "-u", "member", "--", "guest", "daemon", "status", "--json")
        assert '"mode": "system"' in about.stdout
        reached = debian.run(
            "runuser", "-u", "stranger", "--", "guest", "daemon", "status", ok=False
        )
        assert reached.returncode == 6
        debian.run("dpkg", "--remove", "guesthouse")
        assert daemon.wait(120) == 0
        until(lambda: not debian.processes(), seconds=60, say="nothing of it runs")
    finally:
        if daemon.poll() is None:
            daemon.kill()
        assert daemon.stderr is not None
        print(daemon.stderr.read().decode(), file=sys.stderr)


def test_guests_are_never_removed_with_it(debian: Debian, package: Path) -> None:
    install(debian, package)
    disk = debian.root / "var/lib/guesthouse/pools/default/layers/disk.qcow2"
    disk.parent.mkdir(parents=True, exist_ok=True)
    disk.write_bytes(b"somebody's work")
    cache = debian.root / "var/cache/guesthouse/images"
    cache.mkdir(parents=True, exist_ok=True)
    said = debian.run("dpkg", "--purge", "guesthouse")
    assert "holds guests or disks and is kept" in said.stderr
    assert disk.read_bytes() == b"somebody's work"
    assert not cache.exists()
    assert "guesthouse:" in (debian.root / "etc/subuid").read_text()  # their owner keeps its ids
    disk.unlink()
    install(debian, package)
    guest = debian.root / "var/lib/guesthouse/pools/default/documents/guests/one.json"
    guest.parent.mkdir(parents=True, exist_ok=True)
    guest.write_text("{}")
    assert "is kept" in debian.run("dpkg", "--purge", "guesthouse").stderr
    guest.unlink()
    install(debian, package)
    debian.run("dpkg", "--purge", "guesthouse")
    assert not (debian.root / "var/lib/guesthouse").exists()
