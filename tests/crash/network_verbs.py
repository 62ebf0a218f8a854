"""Networks in the crash matrix."""

from __future__ import annotations

from guesthouse.model.networking import NetworkChange, NetworkRequest
from tests.crash.claims import has_mtu, has_network, negated
from tests.crash.trials import Verb, nothing, with_network

NETWORK_VERBS: dict[str, Verb] = {
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
}
