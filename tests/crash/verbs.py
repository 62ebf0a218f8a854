"""The operations of the crash matrix: how each is prepared, asked for, and told done from not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

from guesthouse.errors import UnknownImage
from guesthouse.model.device import Publish
from guesthouse.model.guest import Guest
from guesthouse.model.ids import new_id
from guesthouse.model.imports import ImportImageRequest
from guesthouse.model.job import Job
from guesthouse.model.networking import NetworkChange, NetworkRequest
from guesthouse.model.reports import (
    LaunchRequest,
    RestartRequest,
    StartRequest,
    StopRequest,
    UnpublishRequest,
)
from guesthouse.model.states import LIVE
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


# --- telling --------------------------------------------------------------------------------------


def now_of(now: Snapshot, trial: Trial) -> Guest:
    """The guest as it is. It must be there."""
    assert trial.was is not None
    return now.guests[trial.was.id]


def is_there(now: Snapshot, trial: Trial) -> bool:
    return trial.was is not None and trial.was.id in now.guests


def state_is(*states: str) -> Callable[[Snapshot, Trial], bool]:
    return lambda now, trial: is_there(now, trial) and now_of(now, trial).state.value in states


def same_process(now: Snapshot, trial: Trial) -> bool:
    """It runs on in the process that it had."""
    if not is_there(now, trial) or trial.was is None:
        return False
    guest = now_of(now, trial)
    return guest.state in LIVE and guest.status.pid == trial.was.status.pid


def unchanged(now: Snapshot, trial: Trial) -> bool:
    """Name, spec and state are as before."""
    if not is_there(now, trial) or trial.was is None:
        return False
    guest = now_of(now, trial)
    return (guest.name, guest.spec, guest.state, guest.deleted_at) == (
        trial.was.name,
        trial.was.spec,
        trial.was.state,
        trial.was.deleted_at,
    )


def runs_anew(now: Snapshot, trial: Trial) -> bool:
    if not state_is("running")(now, trial) or trial.was is None:
        return False
    launched, before = now_of(now, trial).launch, trial.was.launch
    return (
        launched is not None and launched.incarnation == (before.incarnation if before else 0) + 1
    )


def absent(now: Snapshot, trial: Trial) -> bool:
    return now.named(trial.name) is None


def launched(now: Snapshot, trial: Trial) -> bool:
    guest = now.named(trial.name)
    return guest is not None and guest.state.value == "running"


def publishes(now: Snapshot, trial: Trial) -> bool:
    return is_there(now, trial) and trial.thing in now_of(now, trial).spec.nics[0].ports


def both(*tests: Callable[[Snapshot, Trial], bool]) -> Callable[[Snapshot, Trial], bool]:
    return lambda now, trial: all(test(now, trial) for test in tests)


def either(*tests: Callable[[Snapshot, Trial], bool]) -> Callable[[Snapshot, Trial], bool]:
    return lambda now, trial: any(test(now, trial) for test in tests)


def negated(test: Callable[[Snapshot, Trial], bool]) -> Callable[[Snapshot, Trial], bool]:
    return lambda now, trial: not test(now, trial)


def in_trash(now: Snapshot, trial: Trial) -> bool:
    return is_there(now, trial) and now_of(now, trial).in_trash


def deleted(now: Snapshot, trial: Trial) -> bool:
    return not is_there(now, trial)


def was_set(now: Snapshot, trial: Trial) -> bool:
    spec = now_of(now, trial).spec
    return (spec.cpus, spec.description) == (2, "changed")


def has_grown(now: Snapshot, trial: Trial) -> bool:
    return now_of(now, trial).spec.disks[0].size == BIGGER


def has_image(now: Snapshot, trial: Trial) -> bool:
    return any(image.name == trial.name for image in now.images.values())


def has_micro(now: Snapshot, trial: Trial) -> bool:
    return any(image.name == "micro" for image in now.images.values())


def stray_gone(now: Snapshot, trial: Trial) -> bool:
    return trial.thing not in now.layers


def has_network(now: Snapshot, trial: Trial) -> bool:
    return any(network.name == trial.name for network in now.networks.values())


def has_mtu(mtu: int) -> Callable[[Snapshot, Trial], bool]:
    return lambda now, trial: any(
        (network.name, network.mtu) == (trial.name, mtu) for network in now.networks.values()
    )


def anything(now: Snapshot, trial: Trial) -> bool:
    return True


def nothing_else(now: Snapshot, trial: Trial) -> bool:
    return False


VERBS: dict[str, Verb] = {
    "launch": Verb("guest.launch", nothing_built, launch_micro, launched, absent),
    "launch-disk": Verb("guest.launch", nothing, launch, launched, absent),
    "start": Verb(
        "guest.start",
        stopped,
        lambda h, t: h.client.start(t.name, StartRequest(paused=True)),
        state_is("paused"),
        state_is("stopped"),
    ),
    "stop": Verb(
        "guest.stop",
        paused,
        lambda h, t: h.client.stop(t.name, StopRequest(timeout=POLITE)),
        state_is("stopped"),
        same_process,
    ),
    "stop-force": Verb(
        "guest.stop",
        running,
        lambda h, t: h.client.stop(t.name, StopRequest(force=True)),
        state_is("stopped"),
        same_process,
    ),
    # What was stopped cannot be brought back: a restart that fails there leaves it stopped.
    "restart": Verb(
        "guest.restart",
        running,
        lambda h, t: h.client.restart(t.name, RestartRequest(force=True)),
        runs_anew,
        either(same_process, state_is("stopped")),
    ),
    "pause": Verb(
        "guest.pause",
        running,
        lambda h, t: h.client.pause(t.name),
        both(same_process, state_is("paused")),
        both(same_process, state_is("running")),
    ),
    "resume": Verb(
        "guest.resume",
        paused,
        lambda h, t: h.client.resume(t.name),
        both(same_process, state_is("running")),
        both(same_process, state_is("paused")),
    ),
    # A guest that was booted by its kernel gets a new process for its own boot loader.
    "reset": Verb(
        "guest.reset",
        running,
        lambda h, t: h.client.reset(t.name),
        either(same_process, runs_anew),
        same_process,
    ),
    "power-button": Verb(
        "guest.power-button",
        paused,
        lambda h, t: h.client.power_button(t.name),
        same_process,
        same_process,
    ),
    "set": Verb(
        "guest.set",
        stopped,
        lambda h, t: h.client.set_guest(t.name, {"cpus": 2, "description": "changed"}),
        was_set,
        unchanged,
    ),
    "set-disk": Verb(
        "guest.set",
        stopped,
        lambda h, t: h.client.set_guest(t.name, {"disk": BIGGER}),
        has_grown,
        unchanged,
    ),
    "rename": Verb(
        "guest.rename",
        stopped,
        lambda h, t: h.client.rename(t.name, f"{t.name}-new"),
        lambda now, t: now_of(now, t).name == f"{t.name}-new",
        unchanged,
    ),
    "publish": Verb(
        "guest.publish",
        paused_bare,
        lambda h, t: h.client.publish(t.name, t.thing),
        publishes,
        unchanged,
    ),
    "unpublish": Verb(
        "guest.unpublish",
        paused,
        lambda h, t: h.client.unpublish(
            t.name, UnpublishRequest(host_ip="127.0.0.1", host_port=t.thing.host_port)
        ),
        negated(publishes),
        unchanged,
    ),
    "delete": Verb(
        "guest.delete", stopped, lambda h, t: h.client.delete_guest(t.name), in_trash, unchanged
    ),
    "delete-now": Verb(
        "guest.delete",
        stopped,
        lambda h, t: h.client.delete_guest(t.name, now=True),
        deleted,
        unchanged,
    ),
    "delete-force": Verb(
        "guest.delete",
        running,
        lambda h, t: h.client.delete_guest(t.name, force=True, now=True),
        deleted,
        either(unchanged, state_is("stopped")),
    ),
    "undelete": Verb(
        "guest.undelete",
        trashed,
        lambda h, t: h.client.undelete(t.name),
        both(is_there, negated(in_trash)),
        unchanged,
    ),
    "purge": Verb("guest.purge", trashed, lambda h, t: h.client.purge(t.name), deleted, unchanged),
    "settle": Verb("guest.settle", ending, set_going, state_is("stopped"), nothing_else, sure=True),
    # Where no new process can be started, it stays stopped.
    "settle-reboot": Verb(
        "guest.settle", rebooting, set_going, runs_anew, state_is("stopped"), sure=True
    ),
    "image-build": Verb(
        "image.build",
        no_micro,
        lambda h, t: h.client.build_image("micro"),
        has_micro,
        negated(has_micro),
    ),
    "image-import": Verb(
        "image.import",
        sent,
        lambda h, t: h.client.import_image(ImportImageRequest(upload=t.thing, name=t.name)),
        has_image,
        negated(has_image),
    ),
    "image-remove": Verb(
        "image.remove",
        with_micro,
        lambda h, t: h.client.remove_image("micro"),
        negated(has_micro),
        has_micro,
    ),
    "network-create": Verb(
        "network.create",
        nothing,
        lambda h, t: h.client.create_network(NetworkRequest(name=t.name)),
        has_network,
        negated(has_network),
    ),
    "network-set": Verb(
        "network.set",
        with_network,
        lambda h, t: h.client.change_network(t.name, NetworkChange(mtu=1300)),
        has_mtu(1300),
        has_mtu(1400),
    ),
    "network-remove": Verb(
        "network.remove",
        with_network,
        lambda h, t: h.client.remove_network(t.name),
        negated(has_network),
        has_network,
    ),
    # Half a recovery is no loss: asked for again, it brings back the rest.
    "recover": Verb(
        "house.recover",
        forgotten,
        lambda h, t: h.client.recover(),
        unchanged,
        anything,
        mend=lambda h: h.do(h.client.recover()),
    ),
    "collect": Verb(
        "storage.collect",
        litter,
        lambda h, t: h.client.collect(),
        stray_gone,
        anything,
    ),
}


def prepare(house: CrashHouse, verb: Verb) -> Trial:
    trial = verb.prepare(house)
    until(lambda: not house.client.jobs(active=True), say="prepared")
    return trial
