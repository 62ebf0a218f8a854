"""The daemon: builds everything below, starts it in order, stops it in the reverse order."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from guesthouse import __version__
from guesthouse.api.problems import problem_details
from guesthouse.api.server import ApiServer
from guesthouse.drivers.qemu.driver import QemuDriver
from guesthouse.drivers.qemu.identity import Identities
from guesthouse.drivers.qemu.keeping import KeeperLink
from guesthouse.errors import Conflict, DeadlineExceeded, GuesthouseError, HostLacks, Internal
from guesthouse.host.folders import prepare
from guesthouse.host.listening import bind
from guesthouse.host.memory import return_large_blocks
from guesthouse.host.namespace.house import HouseNamespace
from guesthouse.host.namespace.idbook import IdBook, book_folder
from guesthouse.host.probe import HostProbe, probe
from guesthouse.host.secrets import Secrets
from guesthouse.host.service_manager import ServiceManager
from guesthouse.host.settings import load_settings
from guesthouse.images.cache import BuildCache
from guesthouse.images.catalogue import Catalogue
from guesthouse.jobs.problems import as_error
from guesthouse.jobs.record import Observer
from guesthouse.jobs.runner import JobRunner
from guesthouse.model.document import encode
from guesthouse.model.folders import Folders, Mode, resolve
from guesthouse.model.reports import HouseInfo, HouseMode, StopGuestsRequest
from guesthouse.network.backends import Backends
from guesthouse.network.bridged import abilities
from guesthouse.network.builtin import Builtin
from guesthouse.network.house.backend import HouseNetwork
from guesthouse.operations.all import all_operations
from guesthouse.operations.checkup import KeeperFacts
from guesthouse.operations.creation import forget_orphaned
from guesthouse.operations.guest_ids import forget_ids, give_back_ids
from guesthouse.operations.house import House
from guesthouse.operations.kernel_rules import LOG, KernelRules
from guesthouse.operations.networks import (
    StoreRecords,
    leave_card,
    leave_networks,
    members,
    open_network,
    recover_networks,
)
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.traffic import HouseTraffic
from guesthouse.storage.pool import DirectoryPool
from guesthouse.store.documents import Documents
from guesthouse.store.sqlite import SqliteStore
from guesthouse.store.view import View
from guesthouse.supervisor.booting import Boot
from guesthouse.supervisor.copies import CopyKeeper
from guesthouse.supervisor.following import Supervisor
from guesthouse.supervisor.housekeeping import Housekeeping
from guesthouse.supervisor.reattaching import reattach, settle_idle, take_up_found

log = logging.getLogger("guesthouse")


def only_one(folders: Folders) -> int:
    """Hold the house for this daemon until the process ends.

    :raise Conflict: another daemon holds it. :raise HostLacks: the folder cannot be written.
    """
    path = folders.state / "daemon.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostLacks(
            f"The state folder {folders.state} cannot be written: {error.strerror}.",
            hint="Mount its file system for writing, or set GUESTHOUSE_STATE to another folder.",
            capability="writable-folders",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise Conflict(
            f"A daemon of this house is already running (pid {holder or 'unknown'}).",
            hint="See it: guest daemon status",
            pid=holder,
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


@contextlib.asynccontextmanager
async def open_rooms(folders: Folders) -> AsyncIterator[tuple[Rooms, KeeperLink, HostProbe]]:
    """The rooms below operations, and what they stand on."""
    settings = load_settings(folders.config)
    async with contextlib.AsyncExitStack() as stack:
        store = await SqliteStore.open(folders.database)
        stack.push_async_callback(store.close)
        view = await View.open(store)
        stack.push_async_callback(view.close)
        if view.newer:  # a document of a newer Guesthouse: this one only looks
            store.refuse_writes(view.newer)
        keeper = KeeperLink(folders.keeper_socket, folders.keeper_state)
        stack.push_async_callback(keeper.close)
        facts, pool, _ = await asyncio.gather(
            probe(folders.state), DirectoryPool.open(folders.pool), keeper.client()
        )
        probed = HostProbe(folders.state, facts)
        documents = Documents(store)
        records = StoreRecords(documents, view, pool.remove_copy)
        namespace, am_root = HouseNamespace(folders.runtime), os.geteuid() == 0
        packets = folders.state / LOG
        network = HouseNetwork(namespace, records, folders.runtime, packets)
        stack.push_async_callback(network.close)
        probed.more = lambda: network.kernel_capabilities
        await probed.look_too(abilities.capabilities)
        await open_network(network, records, view)
        backends = Backends(Builtin(), network, lambda: view.networks)
        identities = Identities(
            namespace,
            lambda: IdBook(book_folder(os.geteuid()), folders.state),
            am_root=am_root,
            members=partial(members, view),
        )
        if not view.newer:
            await forget_ids(identities, keeper, view)
        rooms = Rooms(
            documents=documents,
            view=view,
            driver=QemuDriver(
                probed, keeper, backends, am_root=am_root, confined=identities.confinement
            ),
            pool=pool,
            catalogue=Catalogue(documents, view, pool, folders.images),
            secrets=Secrets(folders.secrets),
            folders=folders,
            settings=settings,
            facts=probed,
            leave_networks=partial(leave_networks, network, records),
            leave_card=partial(leave_card, network, records),
            give_back_ids=partial(give_back_ids, identities),
            refresh_networks=network.refresh,
            rules=KernelRules(network=network, records=records, log=packets),
            recover_networks=partial(recover_networks, network, records, view),
            traffic=HouseTraffic(network, records, namespace),
        )
        yield rooms, keeper, probed


async def run(
    folders: Folders,
    say: SayReady,
    observer: Observer | None = None,
    *,
    passed: socket.socket | None = None,
    shutdown_guests: bool = False,
) -> None:
    """Be the daemon until somebody asks it to stop.

    :param observer: told of every write of a job's document; for tests of crashes.
    :param passed: the API's socket, where a service manager bound it; it stays bound.
    :param shutdown_guests: stop all guests, and go. The API is not served.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with open_rooms(folders) as (rooms, keeper, probed):
        jobs = JobRunner(
            rooms.documents,
            all_operations(rooms, BuildCache(folders.build_cache)),
            folders.jobs,
            observer=observer,
            kept=rooms.settings.job_retention_days * 86400.0,
        )
        supervisor = Supervisor(rooms, jobs)
        copies = CopyKeeper(rooms)
        housekeeping = Housekeeping(rooms, jobs)
        boot = Boot(rooms, jobs)
        rooms.live.on_added = supervisor.add
        rooms.live.on_found = partial(take_up_found, rooms, supervisor)
        house = make_house(rooms, jobs, keeper, probed, stop, supervised=say.supervised)
        try:
            await rooms.bridges.moves.mend()  # first of all: the host may be cut off
            if not house.info().read_only:
                copies.start()
                if not shutdown_guests:
                    await boot.notice()
                ended = await reattach(rooms, supervisor)
                await jobs.recover()
                settling = [supervisor.settle_soon(*end) for end in ended]
                await settle_idle(rooms)
                await forget_orphaned(rooms)
                housekeeping.start()
                await rooms.clashes.start()
                supervisor.clocks.start()
                boot.start_guests(settling)
            if shutdown_guests:
                await stop_guests(house, stop)
                return
            await serve(house, folders, passed, say, stop)
        finally:
            say.stopping()
            await boot.close()
            await housekeeping.close()
            await rooms.clashes.close()
            await jobs.close()
            await supervisor.close()
            await copies.close()
            for live in rooms.live:
                await live.running.detach()
                await live.close()


async def serve(
    house: House,
    folders: Folders,
    passed: socket.socket | None,
    say: SayReady,
    stop: asyncio.Event,
) -> None:
    """Answer requests until `stop` is set. :param passed: see `run`."""
    listener = passed or bind(folders.socket, folders.mode)
    try:
        server = ApiServer(house, listener)
        await server.start()
        say.ready()
        await stop.wait()
        await server.stop()
    finally:
        if passed is None:
            folders.socket.unlink(missing_ok=True)


async def stop_guests(house: House, stop: asyncio.Event) -> None:
    """Stop all guests, or as far as it goes until `stop` is set.

    :raise DeadlineExceeded: some of them run on.
    """
    job = await house.stop_guests(StopGuestsRequest(), "host")
    ending = asyncio.create_task(house.jobs.wait(job.id))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not ending.done():
        ending.cancel()
        return
    ended = ending.result()
    if ended.problem is not None:
        raise as_error(ended.problem)
    result = ended.result or {}
    log.info("guests: %s", result)
    if result.get("failed"):
        raise DeadlineExceeded(
            f"Some guests run on: {', '.join(result['failed'])}.", hint="See why: guest job ls"
        )


def make_house(
    rooms: Rooms,
    jobs: JobRunner,
    keeper: KeeperLink,
    probed: HostProbe,
    stop: asyncio.Event,
    *,
    supervised: bool,
) -> House:
    """The facade that the API talks to."""

    async def console(key: str, replay: int) -> socket.socket:
        return await (await keeper.client()).console(key, replay=replay)

    async def keeping() -> KeeperFacts:
        client = await keeper.client()
        return KeeperFacts(client.pid, sum(one.alive for one in await client.processes()))

    return House(
        rooms=rooms,
        jobs=jobs,
        console=console,
        keeping=keeping,
        reprobe=probed.refresh,
        stop_daemon=stop.set,
        identity=HouseInfo(
            version=__version__,
            mode=HouseMode(rooms.folders.mode),
            node=socket.gethostname(),
            pid=os.getpid(),
            started_at=time.time(),
            socket=str(rooms.folders.socket),
            state_folder=str(rooms.folders.state),
            supervised=supervised,
        ),
    )


class SayReady:
    """Tells whoever started us, once: `ok`, or why not as problem+json; and the service manager."""

    def __init__(self, fd: int | None, service: ServiceManager) -> None:
        self._fd = fd
        self._service = service

    @property
    def supervised(self) -> bool:
        return self._service.present

    def ready(self) -> None:
        self._say(b"ok\n")
        self._service.ready()

    def stopping(self) -> None:
        self._service.stopping()

    def failed(self, error: GuesthouseError) -> None:
        self._say(encode(problem_details(error)) + b"\n")
        self._service.says(error.message)

    def _say(self, line: bytes) -> None:
        if self._fd is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._fd, line)
            os.close(self._fd)
            self._fd = None


def main(observer: Observer | None = None) -> int:
    """Entry of `guesthoused`. :param observer: see `run`."""
    parser = argparse.ArgumentParser(prog="guesthoused", description=__doc__)
    parser.add_argument(
        "--ready-fd", type=int, help="write 'ok' or a problem there once it is known"
    )
    parser.add_argument("--system", action="store_true", help="the machine's house, as root")
    parser.add_argument(
        "--shutdown-guests", action="store_true", help="stop all guests, and end; serve nobody"
    )
    options = parser.parse_args()
    return_large_blocks()
    logging.basicConfig(
        level=os.environ.get("GUESTHOUSE_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # asyncssh logs every command at INFO; what users run in guests is not ours to keep.
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    service = ServiceManager(os.environ, pid=os.getpid())
    say = SayReady(options.ready_fd, service)
    mode: Mode = "system" if options.system else "personal"
    try:
        folders = resolve(os.environ, uid=os.geteuid(), mode=mode)
        passed = service.listener()
        if passed is not None:
            folders = folders._replace(socket=Path(passed.getsockname()))
        prepare(folders)
        lock = only_one(folders)
        try:
            asyncio.run(
                run(
                    folders,
                    say,
                    observer,
                    passed=passed,
                    shutdown_guests=options.shutdown_guests,
                )
            )
        finally:
            os.close(lock)
    except GuesthouseError as error:
        say.failed(error)
        log.error("%s", error)
        return error.exit_code
    except Exception as error:
        say.failed(Internal(f"The daemon failed to start: {error}", hint="See its log."))
        log.exception("the daemon failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
