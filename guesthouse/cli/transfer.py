"""Bytes between this host and a guest for `guest cp`: commands in the guest at the other end."""

from __future__ import annotations

import os
import posixpath
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from guesthouse.cli.packing import pack, total_size
from guesthouse.cli.unpacking import unpack
from guesthouse.client.streams import PIECE, STDERR, STDOUT, Command, open_command
from guesthouse.client.transport import Transport
from guesthouse.errors import DaemonUnreachable, Forbidden, GuesthouseError, ToolFailed
from guesthouse.model.reports import ExecRequest

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BAR_AFTER = 0.5
"""Seconds that a copy may take before it gets a bar."""

_WORDS = 4096

# Prints what $1 is, and on the second line where it really lies.
_PROBE = """
if [ -d "$1" ]; then kind=folder
elif [ -e "$1" ] || [ -L "$1" ]; then kind=file
elif [ -d "$(dirname "$1")" ]; then kind=none
else kind=no-parent
fi
echo "$kind"
readlink -f "$1"
"""


class Found(NamedTuple):
    """A path in a guest.

    :ivar kind: folder, file, none or no-parent. :ivar real: the path without links in it.
    """

    kind: str
    real: str

    @property
    def parent(self) -> bool:
        """Whether the folder that would hold it is there."""
        return self.kind != "no-parent"


class Pipe(NamedTuple):
    """Runs commands in one guest as one user."""

    transport: Transport
    guest: str
    user: str

    def open(self, *argv: str, stdin: bool = False) -> Command:
        request = ExecRequest(argv=argv, user=self.user, stdin=stdin)
        return open_command(self.transport, self.guest, request)


class Counter:
    """Counts bytes, shows a bar when there is a terminal, and remembers what was left out."""

    def __init__(self, *, quiet: bool) -> None:
        self.left_out: list[tuple[str, str]] = []
        self._quiet = quiet or not os.isatty(2)
        self._total: int | None = None
        self._done = 0
        self._since = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, total: int) -> None:
        self._total = total

    def skip(self, path: str, why: str) -> None:
        self.left_out.append((path, why))

    def add(self, count: int) -> None:
        self._done += count
        if self._quiet or (self._bar is None and time.monotonic() < self._since + BAR_AFTER):
            return
        if self._bar is None:
            self._start()
        assert self._bar is not None
        assert self._task is not None
        # Headers of the archive count too; a bar beyond its end would look odd.
        done = self._done if self._total is None else min(self._done, self._total)
        self._bar.update(self._task, completed=done)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        console = Console(stderr=True, highlight=False)
        columns = [BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn()]
        if console.width >= 64:
            columns.append(Remaining())
        self._bar = Progress(*columns, console=console, transient=True, expand=True)
        self._task = self._bar.add_task("", total=self._total)
        self._bar.start()


def probe(pipe: Pipe, path: str) -> Found:
    """What `path` is in the guest. :raise ToolFailed: its shell does not say."""
    said = b""
    with pipe.open("sh", "-c", _PROBE, "sh", path) as running:
        words = _Words()
        for channel, data in running.output():
            if channel == STDOUT:
                said = (said + data)[: 64 << 10]
            else:
                words.add(data)
        kind, _, real = said.decode(errors="surrogateescape").partition("\n")
        if kind not in {"folder", "file", "none", "no-parent"}:
            words.judge(running, "sh", pipe.guest, always=True)
        return Found(kind, real.removesuffix("\n"))


def send_contents(pipe: Pipe, path: str) -> None:
    """Our standard input as the file `path` of the guest."""
    with pipe.open("sh", "-c", 'cat > "$1"', "sh", path, stdin=True) as running:
        with _Listening(running, pipe.guest, "sh") as sink:
            while piece := os.read(0, PIECE):
                sink.write(piece)


def send_tree(pipe: Pipe, source: Path, folder: str, name: str, counter: Counter) -> None:
    """The file or folder `source` into the guest's `folder`, called `name` there.

    :raise ToolFailed: the guest's tar failed. :raise Forbidden: `source` cannot be read.
    """
    try:
        counter.expect(total_size(source))
        with pipe.open("tar", "-x", "-p", "-f", "-", "-C", folder, stdin=True) as running:
            with _Listening(running, pipe.guest, "tar", counter) as sink:
                pack(source, name, sink, skipped=counter.skip)
    except OSError as error:
        raise _unreadable(error, source) from error


def fetch_contents(pipe: Pipe, path: str) -> None:
    """The file `path` of the guest on our standard output."""
    with pipe.open("cat", path) as running:
        incoming = _Incoming(running, None)
        while piece := incoming.read(0):
            view = memoryview(piece)
            while view:
                view = view[os.write(1, view) :]
        incoming.words.judge(running, "cat", pipe.guest)


def fetch_tree(pipe: Pipe, real: str, folder: Path, name: str, counter: Counter) -> None:
    """The guest's file or folder `real` into our `folder`, called `name` here.

    :raise ToolFailed: the guest's tar failed. :raise EngineError: it sent no proper archive.
    :raise Forbidden: this host cannot take it.
    """
    above, below = posixpath.split(real)
    with pipe.open("tar", "-c", "-f", "-", "-C", above or "/", f"./{below}") as running:
        incoming = _Incoming(running, counter)
        try:
            unpack(incoming, below or ".", folder, name, skipped=counter.skip)
        except OSError as error:
            raise Forbidden(
                f"The copy cannot be written to {folder}: {error.strerror} ({error.filename}).",
                hint="Check the folder's owner, its mode and the space on its disk.",
            ) from error
        except GuesthouseError:
            if running.exit is not None:  # tar's own words explain a broken archive better
                incoming.words.judge(running, "tar", pipe.guest)
            raise
        while incoming.read(0):
            pass
        incoming.words.judge(running, "tar", pipe.guest)


class _Words:
    """The end of what a command wrote to its standard error."""

    def __init__(self) -> None:
        self._said = b""

    def add(self, data: bytes) -> None:
        self._said = (self._said + data)[-_WORDS:]

    def judge(self, running: Command, tool: str, guest: str, *, always: bool = False) -> None:
        """:raise ToolFailed: the command did not end well. :param always: nor did it otherwise."""
        ended = running.exit
        if ended is not None and ended.code == 0 and not always:
            return
        lines = self._said.decode(errors="replace").strip().splitlines()
        how = "was lost" if ended is None else f"ended with {ended.signal or ended.code}"
        missing = ended is not None and ended.code == 127
        raise ToolFailed(
            f"'{tool}' in {guest} {how}: {lines[-1] if lines else 'without a word'}",
            hint=f"Install {tool} in the guest." if missing else "What had arrived is kept.",
        )


class _Incoming:
    """A command's standard output as something to read from; its last words on the side."""

    def __init__(self, running: Command, counter: Counter | None) -> None:
        self.words = _Words()
        self._pieces = running.output()
        self._counter = counter

    def read(self, limit: int, /) -> bytes:
        """The next piece whatever `limit`, as tarfile's stream mode allows; empty at the end."""
        for channel, data in self._pieces:
            if channel == STDERR:
                self.words.add(data)
            elif data:
                if self._counter is not None:
                    self._counter.add(len(data))
                return data
        return b""


class _Listening:
    """A command's standard input as something to write to, while a thread hears what it says.

    Leaving the block ends the input, waits for the command, and raises if it did not end well.
    """

    def __init__(
        self, running: Command, guest: str, tool: str, counter: Counter | None = None
    ) -> None:
        self._running = running
        self._guest = guest
        self._tool = tool
        self._counter = counter
        self._words = _Words()
        self._failure: GuesthouseError | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> _Listening:
        self._thread.start()
        return self

    def write(self, data: bytes, /) -> int:
        self._running.write(data)
        if self._counter is not None:
            self._counter.add(len(data))
        return len(data)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None and not issubclass(kind, DaemonUnreachable):
            return
        try:
            if kind is None:
                self._running.end_input()
        except DaemonUnreachable:
            pass  # the command has ended early; it says why
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        self._words.judge(self._running, self._tool, self._guest)

    def _listen(self) -> None:
        try:
            for _, data in self._running.output():
                self._words.add(data)
        except GuesthouseError as error:
            self._failure = error


def _unreadable(error: OSError, source: Path) -> Forbidden:
    return Forbidden(
        f"{error.filename or source} cannot be read: {error.strerror}.",
        hint="Check its owner and mode.",
    )
