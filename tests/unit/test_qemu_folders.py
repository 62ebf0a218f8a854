"""Devices of shared folders, as QEMU is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from guesthouse.drivers.qemu import folders
from guesthouse.errors import EngineError, QmpFailed

pytestmark = pytest.mark.rootless


class Monitor:
    """A QEMU whose last two places are taken, one of them since a moment."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []
        self.refuses: dict[str, list[str]] = {}
        self.version: tuple[int, ...] = ()

    async def pass_fd(self, fd: int, command: str, arguments: Mapping[str, object]) -> None:
        self.said.append((command, arguments))

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        if command == "query-pci":
            bridges = [
                {"qdev_id": f"plug{at}", "pci_bridge": {"devices": [{}]} if at == 7 else {}}
                for at in range(8)
            ]
            return [{"devices": [{"qdev_id": "ports"}, *bridges]}]
        if command == "device-list-properties" and not self.version:
            raise QmpFailed("Device 'vhost-user-fs-pci' not found")
        if command == "query-version":
            return {"qemu": {"major": self.version[0], "minor": self.version[1], "micro": 9}}
        self.said.append((command, arguments))
        if self.refuses.get(command):
            raise QmpFailed(self.refuses[command].pop(0))
        return None


async def test_it_goes_into_the_last_place_that_is_free() -> None:
    monitor = Monitor()
    monitor.refuses["device_add"] = ["PCI: slot 0 function 0 not available for vhost-user-fs-pci"]
    await folders.plug(monitor, "house.a.1", 9)  # type: ignore[arg-type]  # as far as it is used
    device = {
        "driver": "vhost-user-fs-pci",
        "id": "house.a.1",
        "chardev": "house.a.1",
        "tag": "house.a.1",
        "queue-size": 1024,
    }
    address = {"type": "fd", "data": {"str": "house.a.1"}}
    assert monitor.said == [
        ("getfd", {"fdname": "house.a.1"}),
        (
            "chardev-add",
            {
                "id": "house.a.1",
                "backend": {"type": "socket", "data": {"addr": address, "server": False}},
            },
        ),
        ("device_add", {**device, "bus": "plug6"}),
        ("device_add", {**device, "bus": "plug5"}),
    ]


async def test_what_does_not_fit_leaves_nothing() -> None:
    monitor = Monitor()
    monitor.refuses["device_add"] = ["vhost_dev_init failed"]
    with pytest.raises(QmpFailed, match="vhost_dev_init"):
        await folders.plug(monitor, "a", 9)  # type: ignore[arg-type]  # stands in
    assert monitor.said[-1] == ("chardev-remove", {"id": "a"})


async def test_it_is_gone_once_the_guest_has_given_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_PAUSE", 0)
    monitor = Monitor()
    monitor.refuses["device_del"] = ["", "Device a is already in the process of unplug"][1:]
    monitor.refuses["chardev-remove"] = ["Chardev 'a' is busy.", "Chardev 'a' is busy."]
    await folders.unplug(monitor, "a")  # type: ignore[arg-type]  # stands in
    assert [command for command, _ in monitor.said].count("chardev-remove") == 3
    monitor.refuses["chardev-remove"] = ["Chardev 'a' is busy."] * 1000
    with pytest.raises(EngineError, match="does not give"):
        await folders.unplug(monitor, "a")  # type: ignore[arg-type]  # stands in
    monitor.refuses = {"device_del": ["Device 'a' not found"], "chardev-remove": ["a not found"]}
    await folders.unplug(monitor, "a")  # type: ignore[arg-type]  # stands in


async def test_why_a_guest_takes_none() -> None:
    monitor = Monitor()
    shared = ["-object", "memory-backend-file,id=ram,share=on"]
    assert "memory" in (await folders.lacks(monitor, ["-m", "1"]))[0]  # type: ignore[arg-type]  # stands in
    assert (await folders.lacks(monitor, shared))[0] == "QEMU has no vhost-user-fs-pci"  # type: ignore[arg-type]  # stands in
    for version, word in (((7, 2), "QEMU 7.2"), ((8, 1), "8.1"), ((8, 2), ""), ((10, 0), "")):
        monitor.version = version
        lack, risk = await folders.lacks(monitor, shared)  # type: ignore[arg-type]  # stands in
        assert lack == "" and word in risk and bool(word) == bool(risk)
