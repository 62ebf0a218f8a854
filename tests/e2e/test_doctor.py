"""`guest doctor` on this very machine: the verdict on KVM is the one that a trial gives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .conftest import House, until

pytestmark = pytest.mark.qemu


def test_this_host(house: House, micro: str) -> None:
    found = house.json("doctor")
    assert found["healthy"] is True
    (kvm,) = [one for one in found["capabilities"] if one["name"] == "kvm"]
    assert kvm["available"] == (kvm["verdict"] == "works") == (found["accelerator"] == "kvm")
    if not Path("/dev/kvm").exists():
        assert kvm["verdict"] == "absent"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert kvm["verdict"] == "no-permission"
    else:
        assert kvm["verdict"] in {"works", "cannot-run", "no-permission"}
    shown = house.out("doctor")
    for one in found["capabilities"]:
        assert one["reason"] in shown
        assert one["available"] or (one["cure"] and f"cure: {one['cure']}" in shown)
    assert "looks after 1 guest." in shown
    assert "1 guest runs; all is well." in shown


def test_a_house_in_trouble(house: House, micro: str) -> None:
    """The copy of a guest that the database does not know: as if it had been lost."""
    copies = house.state / "pools" / "default" / "documents" / "guests"
    known = until(lambda: next(iter(copies.glob("*.json")), None), say="the copy is written")
    lost = {**json.loads(known.read_text()), "id": "01JDF6" + "0" * 20, "name": "lost"}
    copy = copies / f"{lost['id']}.json"
    copy.write_text(json.dumps(lost))
    house.run("daemon", "restart")
    try:
        said = house.run("doctor", ok=False)
        assert said.returncode == 1
        assert b"TROUBLE database" in said.stdout
        assert b"cure: guest recover" in said.stdout
        assert b"The house has trouble: database." in said.stdout
    finally:
        copy.unlink()
        house.run("daemon", "restart")
    assert house.run("doctor").returncode == 0
