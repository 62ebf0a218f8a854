"""How processes ended: one small file each, durable before anybody is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .loop import Loop, Timer, note
from .wire import Body, encode

_RETRY = 10.0


class Records:
    """The records not yet forgotten. One that cannot be written (full disk) stays in memory and
    is tried again at the next change and every 10 s, only while one is pending."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        self._loop, self._folder = loop, folder
        self._pending: set[str] = set()
        self._timer: Timer | None = None
        folder.mkdir(mode=0o700, exist_ok=True)
        self._records = self._load()

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def all(self) -> list[Body]:
        return [self._records[key] for key in sorted(self._records)]

    @property
    def pending(self) -> int:
        """How many records are only in memory."""
        return len(self._pending)

    def add(self, record: Body) -> None:
        key = record["key"]
        self._records[key] = record
        self._pending.add(key)
        self.flush()

    def forget(self, key: str) -> None:
        """Delete a record. Raises OSError if its file stays (it would come back)."""
        self._file(key).unlink(missing_ok=True)
        self._records.pop(key, None)
        self._pending.discard(key)

    def flush(self) -> None:
        """Write what is pending; arm the timer if something stays so."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for key in sorted(self._pending):
            try:
                self._write(key)
            except OSError as error:
                note(f"cannot write the exit record of {key}, will retry: {error}")
                self._timer = self._loop.later(_RETRY, self.flush)
                return
            self._pending.discard(key)

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.json"

    def _write(self, key: str) -> None:
        unfinished = self._folder / f".{key}.tmp"
        fd = os.open(
            unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            data = encode(self._records[key])
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        except OSError:
            unfinished.unlink()  # the next attempt begins anew, or nobody needs it by then
            raise
        finally:
            os.close(fd)
        unfinished.replace(self._file(key))
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _load(self) -> dict[str, Body]:
        found: dict[str, Body] = {}
        for unfinished in self._folder.glob(".*.tmp"):
            unfinished.unlink()
        for file in sorted(self._folder.glob("*.json")):
            try:
                record = json.loads(file.read_bytes())
                if record["key"] != file.stem:
                    raise ValueError("its key is not its name")
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                note(f"exit record {file.name} cannot be read, set aside: {error}")
                file.rename(file.with_suffix(".unreadable"))
                continue
            found[file.stem] = record
        return found
