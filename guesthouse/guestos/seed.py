"""The seed: what a guest is told at every boot, as an SMBIOS string (type 11).

One directive a line; images/files holds the readers. systemd (252 and newer) hands the string to
its services as the credential `guesthouse.seed`; the micro guest reads it from the DMI tables. It
carries no secrets: the guest's users can read it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence

from guesthouse.errors import InvalidInput
from guesthouse.model.ids import is_id
from guesthouse.model.names import check_name

VERSION = 1

_CREDENTIAL = "io.systemd.credential.binary:guesthouse.seed="
# sshd(8), "AUTHORIZED_KEYS FILE FORMAT", without options: they could run commands at login.
_KEY = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh\.com|"
    r"sk-ecdsa-sha2-nistp256@openssh\.com) [A-Za-z0-9+/]{16,16384}={0,2}( [\x21-\x7e ]{0,255})?"
)


def seed_text(hostname: str, user: str, public_keys: Sequence[str], instance: str) -> str:
    """The seed of a guest.

    :param user: login user made beside root; `root` makes none.
    :param public_keys: lines for authorized_keys of both. :param instance: the guest's id.
    :raise InvalidInput: a value that could not stand on a line of its own, or is none.
    """
    if not is_id(instance):
        raise InvalidInput(f"{instance!r} is not an id.", field="instance")
    lines = [
        f"version {VERSION}",
        f"hostname {check_name(hostname, field='hostname')}",
        f"user {check_name(user, field='user')}",
        f"instance {instance}",
    ]
    lines += [f"key {check_public_key(key)}" for key in public_keys]
    return "".join(f"{line}\n" for line in lines)


def check_public_key(key: str, *, field: str = "public_keys") -> str:
    """Return `key` if it is a line of a .pub file.

    :raise InvalidInput: it is not. It is not quoted: it may be a private one.
    """
    if not _KEY.fullmatch(key):
        kind = "a private key" if "PRIVATE KEY" in key else "no public ssh key"
        raise InvalidInput(
            f"What was given as a public ssh key is {kind}.",
            hint="Give the one line of a .pub file, without options.",
            field=field,
        )
    return key


def smbios_value(text: str) -> str:
    """The SMBIOS string that carries `text`: letters, digits and `+/=.:` only."""
    return _CREDENTIAL + base64.b64encode(text.encode()).decode()
