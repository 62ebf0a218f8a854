"""Who else lives in the house's user namespace, as the kernel tells: no document is asked."""

from __future__ import annotations

import os
from contextlib import suppress

from guesthouse.host.keeper.procfs import runs
from guesthouse.host.namespace.inside.record import Record, identity


def inhabited(record: Record) -> bool:
    """Whether any process but the holder is in its user namespace; never where it has none.

    Whoever made a user namespace may ask that of all processes in it, whatever their ids
    (user_namespaces(7), ptrace(2): PTRACE_MODE_READ_FSCREDS). Those that may not be asked are
    others' then. Zombies keep their user namespace, and count for nothing.
    """
    if record.user is None:
        return False
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdecimal() and int(name) != record.pid:
            with suppress(OSError):
                if identity(int(name), "user") == record.user and runs(int(name), None):
                    return True
    return False
