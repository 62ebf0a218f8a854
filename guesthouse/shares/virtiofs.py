"""The virtiofs way in pieces: the Rust virtiofsd's command line and QEMU's device. Pure.

Facts: virtiofsd's README (1.13, as in Debian 13) and `-device vhost-user-fs-pci,help`. The guest's
memory is shared and by descriptor already, which vhost-user needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from guesthouse.model.share import Share

_EVERYBODY = (1 << 32) - 1


class Abilities(NamedTuple):
    """What a virtiofsd says of itself by `--help`."""

    rust: bool
    maps: bool
    read_only: bool


def abilities(help_text: str) -> Abilities:
    """The C one (`/usr/lib/qemu/virtiofsd` of Debian 12) is another program under the same name."""
    return Abilities(
        rust="--shared-dir" in help_text and "--sandbox" in help_text,
        maps="--translate-uid" in help_text,
        read_only="--readonly" in help_text,
    )


def tag(share: Share) -> str:
    """What the guest mounts; at most 36 bytes (virtio 1.2, 5.11.4)."""
    return f"house.{share.name}"[:36]


def daemon(
    program: str, share: Share, source: str, socket: int, *, guest: tuple[int, int]
) -> list[str]:
    """virtiofsd for one share, as the sharing user, in a namespace of its own.

    :param source: the folder, with links resolved. :param socket: number of the listening
        descriptor. :param guest: whom the guest takes for the sharing user.
    """
    # In its own user namespace the sharing user is 0. Whoever writes in the guest writes as the
    # sharing user, and that one's files are the guest user's.
    owners = []
    for kind, known in (("uid", guest[0]), ("gid", guest[1])):
        owners += [
            f"--translate-{kind}=squash-guest:0:0:{_EVERYBODY}",
            f"--translate-{kind}=host:0:{known}:1",
        ]
    return [
        program,
        f"--fd={socket}",
        f"--shared-dir={source}",
        f"--tag={tag(share)}",
        "--sandbox=namespace",
        # Handles need a right that no ordinary user has.
        "--inode-file-handles=never",
        # Changes by the host are seen at once.
        "--cache=auto",
        "--announce-submounts",
        *owners,
        *(["--readonly"] if share.read_only else []),
    ]


def device(share: Share, fd: str, bus: str) -> list[str]:
    """For QEMU's command line.

    :param fd: number, in QEMU, of the socket that is connected to `daemon`'s.
    :param bus: `bus=…,addr=…` of its place.
    """
    name = f"share-{share.name}"
    return [
        "-chardev",
        f"socket,id={name},fd={fd}",
        "-device",
        f"vhost-user-fs-pci,id={name},chardev={name},tag={tag(share)},queue-size=1024,{bus}",
    ]


def plug(share: Share, descriptor: str, bus: str) -> Sequence[tuple[str, dict[str, object]]]:
    """QMP commands that add the device to a running guest.

    :param descriptor: name under which QEMU got the connected socket (`getfd`).
    :param bus: id of a free root port.
    """
    name = f"share-{share.name}"
    backend = {
        "type": "socket",
        "data": {"addr": {"type": "fd", "data": {"str": descriptor}}, "server": False},
    }
    return (
        ("chardev-add", {"id": name, "backend": backend}),
        (
            "device_add",
            {
                "driver": "vhost-user-fs-pci",
                "id": name,
                "chardev": name,
                "tag": tag(share),
                "queue-size": 1024,
                "bus": bus,
            },
        ),
    )
