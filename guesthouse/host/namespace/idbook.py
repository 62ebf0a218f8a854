"""The book of ids: which guest has which number, for all houses of one user.

A user may have several houses (state folders), and the kernel tells their guests apart by the ids
outside, which come from the same ranges. So the numbers are given out in one book beside no house,
under one lock. A number stays its guest's until it is given back: a container's files carry it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pwd
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from guesthouse.errors import (
    Busy,
    GuesthouseError,
    HostLacks,
    InvalidInput,
    NoSpace,
    ReadOnlyStore,
    Unavailable,
)
from guesthouse.host.folders import make_private
from guesthouse.model.document import Noun, decode_strict, encode
from guesthouse.model.folders import SYSTEM_STATE

FORMAT = 1
_DEADLINE = 10.0
_PAUSE = 0.02

Kind = Literal["vm", "container"]
T = TypeVar("T")


class Allocation(Noun, frozen=True, kw_only=True):
    """One number given out.

    :ivar slot: for `IdPlan.vm` or `IdPlan.block`. :ivar house: the state folder.
    :ivar guest: its id. :ivar since: seconds since the epoch.
    """

    kind: Kind
    slot: int
    house: str
    guest: str
    since: float


class _Book(Noun, frozen=True, kw_only=True):
    format: int = FORMAT
    allocations: tuple[Allocation, ...] = ()


class _Format(msgspec.Struct):
    format: int


def book_folder(uid: int) -> Path:
    """Where the book of a user lies: the same for all houses, whatever their environment says."""
    if uid == 0:
        return Path(SYSTEM_STATE) / "ids"
    try:
        home = pwd.getpwuid(uid).pw_dir
    except KeyError:
        raise HostLacks(
            f"User {uid} is not in the user database, so there is no place for its book of ids.",
            hint="Run the house as a user with a home.",
            capability="guest-ids",
        ) from None
    return Path(home) / ".local" / "share" / "guesthouse"


class IdBook:
    """The book in `folder`, seen by one house.

    :param house: the state folder of this house.
    """

    def __init__(self, folder: Path, house: Path) -> None:
        self._house = str(house)
        self._folder = folder
        # A home may be shared by several hosts, each with ranges of its own.
        self._file = folder / f"ids-{_host()}.json"

    async def prepare(self) -> None:
        """Make its folder. :raise HostLacks: this user can have none there."""
        try:
            await asyncio.to_thread(make_private, self._folder)
        except GuesthouseError as error:
            raise HostLacks(
                f"There is no place for this user's book of ids: {error.message}",
                hint=f"Make {self._folder} a folder that this user may write to.",
                capability="guest-ids",
            ) from error

    async def take(self, kind: Kind, guest: str, *, limit: int) -> int:
        """The number of this guest; it gets the lowest free one if it has none yet.

        :param limit: how many numbers there are: `IdPlan.vm_count` or `block_count`.
        :raise HostLacks: all are taken. :raise Busy: the book is locked for too long.
        :raise Unavailable: it cannot be read or written. :raise NoSpace:
        """

        def change(book: _Book) -> tuple[_Book, int]:
            for known in book.allocations:
                if (known.kind, known.house, known.guest) == (kind, self._house, guest):
                    return book, known.slot
            slot = _free(book, kind, limit)
            if slot is None:
                book = _without_lost_houses(book)
                slot = _free(book, kind, limit)
            if slot is None:
                raise _exhausted(kind, limit, book)
            new = Allocation(
                kind=kind, slot=slot, house=self._house, guest=guest, since=time.time()
            )
            return _Book(allocations=(*book.allocations, new)), slot

        return await self._changing(change)

    async def give_back(self, kind: Kind, guest: str) -> None:
        """Its process has ended and nothing carries its ids any more. Raises as `take`."""

        def change(book: _Book) -> tuple[_Book, None]:
            mine = (kind, self._house, guest)
            kept = tuple(a for a in book.allocations if (a.kind, a.house, a.guest) != mine)
            return _Book(allocations=kept), None

        await self._changing(change)

    async def keep_only(self, guests: Collection[str]) -> tuple[Allocation, ...]:
        """Give back what this house holds for guests that it no longer has (after a crash).

        Answers what was given back. Raises as `take`.
        """

        def change(book: _Book) -> tuple[_Book, tuple[Allocation, ...]]:
            gone = tuple(
                a for a in book.allocations if a.house == self._house and a.guest not in guests
            )
            kept = tuple(a for a in book.allocations if a not in gone)
            return _Book(allocations=kept), gone

        return await self._changing(change)

    async def all(self) -> tuple[Allocation, ...]:
        """What all houses of this user hold. :raise Unavailable:"""
        return (await asyncio.to_thread(self._load)).allocations

    async def _changing(self, change: Callable[[_Book], tuple[_Book, T]]) -> T:
        def work() -> T:
            make_private(self._folder)
            with self._locked():
                before = self._load()
                after, answer = change(before)
                if after != before:
                    self._save(after)
                return answer

        return await asyncio.to_thread(work)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self._file.with_suffix(".lock"), flags, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            end = time.monotonic() + _DEADLINE
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise Busy(
                            f"Another house of this user holds the book of ids {self._file}.",
                            hint="Try again.",
                        ) from None
                    time.sleep(_PAUSE)
            yield
        finally:
            os.close(fd)

    def _load(self) -> _Book:
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            return _Book()
        except OSError as error:
            raise self._unreadable(str(error)) from error
        try:
            found = msgspec.json.decode(data, type=_Format).format
            if found > FORMAT:
                raise ReadOnlyStore(
                    f"The book of ids {self._file} was written by a newer Guesthouse.",
                    hint="Start that one.",
                )
            return decode_strict(data, _Book, what="book of ids")
        except (msgspec.MsgspecError, UnicodeDecodeError, InvalidInput) as error:
            # To begin anew would give the ids of living guests to others.
            raise self._unreadable(str(error)) from None

    def _unreadable(self, why: str) -> Unavailable:
        return Unavailable(
            f"The book of ids {self._file} cannot be read: {why}",
            hint="Stop all guests of this user, move the file away, and start them again.",
        )

    def _save(self, book: _Book) -> None:
        temporary = self._file.with_suffix(".tmp")
        try:
            fd = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
            with open(fd, "wb") as file:
                file.write(encode(book))
                file.flush()
                os.fsync(fd)
            temporary.replace(self._file)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(
                    f"There is no space for the book of ids in {self._folder}.",
                    hint="Free some space on that disk.",
                ) from error
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> Unavailable:
        return Unavailable(
            f"The book of ids {self._file} cannot be written: {error.strerror}.",
            hint=f"Make {self._folder} a folder that this user may write to.",
        )


def _free(book: _Book, kind: Kind, limit: int) -> int | None:
    taken = {known.slot for known in book.allocations if known.kind == kind}
    return next((number for number in range(limit) if number not in taken), None)


def _without_lost_houses(book: _Book) -> _Book:
    """Without VMs of houses whose state folder was removed by hand: nobody gives theirs back.

    Containers keep theirs: their files, which carry the ids, may lie elsewhere.
    """
    lost = {house for house in {a.house for a in book.allocations} if not Path(house).exists()}
    kept = tuple(a for a in book.allocations if a.kind != "vm" or a.house not in lost)
    return _Book(allocations=kept)


def _host() -> str:
    """What tells this host from others that share the home (machine-id(5))."""
    try:
        found = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        found = ""
    return found if found.isalnum() else socket.gethostname().replace("/", "_")


def _exhausted(kind: Kind, limit: int, book: _Book) -> HostLacks:
    houses = sorted({a.house for a in book.allocations if a.kind == kind})
    capability, guests = ("guest-ids", "VMs") if kind == "vm" else ("container-ids", "containers")
    return HostLacks(
        f"The ids of this user are enough for {limit} {guests}, and all are taken"
        + (f" by the houses {', '.join(houses)}." if houses else "."),
        hint="Delete guests there, or add a range to /etc/subuid and /etc/subgid "
        "(`guest doctor` has the line).",
        capability=capability,
    )
