"""Which way a share takes and why; the pieces of virtiofs."""

from __future__ import annotations

from typing import Any

import pytest

from guesthouse.errors import AgentUnsupported, HostLacks
from guesthouse.model.share import Share, Way
from guesthouse.shares import virtiofs
from guesthouse.shares.choosing import Choice, GuestAbilities, HostAbilities, Wanted, choose

FULL_HOST = HostAbilities(
    virtiofsd="/usr/libexec/virtiofsd",
    virtiofsd_maps=True,
    virtiofsd_read_only=True,
)
BOOKWORM = HostAbilities()
OURS = GuestAbilities(file_systems=frozenset({"fuse", "virtiofs"}), sshfs=True)


def test_the_fastest_that_both_can_do() -> None:
    assert choose(Wanted(), FULL_HOST, OURS) == Choice(
        way=Way.VIRTIOFS, reason="virtiofs: the fastest."
    )


def test_debian_12_takes_sftp_and_says_why() -> None:
    found = choose(Wanted(), BOOKWORM, OURS)
    assert found.way is Way.SFTP
    assert found.reason == (
        "sftp: the house's file server over a virtio-serial port (no virtiofs: the host has no "
        "virtiofsd)."
    )


@pytest.mark.parametrize(
    ("host", "guest", "word"),
    [
        ({"engine": "QEMU has no vhost-user-fs-pci"}, OURS, "no vhost-user-fs-pci"),
        ({"virtiofsd_maps": False}, OURS, "map owners"),
        ({}, GuestAbilities(file_systems=frozenset({"fuse"}), sshfs=True), "no virtiofs"),
    ],
)
def test_what_keeps_virtiofs_out(host: dict[str, Any], guest: GuestAbilities, word: str) -> None:
    fields = {name: getattr(FULL_HOST, name) for name in FULL_HOST.__struct_fields__}
    found = choose(Wanted(), HostAbilities(**{**fields, **host}), guest)
    assert found.way is Way.SFTP and word in found.reason


def test_read_only_only_where_the_host_enforces_it() -> None:
    fields = {name: getattr(FULL_HOST, name) for name in FULL_HOST.__struct_fields__}
    host = HostAbilities(**{**fields, "virtiofsd_read_only": False})
    assert choose(Wanted(), host, OURS).way is Way.VIRTIOFS
    assert choose(Wanted(read_only=True), host, OURS).way is Way.SFTP


def test_what_is_wanted_is_done_or_refused_by_name() -> None:
    assert choose(Wanted(way=Way.SFTP), FULL_HOST, OURS).reason == "sftp, as wanted."
    with pytest.raises(HostLacks, match="no virtiofsd") as lacks:
        choose(Wanted(way=Way.VIRTIOFS), BOOKWORM, OURS)
    assert lacks.value.hint.startswith("Install") and lacks.value.detail["capability"] == "shares"
    with pytest.raises(HostLacks, match="no right to the folder"):
        choose(Wanted(way=Way.NINEP), FULL_HOST, GuestAbilities(file_systems=frozenset({"9p"})))


def test_no_way_names_the_easiest_cure() -> None:
    foreign = GuestAbilities(file_systems=frozenset({"fuse"}), sshfs=False)
    with pytest.raises(AgentUnsupported) as lacks:
        choose(Wanted(), BOOKWORM, foreign)
    for word in ("virtiofsd", "the guest has no sshfs", "9p"):
        assert word in lacks.value.message
    assert "apt install sshfs" in lacks.value.hint
    with pytest.raises(AgentUnsupported, match="no FUSE"):
        choose(Wanted(), BOOKWORM, GuestAbilities(sshfs=True))


def test_roots_shares_go_by_virtiofs_only_if_wanted() -> None:
    found = choose(Wanted(root=True), FULL_HOST, OURS)
    assert found.way is Way.SFTP and "set-uid programs of root" in found.reason
    assert choose(Wanted(root=True, way=Way.VIRTIOFS), FULL_HOST, OURS).way is Way.VIRTIOFS


def a_share(**fields: object) -> Share:
    given = {"name": "src", "source": "/home/ada/src", "target": "/src"}
    return Share(**{**given, "host_uid": 1000, "host_gid": 1003, **fields})  # type: ignore[arg-type]  # of many types


def test_the_command_line_of_virtiofsd() -> None:
    made = virtiofs.daemon("/v", a_share(read_only=True), "/home/ada/src", 5, guest=(1001, 1002))
    assert made == [
        "/v",
        "--fd=5",
        "--shared-dir=/home/ada/src",
        "--sandbox=namespace",
        "--inode-file-handles=never",
        "--cache=auto",
        "--announce-submounts",
        "--translate-uid=squash-guest:0:1000:4294967295",
        "--translate-uid=host:1000:1001:1",
        "--translate-gid=squash-guest:0:1003:4294967295",
        "--translate-gid=host:1003:1002:1",
        "--readonly",
    ]
    roots = virtiofs.daemon("/v", a_share(host_uid=0, host_gid=0), "/x", 5, guest=(1, 1))
    assert "--readonly" not in roots and "--modcaps=-mknod" in roots
    assert "--translate-uid=host:0:1:1" in roots


def test_tags_are_short_and_never_the_same() -> None:
    tags = {virtiofs.new_tag(a_share(name="x" * 60)) for _ in range(9)}
    assert len(tags) == 9 and max(map(len, tags)) <= 36
