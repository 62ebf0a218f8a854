"""How a guest runs: the contract that every driver keeps.

A driver turns a guest document and its opened resources into a process (`launch`), or takes up one
that already runs (`attach`). What it answers is a `Running`: one incarnation of one guest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from guesthouse.model.device import DiskDevice, Nic, Publish
from guesthouse.model.document import Noun
from guesthouse.model.guest import BootPath, Guest, LaunchRecord
from guesthouse.model.image import BootFiles

NVRAM = "nvram"
"""Name of the disk that holds a UEFI firmware's variables; it is no disk inside the guest."""

# Files of a running guest. Sockets, in `Resources.runtime`:
AGENT_SOCKET = "agent.sock"
SSH_SOCKET = "ssh.sock"
VNC_SOCKET = "vnc.sock"
# Logs, in `Resources.state`:
SERIAL_LOG = "serial.log"
ENGINE_LOG = "engine.log"


class DriverCapabilities(Noun, kw_only=True, frozen=True):
    """What a driver can do; operations ask here, never for the driver's name.

    :ivar ipv6_publish: ports can be published on IPv6 addresses of the host.
    """

    pause: bool = True
    reset: bool = True
    screenshot: bool = False
    serial_console: bool = False
    live_publish: bool = False
    ipv6_publish: bool = False
    paused_start: bool = True


class DiskSource(NamedTuple):
    """A disk ready to be opened: the chain of files from the top layer down to the base.

    :ivar chain: paths of the layers, top first; only the first is writable.
    """

    name: str
    chain: tuple[Path, ...]
    size: int
    read_only: bool
    serial: str
    device: DiskDevice = DiskDevice.DISK


class Resources(NamedTuple):
    """Everything outside the document that a start needs.

    :ivar runtime: 0700 folder of this guest for sockets. :ivar state: its folder for logs.
    :ivar seed: text for the guest's first-boot seed (see guestos.seed), no secrets.
    :ivar boot: the path to take now: `disk` or `kernel`.
    :ivar boot_files: with absolute paths, for a kernel boot.
    """

    disks: tuple[DiskSource, ...]
    runtime: Path
    state: Path
    seed: str
    boot: BootPath
    boot_files: BootFiles | None = None


class DriverEvent(NamedTuple):
    """Something that a running guest did by itself.

    :ivar kind: `paused`, `resumed`, `reset`, `powerdown`, `panic`, `io-error`, `watchdog`,
        `shutdown`, `agent-open`, `agent-close`, `ssh-open`, `unplugged`, `unplug-refused`, `exit`,
        `lost` (the connection broke).
    :ivar detail: the engine's own words, for logs.
    """

    kind: str
    detail: dict[str, object] = {}


class Exit(NamedTuple):
    """How an incarnation ended.

    :ivar reason: `guest-shutdown`, `guest-reset`, `guest-panic`, `killed`, `crash`, `quit`,
        `host-rebooted` or `unknown`.
    :ivar message: one sentence for people.
    """

    reason: str
    message: str


class Running(Protocol):
    """One incarnation. Methods raise `EngineError` kinds; after its end they raise `NotFound`."""

    @property
    def record(self) -> LaunchRecord: ...

    async def state(self) -> tuple[str, str]:
        """(`running` or `paused`, reason: user, io-error, watchdog, panic, starting, engine-error).

        `engine-error`: the engine stopped it and cannot go on (a KVM internal error).
        """
        ...

    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def power_button(self) -> None:
        """Press it once: ACPI. The guest may ignore it."""
        ...

    async def reset(self) -> None: ...
    async def kill(self) -> None:
        """SIGKILL and wait until the process is gone."""
        ...

    async def screenshot(self) -> bytes:
        """A PNG. :raise InvalidInput: the guest has no display."""
        ...

    async def publish(self, nic: int, port: Publish) -> Publish:
        """Open a port live on the card of that number; answers it with its real `host_port`.

        :raise PortTaken: :raise InvalidInput: there is no such card.
        """
        ...

    async def unpublish(self, nic: int, port: Publish) -> None: ...

    async def plug_port(self, name: str, connection: int, *, seen_as: str) -> None:
        """A virtio-serial port, live, whose bytes go through the connected socket `connection`,
        which stays the caller's. It takes the place of an older one of that name.

        :param seen_as: the name by which the guest finds it.

        :raise EngineError: there is no room for more.
        """
        ...

    async def unplug_port(self, name: str) -> None:
        """Take such a port away, live; its connection is closed. Not there is fine."""
        ...

    async def plug_nic(self, nic: Nic) -> None:
        """Plug a card into its hot-plug port, live. It is there already: fine.

        :raise InvalidInput: it has no such port. :raise Conflict: another card has that number.
        :raise EngineError: this process has no free port.
        """
        ...

    async def unplug_nic(self, index: int) -> None:
        """Pull the card of that number, live: the guest is asked to let go of it, and has until
        the deadline. Not there is fine.

        :raise InvalidTransition: it is soldered in. :raise DeadlineExceeded: the guest did not
            answer; it may still let go later. :raise Conflict: it refused.
        """
        ...

    async def move_nic(self, nic: Nic) -> None:
        """The card of that number is on another network, or has other addresses: the guest keeps
        the card. Its link goes down and comes up again, so that the guest asks for its address.

        :raise NotFound: there is no such card.
        :raise InvalidTransition: it would come to the engine's own network, or leaves that.
        """
        ...

    async def set_link(self, index: int, *, up: bool) -> None:
        """As the cable of a card is pulled and put back. :raise NotFound: no such card."""
        ...

    async def folders_lack(self) -> tuple[str, str]:
        """(Why this guest takes no device of a folder (virtiofs), why it is better not given one);
        each empty if there is no reason."""
        ...

    async def plug_folder(self, name: str, connection: int) -> None:
        """A virtiofs device, live; the guest mounts it by `name`, which is new.

        :param connection: a connected socket with a vhost-user server behind; stays the caller's.

        :raise EngineError: there is no room for more, or the server does not greet.
        """
        ...

    async def unplug_folder(self, name: str) -> None:
        """Have the guest give such a device back, live. Not there is fine.

        :raise EngineError: it does not.
        """
        ...

    def events(self) -> AsyncIterator[DriverEvent]:
        """From the call on; ends after `exit`. Each caller has its own bounded queue.

        A caller that falls behind loses the oldest; the next event then says how many in
        `detail["dropped"]`.
        """
        ...

    async def wait_exit(self) -> Exit: ...

    async def detach(self) -> None:
        """Let go without touching the guest: the daemon stops, the guest lives on."""
        ...


class Driver(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> DriverCapabilities: ...

    async def launch(
        self, guest: Guest, resources: Resources, *, incarnation: int, paused: bool = False
    ) -> Running:
        """Start a process for `guest`. On failure nothing is left behind.

        :raise LaunchFailed: with the engine's own words. :raise PortTaken: :raise NoMemory:
        :raise QemuMissing: :raise QemuTooOld: :raise HostLacks:
        """
        ...

    async def attach(self, guest: Guest, resources: Resources) -> Running | Exit:
        """Take up the process named by `guest.launch`, or tell how it ended."""
        ...

    async def find(self, guest: Guest) -> LaunchRecord | None:
        """The record of the process that `guest` has now, though its document may be older.

        `guest.launch` if that process lives; else one made up from a process that carries its
        id; None when it has none. Nothing is touched.
        """
        ...

    async def end(self, guest: Guest) -> bool:
        """Kill the process that `find` finds, though nobody may follow it; whether there was one.

        Its end is for the caller to record.
        """
        ...

    async def stray(self, guests: Sequence[Guest]) -> list[str]:
        """Run keys of processes of ours that belong to none of `guests`' incarnations."""
        ...

    async def end_stray(self, run_key: str) -> None:
        """Kill a stray process: a launch whose record was never written."""
        ...
