"""A small house for tests of rules, written down briefly: guests, networks and groups by name.

{"networks": {"lan": {}}, "guests": {"web": {"rules": [{"name": "ssh", "ports": ["22"]}]}}}
"""

from __future__ import annotations

from typing import Any

from guesthouse.model.document import convert_strict
from guesthouse.model.firewall import EndpointKind, Rule, resolve_rule
from guesthouse.network.rules.ruleset import Ruleset

COMMON = {"bridge_state": "nf-call", "log_group": 7}
"""What a kernel can do unless a case says otherwise."""
_LETTERS = str.maketrans("ILOU-", "110VX")


def ident(kind: str, name: str) -> str:
    """An id that shows whose it is."""
    tail = f"{kind[0]}{name}".upper().translate(_LETTERS)
    return "01JD" + tail.rjust(22, "0")


def find(kind: EndpointKind, name: str) -> str:
    return name if len(name) == 26 else ident(kind.value, name)


def rules(raw: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rules with names, as rules with ids."""
    import msgspec

    return [msgspec.to_builtins(resolve_rule(convert_strict(r, Rule), find)) for r in raw]


def firewall(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "rules": rules(raw.get("rules", [])),
        "groups": [ident("group", name) for name in raw.get("groups", [])],
        "policy": raw.get("policy", {}),
    }


def network(number: int, name: str, raw: dict[str, Any]) -> dict[str, Any]:
    kind = raw.get("kind", "nat")
    own = {} if kind == "bridged" else {"subnet4": f"10.200.{number}.0/24"}
    if kind != "bridged" and raw.get("ipv6", True):
        own["subnet6"] = f"fd42:200:{number}::/64"
    plain = {k: v for k, v in raw.items() if k not in {"rules", "groups", "policy", "ipv6"}}
    return {
        "id": ident("network", name),
        "name": name,
        "created_at": 0.0,
        "firewall": firewall(raw),
        **own,
        **plain,
    }


def card(number: int, name: str, raw: dict[str, Any], networks: dict[str, Any]) -> dict[str, Any]:
    home = raw.get("network", next(iter(networks)))
    subnet = list(networks).index(home) + 1
    addresses = [f"10.200.{subnet}.{10 + number}"]
    if networks[home].get("ipv6", True):
        addresses.append(f"fd42:200:{subnet}::{0x1000 + number:x}")
    if networks[home].get("kind") == "bridged":
        addresses = []
    return {
        "guest": ident("guest", name),
        "name": name,
        "tap": f"t{number}-0",
        "mac": f"52:67:68:00:00:{number:02x}",
        "network": ident("network", home),
        "addresses": raw.get("addresses", addresses),
        "any_address": raw.get("any_address", not addresses),
        "link_locals": raw.get("link_locals", []),
        "firewall": firewall(raw),
    }


def house(case: dict[str, Any]) -> Ruleset:
    """:raise InvalidInput: the case is not right."""
    networks = case.get("networks", {"lan": {}})
    guests = case.get("guests", {})
    keys = ("published", "host", "lan", "uplink", "direct", "direct_hosts")
    raw: dict[str, Any] = {key: case[key] for key in keys if key in case}
    raw["features"] = case.get("features", COMMON)
    raw["networks"] = [network(n, name, networks[name]) for n, name in enumerate(networks, 1)]
    raw["cards"] = [card(n, name, guests[name], networks) for n, name in enumerate(guests, 1)]
    raw["groups"] = [
        {"id": ident("group", name), "name": name, "created_at": 0.0, "rules": rules(listed)}
        for name, listed in case.get("groups", {}).items()
    ]
    raw["sets"] = [
        {"id": ident("set", name), "name": name, "created_at": 0.0, "entries": entries}
        for name, entries in case.get("sets", {}).items()
    ]
    return convert_strict(raw, Ruleset, what="ruleset")
