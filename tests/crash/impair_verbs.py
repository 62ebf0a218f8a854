"""Impaired cards in the crash matrix."""

from __future__ import annotations

import msgspec

from guesthouse.errors import HostLacks
from guesthouse.model.impairment import Impairment, NicImpairment
from guesthouse.model.job import Job
from guesthouse.model.reports import LaunchRequest, StartRequest
from tests.crash.claims import both, now_of, same_process, unchanged
from tests.crash.daemon_house import MEMORY, CrashHouse
from tests.crash.matrix import Snapshot
from tests.crash.trials import Trial, Verb, known, paused_bare, with_network

LOSSY = NicImpairment(incoming=Impairment(loss=0.5), outgoing=Impairment(loss=1.0))


def wired(house: CrashHouse) -> Trial:
    """A paused guest on a network of the house, and what is to be done to its card.

    On a host without such networks only nothing can be done to a card; that is a job too.
    """
    network = with_network(house).name
    wish = LaunchRequest(
        image="crash/disk",
        name=house.fresh(),
        memory=MEMORY,
        start=False,
        wait_ready=False,
        networks=(network,),
    )
    try:
        house.do(house.client.launch(wish))
    except HostLacks:
        return paused_bare(house)._replace(thing=NicImpairment())
    assert wish.name is not None
    house.do(house.client.start(wish.name, StartRequest(paused=True)))
    return known(house, wish.name, LOSSY)


def impair(house: CrashHouse, trial: Trial) -> Job:
    return house.client.impair(trial.name, "0", trial.thing)


def impaired(now: Snapshot, trial: Trial) -> bool:
    return now_of(now, trial).spec.nics[0].impairment == trial.thing


def unimpaired(now: Snapshot, trial: Trial) -> bool:
    """All else is as before, whatever is done to the card."""
    assert trial.was is not None
    spec = now_of(now, trial).spec
    nic = msgspec.structs.replace(spec.nics[0], impairment=NicImpairment())
    return msgspec.structs.replace(spec, nics=(nic,)) == trial.was.spec


IMPAIR_VERBS: dict[str, Verb] = {
    "nic-impair": Verb(
        "nic.impair",
        wired,
        impair,
        both(same_process, both(impaired, unimpaired)),
        unchanged,
    ),
}
