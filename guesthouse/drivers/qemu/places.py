"""Which place on the PCI bus each device has: the same whatever else a guest has.

A guest's kernel names cards and disks by their place, so adding a disk must not move a card.
Slots 0x00 and 0x1f are the chipset's.
"""

from __future__ import annotations

PLUG_PORTS = 8
_FIRST_DISK = 0x08
_FIRST_NIC = 0x16


def _slot(slot: int, function: int = 0) -> str:
    return f"bus=pcie.0,addr={slot:#04x}.{function}"


VIDEO = _slot(0x01)
_PLUGS = 0x02
SERIAL = _slot(0x03)
RNG = _slot(0x04)
BALLOON = _slot(0x05)
PANIC = _slot(0x06)
TABLET = _slot(0x07)


def plug(index: int) -> str:
    """Of root port `index` (0 to 7), all functions of one slot."""
    return _slot(_PLUGS, index)


def disk(index: int) -> str:
    """Of disk `index` (0 to 13)."""
    return _slot(_FIRST_DISK + index)


def nic(index: int, plug: int | None = None) -> str:
    """Of card `index` (0 to 7), which is in root port `plug` if it is not soldered in."""
    return _slot(_FIRST_NIC + index) if plug is None else f"bus={plug_bus(plug)},addr=0x0"


def plug_bus(index: int) -> str:
    """What is in root port `index`."""
    return f"plug{index}"
