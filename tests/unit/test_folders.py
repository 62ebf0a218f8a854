"""Where a house lives, and whom it does not trust with that."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guesthouse.errors import Forbidden, HostLacks, InvalidInput
from guesthouse.host.folders import make_private, prepare, prepare_guest
from guesthouse.model.folders import SUN_PATH, Folders, resolve, socket_candidates
from guesthouse.model.ids import new_id

ENV = {"HOME": "/home/ada", "XDG_RUNTIME_DIR": "/run/user/1000"}


def test_personal_defaults() -> None:
    folders = resolve(ENV, uid=1000)
    assert str(folders.state) == "/home/ada/.local/state/guesthouse"
    assert str(folders.cache) == "/home/ada/.cache/guesthouse"
    assert str(folders.config) == "/home/ada/.config/guesthouse"
    assert str(folders.socket) == "/run/user/1000/guesthouse/api.sock"
    assert folders.mode == "personal"
    assert folders.keeper_socket.parent == folders.runtime
    guest = new_id()
    assert folders.guest_runtime(guest).name == guest
    assert folders.guest_state(guest).is_relative_to(folders.state)


def test_system_mode_uses_the_system_folders() -> None:
    folders = resolve({}, uid=0, mode="system")
    assert [str(path) for path in folders[:5]] == [
        "/var/lib/guesthouse",
        "/run/guesthouse",
        "/var/cache/guesthouse",
        "/etc/guesthouse",
        "/run/guesthouse/api.sock",
    ]


def test_xdg_variables_count_unless_relative() -> None:
    env = {**ENV, "XDG_STATE_HOME": "/data/state", "XDG_CACHE_HOME": "cache"}
    folders = resolve(env, uid=1000)
    assert str(folders.state) == "/data/state/guesthouse"
    assert str(folders.cache) == "/home/ada/.cache/guesthouse"


def test_every_state_folder_is_a_house_with_its_own_sockets() -> None:
    one = resolve({**ENV, "GUESTHOUSE_STATE": "/srv/one"}, uid=1000)
    two = resolve({**ENV, "GUESTHOUSE_STATE": "/srv/two"}, uid=1000)
    again = resolve({**ENV, "GUESTHOUSE_STATE": "/srv/x/../one/"}, uid=1000)
    assert len({resolve(ENV, uid=1000).runtime, one.runtime, two.runtime}) == 3
    assert again.runtime == one.runtime
    assert one.cache == two.cache  # built images are shared


def test_overrides() -> None:
    folders = resolve({**ENV, "GUESTHOUSE_CACHE": "/c", "GUESTHOUSE_SOCKET": "/s/a"}, uid=1)
    assert (str(folders.cache), str(folders.socket)) == ("/c", "/s/a")


@pytest.mark.parametrize("name", ["GUESTHOUSE_STATE", "GUESTHOUSE_CACHE", "GUESTHOUSE_SOCKET"])
def test_relative_overrides_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve({**ENV, name: "here"}, uid=1000)
    assert caught.value.detail["field"] == name


def test_without_runtime_folder_the_uid_names_one_below_tmp() -> None:
    assert str(resolve({"HOME": "/h"}, uid=77).runtime) == "/tmp/guesthouse-77"


def test_home_comes_from_the_user_database() -> None:
    assert resolve({}, uid=0).state.is_absolute()
    with pytest.raises(InvalidInput, match="HOME"):
        resolve({}, uid=3_999_999_999)


def test_socket_paths_that_cannot_be_bound_are_refused() -> None:
    with pytest.raises(InvalidInput, match="XDG_RUNTIME_DIR"):
        resolve({**ENV, "XDG_RUNTIME_DIR": "/run/" + "x" * 60}, uid=1000)
    long = "/s/" + "é" * 60  # bytes count, not letters
    with pytest.raises(InvalidInput, match=str(SUN_PATH)):
        socket_candidates({**ENV, "GUESTHOUSE_SOCKET": long}, uid=1000)


def test_socket_candidates() -> None:
    both = socket_candidates(ENV, uid=1000)
    assert both == ("/run/user/1000/guesthouse/api.sock", "/run/guesthouse/api.sock")
    own = {**ENV, "GUESTHOUSE_STATE": "/srv/one"}
    assert socket_candidates(own, uid=1) == (str(resolve(own, uid=1).socket),)
    assert socket_candidates({**ENV, "GUESTHOUSE_SOCKET": "/a"}, uid=1) == ("/a",)


def test_a_house_of_its_own_keeps_its_runtime_folder_for_ever() -> None:
    # The first digits of SHA-256: guests that run hold sockets there, whatever daemon comes next.
    own = resolve({**ENV, "GUESTHOUSE_STATE": "/srv/one"}, uid=1)
    suffix = hashlib.sha256(b"/srv/one").hexdigest()[:8]
    assert own.runtime == Path(f"/run/user/1000/guesthouse-{suffix}")


def test_finding_the_socket_imports_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); "
        "from guesthouse.model.folders import socket_candidates; "
        "socket_candidates({'HOME': '/h', 'GUESTHOUSE_STATE': '/srv/one'}, uid=1); "
        "print(*{'msgspec', 'asyncio', 'pathlib', 'hashlib'} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Folders]:
    # pytest's own folders have too long a path for sockets.
    with tempfile.TemporaryDirectory(prefix="gh-") as runtime:
        env = {
            "GUESTHOUSE_STATE": f"{tmp_path}/a/b/state",
            "GUESTHOUSE_CACHE": f"{tmp_path}/cache",
            "XDG_RUNTIME_DIR": runtime,
            "HOME": str(tmp_path),
        }
        yield resolve(env, uid=os.getuid())


def test_prepare_makes_private_folders_and_may_be_repeated(folders: Folders) -> None:
    for _ in range(2):
        prepare(folders)
        prepare_guest(folders, "01ABC")
    for path in (
        folders.state,
        folders.runtime,
        folders.cache,
        folders.pool,
        folders.secrets,
        folders.jobs,
        folders.images,
        folders.keeper_state,
        folders.build_cache,
        folders.guest_state("01ABC"),
        folders.guest_runtime("01ABC"),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_a_state_folder_may_be_a_link_a_runtime_folder_not(
    folders: Folders, tmp_path: Path
) -> None:
    (tmp_path / "big").mkdir()
    folders.state.parent.mkdir(parents=True)
    folders.state.symlink_to(tmp_path / "big")
    prepare(folders)
    assert (tmp_path / "big" / "jobs").is_dir()
    (folders.runtime / "guests").rmdir()
    folders.runtime.rmdir()
    folders.runtime.symlink_to(tmp_path / "big")
    with pytest.raises(Forbidden, match="symbolic link"):
        prepare(folders)


def test_readable_is_tightened_writable_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.mkdir()
    path.chmod(0o755)
    make_private(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o707)
    with pytest.raises(Forbidden, match="writable by other users"):
        make_private(path)


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(Forbidden, match="not a folder"):
        make_private(tmp_path / "f")
    with pytest.raises(Forbidden):
        make_private(tmp_path / "f" / "below")


def test_an_untrustworthy_parent(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(Forbidden, match="writable by other users"):
        make_private(open_to_all / "f")
    open_to_all.chmod(0o1777)  # as /tmp
    make_private(open_to_all / "f")


@pytest.mark.root
def test_folders_of_somebody_else(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 4242, 4242)
    with pytest.raises(Forbidden, match="belongs to user 4242"):
        make_private(theirs)
    with pytest.raises(Forbidden, match="belongs to user 4242"):
        make_private(theirs / "runtime")


def test_a_read_only_file_system() -> None:
    with pytest.raises((HostLacks, Forbidden)):
        make_private(Path("/proc/guesthouse"))
