"""Seeds and keys."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from guesthouse.errors import Forbidden, InvalidInput
from guesthouse.guestos.keys import delete_key, ensure_key, public_line, secret_name
from guesthouse.guestos.seed import seed_text, smbios_value
from guesthouse.host.secrets import Secrets
from guesthouse.model.ids import new_id

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE5lJhXT8nS1fC3BzUsXhkqkO5hZ0lE5nU7kQbC8mXqG ada@home"
ID = "01J5XAVVQ7Z3N8T0S5R9M4K2PB"


def test_seed_text() -> None:
    assert seed_text("web", "ada", [KEY, KEY], ID) == (
        f"version 1\nhostname web\nuser ada\ninstance {ID}\nkey {KEY}\nkey {KEY}\n"
    )


@pytest.mark.parametrize(
    ("hostname", "user", "key", "instance"),
    [
        ("web\nkey evil", "ada", KEY, ID),
        ("Web", "ada", KEY, ID),
        ("web", "ada\n", KEY, ID),
        ("web", "ada; rm", KEY, ID),
        ("web", "ada", KEY + "\nuser evil", ID),
        ("web", "ada", KEY + "\r", ID),
        ("web", "ada", 'command="rm -rf /" ' + KEY, ID),
        ("web", "ada", "", ID),
        ("web", "ada", KEY, "01J5\nuser evil"),
    ],
)
def test_nothing_can_be_injected(hostname: str, user: str, key: str, instance: str) -> None:
    with pytest.raises(InvalidInput):
        seed_text(hostname, user, [key], instance)


def test_smbios_value_needs_no_escaping() -> None:
    text = seed_text("web", "ada", [KEY], ID)
    name, _, coded = smbios_value(text).partition("=")
    assert name == "io.systemd.credential.binary:guesthouse.seed"
    assert base64.b64decode(coded, validate=True).decode() == text
    assert "," not in smbios_value(text)


def test_keys_are_made_once_and_are_openssh_s(tmp_path: Path) -> None:
    secrets, guest = Secrets(tmp_path / "secrets"), new_id()
    private = ensure_key(secrets, guest)
    assert ensure_key(secrets, guest) == private
    assert ensure_key(secrets, new_id()) != private
    seed_text("web", "ada", [public_line(private)], ID)  # accepts it
    path = secrets.folder / secret_name(guest)
    said = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert said.split()[:2] == public_line(private).split()[:2]
    delete_key(secrets, guest)
    delete_key(secrets, guest)
    assert not path.exists()


def test_a_damaged_key_is_told(tmp_path: Path) -> None:
    with pytest.raises(Forbidden):
        public_line(b"-----BEGIN OPENSSH PRIVATE KEY-----\ngarbage\n")
