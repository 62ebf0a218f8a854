"""Commands on several guests or images of which one goes wrong: what was done is said as well."""

from __future__ import annotations

from guesthouse.errors import Conflict, InUse

from .cli_room import Room
from .fake_api import imported


def test_an_unknown_name_keeps_all_from_being_removed(guest: Room) -> None:
    said = guest("rm", "--yes", "web", "big")
    assert (said.code, said.out) == (3, "")
    assert "There is no guest 'big'." in said.err
    assert "Nothing was removed." in said.err
    assert [one.name for one in guest.house.guests.values()] == ["web"]
    assert not guest.house.jobs


def test_what_was_removed_is_said_beside_what_was_not(guest: Room) -> None:
    guest.house.add("db")
    guest.house.fail["guest.delete:db"] = Conflict("It is protected.", hint="Unprotect it.")
    said = guest("rm", "--yes", "web", "db")
    assert (said.code, said.out) == (5, "Removed web\n")
    assert "guest: error: db: It is protected." in said.err


def test_what_was_started_is_said_beside_what_was_not(guest: Room) -> None:
    said = guest("start", "web", "nobody")
    assert (said.code, said.out) == (3, "Started web\n")
    assert "guest: error: nobody: There is no guest" in said.err


def test_an_unknown_image_keeps_all_from_being_removed(guest: Room) -> None:
    request = {"name": "mine", "format": "iso", "description": "", "seed": "none", "agent": False}
    guest.house.images.append(imported(request, 1 << 20))
    name = "mine"
    said = guest("image", "rm", "--yes", name, "beos/5")
    assert (said.code, said.out) == (3, "")
    assert not guest.house.jobs
    guest.house.fail["image.remove"] = InUse("It is used.")
    said = guest("image", "rm", "--yes", name)
    assert (said.code, said.out) == (5, "")
