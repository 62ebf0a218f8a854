"""Network cards in the crash matrix: of guests that are stopped, and live."""

from __future__ import annotations

from collections.abc import Callable

from guesthouse.model.device import Link
from guesthouse.model.networking import BUILTIN
from guesthouse.model.nics import NicChange, NicRequest
from tests.crash.claims import both, now_of, unchanged
from tests.crash.daemon_house import CrashHouse
from tests.crash.matrix import Snapshot
from tests.crash.trials import Trial, Verb, known, paused, stopped

MAC = "52:67:68:ca:4d:01"


def cards_are(*numbers: int) -> Callable[[Snapshot, Trial], bool]:
    return lambda now, trial: [nic.index for nic in now_of(now, trial).spec.nics] == list(numbers)


def pullable(house: CrashHouse) -> Trial:
    """A guest that is up, and has a card that it would let go of."""
    name = house.launch("crash/disk", ready=True)
    house.do(house.client.add_nic(name, NicRequest(network=BUILTIN)))
    return known(house, name)


def link_is(link: Link) -> Callable[[Snapshot, Trial], bool]:
    return lambda now, trial: now_of(now, trial).spec.nics[0].link is link


NIC_VERBS: dict[str, Verb] = {
    "nic-add": Verb(
        "nic.add",
        stopped,
        lambda h, t: h.client.add_nic(t.name, NicRequest(network=BUILTIN)),
        cards_are(0, 1),
        unchanged,
    ),
    "nic-add-live": Verb(
        "nic.add",
        paused,
        lambda h, t: h.client.add_nic(t.name, NicRequest(network=BUILTIN, link=Link.DOWN)),
        cards_are(0, 1),
        unchanged,
    ),
    "nic-set": Verb(
        "nic.set",
        stopped,
        lambda h, t: h.client.change_nic(t.name, "0", NicChange(mac=MAC)),
        lambda now, trial: now_of(now, trial).spec.nics[0].mac == MAC,
        unchanged,
    ),
    "nic-set-live": Verb(
        "nic.set",
        paused,
        lambda h, t: h.client.change_nic(t.name, "0", NicChange(link=Link.DOWN)),
        link_is(Link.DOWN),
        both(link_is(Link.UP), unchanged),
    ),
    "nic-remove": Verb(
        "nic.remove",
        stopped,
        lambda h, t: h.client.remove_nic(t.name, "0"),
        cards_are(),
        unchanged,
    ),
    "nic-remove-live": Verb(
        "nic.remove",
        pullable,
        lambda h, t: h.client.remove_nic(t.name, "1"),
        cards_are(0),
        unchanged,
    ),
}
