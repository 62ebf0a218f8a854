"""What an operation of the crash matrix has done, or has not."""

from __future__ import annotations

from collections.abc import Callable

from guesthouse.model.guest import Guest
from guesthouse.model.states import LIVE
from tests.crash.matrix import Snapshot
from tests.crash.trials import BIGGER, Trial


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
