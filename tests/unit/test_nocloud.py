"""The disc for cloud-init, read back as a guest would."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pycdlib
import pytest

from guesthouse.errors import InvalidInput, NotFound
from guesthouse.guestos import nocloud
from guesthouse.guestos.nocloud import CloudInit, check_user_data, disc
from guesthouse.guestos.seed import check_public_key
from guesthouse.host.secrets import Secrets
from guesthouse.model.ids import new_id

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDb0mC0mM0mC0mM0mC0mM0mC0mM0mC0mM0mC0mM0mC0m jo@desk"


def read(data: bytes, name: str, kind: str) -> str:
    """:param kind: by which names: `rr_path` as Linux sees them, `joliet_path` as Windows does."""
    opened = pycdlib.PyCdlib()
    opened.open_fp(io.BytesIO(data))
    out = io.BytesIO()
    opened.get_file_from_iso_fp(out, **{kind: f"/{name}"})
    opened.close()
    return out.getvalue().decode()


def label(data: bytes) -> str:
    return data[16 * 2048 + 40 : 16 * 2048 + 72].decode().strip()


def names(data: bytes) -> set[str]:
    opened = pycdlib.PyCdlib()
    opened.open_fp(io.BytesIO(data))
    found = {child.rock_ridge.name().decode() for child in opened.list_children(rr_path="/") if
             child.rock_ridge and child.rock_ridge.name()}  # fmt: skip
    opened.close()
    return found - {"."}


@pytest.mark.parametrize("kind", ["rr_path", "joliet_path"])
def test_all_is_on_the_disc(kind: str) -> None:
    secret = CloudInit(user_data="#cloud-config\nfoo: ünïcode\n", network_config="version: 2\n")
    data = disc("01JD0000000000000000000000", "web", [KEY], secret)
    assert label(data) == "CIDATA"
    meta = json.loads(read(data, "meta-data", kind))
    assert meta == {
        "instance-id": "01JD0000000000000000000000",
        "local-hostname": "web",
        "public-keys": [KEY],
    }
    assert read(data, "user-data", kind) == secret.user_data
    assert read(data, "network-config", kind) == secret.network_config


def test_what_was_not_given_is_not_there() -> None:
    data = disc("01JD0000000000000000000000", "web", [], CloudInit())
    assert names(data) >= {"meta-data", "user-data"}
    assert "network-config" not in names(data)
    assert read(data, "user-data", "rr_path").startswith("#cloud-config\n")


def test_keys_are_checked_again() -> None:
    with pytest.raises(InvalidInput):
        disc("01JD0000000000000000000000", "web", ["no key"], CloudInit())


@pytest.mark.parametrize(
    "text",
    [
        "#cloud-config\n",
        "#!/bin/sh\necho\n",
        "#include\nhttp://x\n",
        "Content-Type: multipart/mixed\n",
        "## template: jinja\n#cloud-config\n",
    ],
)
def test_user_data_that_cloud_init_heeds(text: str) -> None:
    assert check_user_data(text) == text


@pytest.mark.parametrize("text", ["packages: [nginx]\n", " #cloud-config\n", "secret-token", "{}"])
def test_user_data_that_it_would_pass_over(text: str) -> None:
    with pytest.raises(InvalidInput, match="does not begin") as caught:
        check_user_data(text)
    assert "nginx" not in str(caught.value)
    assert "token" not in str(caught.value)
    assert caught.value.detail["field"] == "user_data"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("hello", "no public ssh key"),
        (f'command="id" {KEY}', "no public ssh key"),
        (f"{KEY}\nssh-rsa AAAA", "no public ssh key"),
    ],
)
def test_keys_that_are_refused_are_not_quoted(key: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        check_public_key(key, field="ssh_keys")
    assert key not in str(caught.value)


def test_kept_as_a_secret_until_forgotten(tmp_path: Path) -> None:
    secrets, guest = Secrets(tmp_path / "secrets"), new_id()
    secrets.put(f"ssh-{guest}", b"another kind of secret")
    given = CloudInit(user_data="#cloud-config\npassword: x\n")
    nocloud.keep(secrets, guest, given)
    assert nocloud.kept(secrets, guest) == given
    assert nocloud.guests_kept(secrets) == [guest]
    nocloud.forget(secrets, guest)
    nocloud.forget(secrets, guest)
    assert nocloud.guests_kept(secrets) == []
    with pytest.raises(NotFound):
        nocloud.kept(secrets, guest)
    assert secrets.list() == [f"ssh-{guest}"]
