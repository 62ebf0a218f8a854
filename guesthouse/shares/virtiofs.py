"""The virtiofs way in pieces: the Rust virtiofsd's command line. Pure.

Facts: `--help` of virtiofsd 1.13.2 (Debian 13), and trials with QEMU 7.2: its device comes and goes
while the guest runs, as the guest's memory is shared and by descriptor.
"""

from __future__ import annotations

import secrets

from guesthouse.model.share import Share

_EVERYBODY = (1 << 32) - 1


def new_tag(share: Share) -> str:
    """What the guest mounts: new each time, as the guest may still hold the last one's device. At
    most 36 bytes (virtio 1.2, 5.11.4)."""
    return f"house.{share.name[:20]}.{secrets.token_hex(4)}"


def daemon(
    program: str, share: Share, source: str, socket: int, *, guest: tuple[int, int]
) -> list[str]:
    """virtiofsd for one share, started as the sharing user, in a namespace of its own.

    Not `--tag`: of that QEMU 7.1 to 8.0 crash, and none needs it.

    :param source: the folder, with links resolved. :param socket: number of the listening
        descriptor. :param guest: whom the guest takes for the sharing user.
    """
    # Its namespace of users knows the sharing user alone, under that one's own number. Whoever
    # writes in the guest writes as the sharing user, and that one's files are the guest user's.
    owners = []
    for kind, ours, known in (
        ("uid", share.host_uid, guest[0]),
        ("gid", share.host_gid, guest[1]),
    ):
        owners += [
            f"--translate-{kind}=squash-guest:0:{ours}:{_EVERYBODY}",
            f"--translate-{kind}=host:{ours}:{known}:1",
        ]
    return [
        program,
        f"--fd={socket}",
        f"--shared-dir={source}",
        "--sandbox=namespace",
        # Handles need a right that no ordinary user has.
        "--inode-file-handles=never",
        # A change by the host is seen within a second.
        "--cache=auto",
        "--announce-submounts",
        # What root's could make besides files: devices.
        *(["--modcaps=-mknod"] if share.host_uid == 0 else []),
        *owners,
        *(["--readonly"] if share.read_only else []),
    ]
