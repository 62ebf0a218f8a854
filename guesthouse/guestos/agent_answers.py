"""Answers of a guest's agent, checked in shape and size. Pure: the guest is not trusted."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from guesthouse.errors import AgentUnavailable

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MAX_ADDRESSES = 256
_MAX_COMMANDS = 1024


class Address(NamedTuple):
    """An address of a guest. :ivar mac: lower case; empty for a card without (a tunnel).

    :ivar prefix: length in bits. :ivar link_local: it reaches no further than the card's network.
    """

    mac: str
    ip: str
    prefix: int
    link_local: bool


class AgentInfo(NamedTuple):
    version: str
    commands: frozenset[str]


class OsInfo(NamedTuple):
    """Empty texts are what the guest did not say."""

    id: str
    pretty_name: str
    version_id: str
    kernel_release: str
    machine: str


def parse_addresses(answer: object) -> list[Address]:
    """guest-network-get-interfaces. Loopback and what is no address are left out.

    :raise AgentUnavailable: not even a list.
    """
    if not isinstance(answer, list):
        raise AgentUnavailable("The guest's agent did not list network interfaces.")
    found: list[Address] = []
    for interface in answer:
        if not isinstance(interface, dict):
            continue
        mac = str(interface.get("hardware-address", "")).lower()
        entries = interface.get("ip-addresses", [])
        for entry in entries if isinstance(entries, list) else []:
            address = _address(entry, mac if _MAC.fullmatch(mac) else "")
            if address is not None and len(found) < _MAX_ADDRESSES:
                found.append(address)
    return found


def parse_info(answer: object) -> AgentInfo:
    """guest-info. :raise AgentUnavailable: not of that shape."""
    commands = answer.get("supported_commands") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(commands, list):
        raise AgentUnavailable("The guest's agent did not say what it offers.")
    return AgentInfo(
        str(answer.get("version", ""))[:64],
        frozenset(
            str(command.get("name"))[:64]
            for command in commands[:_MAX_COMMANDS]
            if isinstance(command, dict) and command.get("enabled") is True
        ),
    )


def parse_os_info(answer: object) -> OsInfo:
    """guest-get-osinfo. :raise AgentUnavailable: not of that shape."""
    if not isinstance(answer, dict):
        raise AgentUnavailable("The guest's agent did not describe its system.")

    def text(key: str) -> str:
        return "".join(c for c in str(answer.get(key, ""))[:256] if c.isprintable())

    return OsInfo(
        text("id"),
        text("pretty-name"),
        text("version-id"),
        text("kernel-release"),
        text("machine"),
    )


def _address(entry: object, mac: str) -> Address | None:
    if not isinstance(entry, dict):
        return None
    text, prefix = entry.get("ip-address"), entry.get("prefix")
    if not isinstance(text, str) or not isinstance(prefix, int):
        return None
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if ip.is_loopback or not 0 <= prefix <= ip.max_prefixlen:
        return None
    # Site-local IPv6 (fec0::/10, given by QEMU's user networking) is deprecated by RFC 3879: it
    # leads nowhere, and a guest that has nothing else still waits for its lease.
    near = ip.is_link_local or (isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local)
    return Address(mac, str(ip), prefix, near)
