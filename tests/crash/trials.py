"""What an operation of the crash matrix works on, and how that is made."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

from guesthouse.errors import UnknownImage
from guesthouse.model.device import Publish
from guesthouse.model.guest import Guest
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job
from guesthouse.model.networking import NetworkRequest
from guesthouse.model.reports import (
    LaunchRequest,
    StartRequest,
)
from tests.crash.daemon_house import DISK, MEMORY, CrashHouse, free_port_of_host
from tests.crash.matrix import Snapshot
from tests.e2e.conftest import until
from tests.foreign_files import qcow2

BIGGER = 4 * DISK
POLITE = 0.3
"""Seconds in which a guest that hears nothing is asked to power off, before it is killed."""


class Trial(NamedTuple):
    """What one run is about. :ivar name: the guest's. :ivar thing: a port, a file, a new name.

    :ivar was: the guest before, if there was one.
    """

    name: str = ""
    thing: Any = None
    was: Guest | None = None


class Verb(NamedTuple):
    """:ivar kind: of its job. :ivar prepare: makes what it works on.

    :ivar sure: nobody asks for it, and it must happen whatever the fault.
    :ivar complete: whether it has happened. :ivar untouched: whether it has left no trace.
    :ivar mend: what people do after it failed in the middle, where that is allowed.
    """

    kind: str
    prepare: Callable[[CrashHouse], Trial]
    provoke: Callable[[CrashHouse, Trial], Job]
    complete: Callable[[Snapshot, Trial], bool]
    untouched: Callable[[Snapshot, Trial], bool]
    sure: bool = False
    mend: Callable[[CrashHouse], object] = lambda house: None


# --- preparing ------------------------------------------------------------------------------------


def nothing(house: CrashHouse) -> Trial:
    return Trial(house.fresh(), free_port_of_host())


def nothing_built(house: CrashHouse) -> Trial:
    no_micro(house)
    return nothing(house)


def stopped(house: CrashHouse) -> Trial:
    return known(house, house.launch("crash/disk", start=False))


def trashed(house: CrashHouse) -> Trial:
    name = house.launch("crash/disk", start=False)
    house.do(house.client.delete_guest(name))
    return known(house, name)


def running(house: CrashHouse) -> Trial:
    port = Publish(host_port=free_port_of_host(), guest_port=22)
    return known(house, house.launch("crash/disk", publish=(port,)), port)


def paused(house: CrashHouse, image: str = "crash/disk") -> Trial:
    port = Publish(host_port=free_port_of_host(), guest_port=22)
    name = house.launch(image, start=False, publish=(port,))
    house.do(house.client.start(name, StartRequest(paused=True)))
    return known(house, name, port)


def sent(house: CrashHouse) -> Trial:
    """A disk that somebody else made, on its way in."""
    data = qcow2(data=b"somebody else's")
    upload = house.client.create_upload(len(data)).id
    house.client.write_upload(upload, 0, [data], len(data))
    return Trial(house.fresh(), upload)


def known(house: CrashHouse, name: str, thing: Any = None) -> Trial:
    return Trial(name, thing, house.quick().named(name))


def paused_bare(house: CrashHouse) -> Trial:
    """With a port that is free, to be published."""
    name = house.launch("crash/disk", start=False)
    house.do(house.client.start(name, StartRequest(paused=True)))
    return known(house, name, Publish(host_port=free_port_of_host(), guest_port=80))


def ending(house: CrashHouse) -> Trial:
    return paused(house, "crash/ends")


def rebooting(house: CrashHouse) -> Trial:
    return paused(house, "crash/reboots")


def no_micro(house: CrashHouse) -> Trial:
    try:
        house.do(house.client.remove_image("micro"))
    except UnknownImage:
        pass
    return Trial()


def with_micro(house: CrashHouse) -> Trial:
    house.do(house.client.build_image("micro"))
    return Trial()


def with_network(house: CrashHouse) -> Trial:
    trial = Trial(house.fresh())
    house.do(house.client.create_network(NetworkRequest(name=trial.name, mtu=1400)))
    return trial


def forgotten(house: CrashHouse) -> Trial:
    """A guest that the database does not know any more; the copies of its documents are there."""
    trial = known(house, house.launch("crash/disk", start=False))
    assert trial.was is not None
    ids = [trial.was.id, *(disk.volume for disk in trial.was.spec.disks)]
    copies = house.folders.pool / "documents"
    until(lambda: all(list(copies.glob(f"*/{id}.json")) for id in ids), say="copies")
    house.kill()
    house.forget(
        *(f"guests/{id}" for id in ids),
        *(f"volumes/{id}" for id in ids),
        f"names/guests/{trial.was.name}",
        f"numbers/guests/{trial.was.number:06}",
    )
    house.start()
    return trial


def litter(house: CrashHouse) -> Trial:
    """A layer and an unfinished file that belong to nobody."""
    layers = house.folders.pool / "layers"
    stray = layers / f"{new_id()}.qcow2"
    for path in (stray, layers / f".{new_id()}.qcow2.0123abcd.tmp"):
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(DISK)], check=True
        )
    return Trial(thing=stray.name)


# --- asking ---------------------------------------------------------------------------------------


def launch(house: CrashHouse, trial: Trial, image: str = "crash/disk") -> Job:
    port = Publish(host_port=trial.thing, guest_port=22)
    wish = LaunchRequest(
        image=image,
        name=trial.name,
        memory=MEMORY,
        publish=(port,),
        wait_ready=False,
        networks=("builtin",),
    )
    return house.client.launch(wish)


def launch_micro(house: CrashHouse, trial: Trial) -> Job:
    return launch(house, trial, "micro")


def set_going(house: CrashHouse, trial: Trial) -> Job:
    """Let it run into its own end."""
    return house.client.resume(trial.name)


def prepare(house: CrashHouse, verb: Verb) -> Trial:
    trial = verb.prepare(house)
    until(lambda: not house.client.jobs(active=True), say="prepared")
    return trial
