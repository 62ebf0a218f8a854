"""`guest rm`, `guest undelete`, `guest trash`: what is asked, said and sent."""

from __future__ import annotations

import json

from guesthouse.model.states import GuestState

from .cli_room import Room


def trashed(guest: Room, *names: str) -> None:
    for name in names:
        guest.house.add(name, GuestState.STOPPED)
        assert guest("rm", "--yes", name).code == 0


def test_rm_says_how_it_is_taken_back(guest: Room) -> None:
    guest.house.results["guest.delete"] = {"result": {"trashed": True}}
    assert guest("rm", "-y", "-f", "web").out == (
        "Removed web; for 7 days it can be brought back: guest undelete web\n"
    )


def test_rm_for_good_asks_for_more(guest: Room) -> None:
    said = guest("rm", "--now", "web")
    assert said.code == 2
    assert "cannot be taken back" in said.err and "guest rm --yes --now web" in said.err
    guest.house.results["guest.delete"] = {"result": {"trashed": False}}
    assert guest("rm", "--now", "--yes", "web").out == "Removed web\n"
    assert ("DELETE", "/v1/guests/web?now=true", None) in guest.house.seen


def test_a_house_without_a_trash_says_so_before(guest: Room) -> None:
    guest.house.trash_days = 0
    assert "cannot be taken back" in guest("rm", "web").err


def test_trash_ls(guest: Room) -> None:
    assert guest("trash", "ls").err == "guest: the trash is empty\n"
    trashed(guest, "db", "mail")
    out = guest("trash", "ls").out
    assert out == guest("ls", "--trash").out
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "mail", "db"]
    assert "in 7d" in out
    assert guest("ls", "--trash", "-q").out == "mail\ndb\n"
    assert [one["name"] for one in json.loads(guest("trash", "ls", "--json").out)] == ["mail", "db"]
    assert "db" not in guest("ls", "-q").out.split()


def test_undelete(guest: Room) -> None:
    trashed(guest, "db")
    guest.house.results["guest.undelete"] = {
        "result": {"name": "db2", "unpublished": ["127.0.0.1:8080:80/tcp"]}
    }
    assert guest("undelete", "db", "--name", "Not Good").code == 2
    said = guest("undelete", "db", "--name", "db2")
    assert said.out == "Brought db2 back\n"
    assert "127.0.0.1:8080:80/tcp" in said.err
    assert ("POST", "/v1/trash/db/undelete", {"name": "db2"}) in guest.house.seen
    assert guest("undelete", "nobody").code == 3


def test_emptying_asks_and_names_what_goes(guest: Room) -> None:
    assert guest("trash", "empty", "--yes").err == "guest: the trash is empty\n"
    trashed(guest, "db", "mail", "old")
    assert "guest trash empty --yes db" in guest("trash", "empty", "db").err
    assert guest("trash", "empty", "nobody", "--yes").code == 3
    assert guest("trash", "empty", "db", "db", "--yes").out == "Deleted db\n"
    assert guest("trash", "empty", "--yes").out == "Deleted old\nDeleted mail\n"
    assert not guest.house.trash


def test_protected(guest: Room) -> None:
    assert guest("set", "web", "protected=true").code == 0
    assert guest.bodies("PATCH", "/v1/guests/web") == [{"protected": True}]
    assert guest("set", "web", "protected=maybe").code == 2
