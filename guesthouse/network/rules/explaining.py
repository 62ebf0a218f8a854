"""Keys of rules, as sentences."""

from __future__ import annotations

from guesthouse.network.rules.ruleset import Ruleset

REASONS = {
    "house/established": "It belongs to a connection that was let through before.",
    "house/neighbours": "Neighbours must find one another.",
    "house/invalid": "It belongs to no connection that can be.",
    "house/published": "It comes for a published port.",
    "house/dhcp": "Guests get their addresses from the house.",
    "house/dns": "Guests ask the house for names.",
    "house/echo": "The house answers pings from its own networks.",
    "house/closed": "The house offers nothing there.",
    "house/policy-in": "No rule is about it, and the default is to accept.",
    "house/policy-out": "No rule is about it, and the default is to accept.",
    "wall/host": "The host's own addresses are shut unless a rule names them.",
    "wall/lan": "The host's neighbours are shut on this network unless a rule names them.",
    "wall/network": "Networks of the house are apart unless a rule of the receiver names the "
    "sender.",
    "wall/isolated": "An isolated network has no way out or in.",
    "wall/unsolicited": "Nobody outside can ask for an address behind NAT.",
    "wall/flooded": "What is for all goes to no guest whose policy is not to accept.",
    "spoof/mac": "The card has another MAC.",
    "spoof/ethertype": "Only ARP, IPv4 and IPv6 pass.",
    "spoof/arp": "The address that it says is its own is not.",
    "spoof/ipv4": "The card has another IPv4 address.",
    "spoof/ipv6": "The card has another IPv6 address.",
    "spoof/neighbour-advert": "The address that it says is its own is not.",
    "spoof/dhcp-server": "Only the house gives out addresses.",
    "spoof/router-advert": "Only the house is a router.",
    "spoof/redirect": "Only the house is a router.",
    "spoof/mld-query": "Only the house is a router.",
    "spoof/fragment": "Link-local traffic has no fragments.",
    "spoof/flooded": "It is for one, but shown to all.",
}


def explain(ruleset: Ruleset, key: str) -> str:
    """One sentence that names the rule and its owner."""
    kind, _, rest = key.partition("/")
    if key in REASONS:
        return REASONS[key]
    owner, _, rule = rest.partition("/")
    who = f"{kind} {_name(ruleset, kind, owner)}"
    if rule in {"policy-in", "policy-out"}:
        way = "comes in" if rule == "policy-in" else "goes out"
        return f"No rule is about it: the policy of {who} for what {way}."
    return f"Rule {rule!r} of {who}."


def _name(ruleset: Ruleset, kind: str, owner: str) -> str:
    if kind == "guest":
        return next((card.name for card in ruleset.cards_of.get(owner, ())), owner)
    named = ruleset.group_of.get(owner) if kind == "group" else ruleset.network_of.get(owner)
    return named.name if named else owner
