"""Whose files are whose: the sharing user outside is the guest's user inside."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

NOBODY = 65534
KEEP = 0xFFFF_FFFF
"""-1 in chown(2): leave it."""


class Owners(NamedTuple):
    """:ivar host: (uid, gid) of the sharing user. :ivar guest: whom the guest sees for it."""

    host: tuple[int, int]
    guest: tuple[int, int]

    def shown(self, status: os.stat_result) -> tuple[int, int]:
        """(uid, gid) that the guest is told. Others of the host are nobody to it."""
        uid = self.guest[0] if status.st_uid == self.host[0] else NOBODY
        gid = self.guest[1] if status.st_gid == self.host[1] else NOBODY
        return uid, gid

    def check(self, status: os.stat_result, wanted: tuple[int, int]) -> None:
        """A guest may "give" a file to whom it belongs already, and to nobody else.

        :raise OSError: (EPERM) it would change owner or group. A guest's root gets no further: all
            that it makes is the sharing user's.
        """
        shown = self.shown(status)
        for now, new in zip(shown, wanted, strict=True):
            # What root makes is its own in its eyes; tar and cp -p then say so.
            if new not in (now, KEEP, 0):
                raise OSError(errno.EPERM, "files of a share belong to the sharing user")
