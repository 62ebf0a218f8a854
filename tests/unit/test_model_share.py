"""Shares as text and as documents: what is taken, and what is refused with which field."""

from __future__ import annotations

import pytest

from guesthouse.errors import Conflict, InvalidInput
from guesthouse.model.document import decode_strict, encode
from guesthouse.model.share import (
    MAX_SHARES,
    Share,
    ShareText,
    Way,
    check_shares,
    check_source,
    check_target,
    is_system_folder,
    parse_share,
)


def share(name: str, target: str) -> Share:
    return Share(name=name, source="/home/ada/x", target=target, host_uid=1000, host_gid=1000)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/home/ada:/src", ShareText(source="/home/ada", target="/src")),
        ("/a:/b:ro", ShareText(source="/a", target="/b", read_only=True)),
        ("/a:/b:rw", ShareText(source="/a", target="/b")),
        ("//a///b/./c/:/mnt//x/", ShareText(source="/a/b/c", target="/mnt/x")),
        (r"/a\:b:/c\:d:ro", ShareText(source="/a:b", target="/c:d", read_only=True)),
        (r"/a\b c:/ü", ShareText(source=r"/a\b c", target="/ü")),
        ("/ro:/mnt/ro", ShareText(source="/ro", target="/mnt/ro")),
    ],
)
def test_what_is_taken(text: str, wanted: ShareText) -> None:
    assert parse_share(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", ":", "/a", "/a:", ":/b", "a:/b", "/a:b", "/a:/b:rx", "/a:/b:ro:ro", "/a:/b:", "~/a:/b",
     "/a/../b:/c", "/a:/b/..", "/a\n:/b", "/a:/b\0", "/" + "x" * 5000 + ":/b", "/a:/b:RO"],
)  # fmt: skip
def test_what_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_share(text, field="shares.0")
    assert caught.value.detail["field"] == "shares.0" and caught.value.hint


@pytest.mark.parametrize(
    "target", ["/", "/etc", "/etc/x", "/usr/bin", "/proc/1", "/home", "/var/log", "/dev/shm"]
)
def test_targets_that_would_break_the_guest(target: str) -> None:
    with pytest.raises(InvalidInput, match="cover"):
        check_target(target)


@pytest.mark.parametrize("target", ["/home/ada", "/usr/local/x", "/var/www", "/mnt/x", "/etcetera"])
def test_targets_that_are_fine(target: str) -> None:
    check_target(target)


def test_system_folders_want_a_second_word() -> None:
    for path in ("/", "/etc", "/etc/ssh", "/usr", "/var/lib/docker", "/home", "/root", "/run"):
        assert is_system_folder(path), path
        with pytest.raises(InvalidInput, match="system"):
            check_source(path, asked_twice=False)
        check_source(path, asked_twice=True)
    for path in ("/home/ada", "/root/src", "/srv/www", "/opt/x", "/etcetera", "/run/media/stick"):
        assert not is_system_folder(path), path
        check_source(path, asked_twice=False)


@pytest.mark.parametrize("source", ["/h/state", "/h/state/keys", "/h"])
def test_the_houses_own_folders_are_never_shared(source: str) -> None:
    with pytest.raises(InvalidInput, match="own files"):
        check_source(source, asked_twice=True, private=["/h/state"])


def test_shares_of_one_guest_do_not_cover_each_other() -> None:
    check_shares([share("a", "/mnt/a"), share("b", "/mnt/ab")])
    with pytest.raises(Conflict, match="called a"):
        check_shares([share("a", "/mnt/a"), share("a", "/mnt/b")])
    for one, other in (("/mnt/a", "/mnt/a"), ("/mnt/a", "/mnt/a/b"), ("/mnt/a/b", "/mnt/a")):
        with pytest.raises(Conflict, match="cover"):
            check_shares([share("a", one), share("b", other)])
    with pytest.raises(InvalidInput, match=str(MAX_SHARES)):
        check_shares([share(f"s{n}", f"/mnt/{n}") for n in range(MAX_SHARES + 1)])


def test_a_share_is_stored_and_comes_back() -> None:
    given = Share(
        name="src", source="/a", target="/b", read_only=True, way=Way.SFTP, host_uid=1, host_gid=2
    )
    assert decode_strict(encode(given), Share) == given
    assert str(given) == "/a:/b:ro"
