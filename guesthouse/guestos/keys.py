"""The key pair of a guest: what its house logs in with. One per guest, kept as a secret."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from guesthouse.errors import Forbidden, NotFound
from guesthouse.host.secrets import Secrets


def secret_name(guest: str) -> str:
    """Name of the secret that holds the private key of the guest with that id."""
    return f"ssh-{guest}"


def ensure_key(secrets: Secrets, guest: str) -> bytes:
    """The private key (OpenSSH format) of a guest, made and stored when there is none. Blocks.

    Raises as `Secrets.put` and `Secrets.get`.
    """
    try:
        return secrets.get(secret_name(guest))
    except NotFound:
        private = Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        )
        secrets.put(secret_name(guest), private)
        return private


def delete_key(secrets: Secrets, guest: str) -> None:
    """Forget a guest's key; nothing happens when there is none. Blocks."""
    secrets.delete(secret_name(guest))


def public_line(private: bytes, *, comment: str = "guesthouse") -> str:
    """The line for authorized_keys that belongs to `private`.

    :raise Forbidden: the secret is not a key of ours.
    """
    try:
        key = load_ssh_private_key(private, password=None)
    except ValueError as error:
        raise Forbidden(
            f"The guest's stored ssh key cannot be read: {error}.",
            hint="Restore it from a backup, or delete the secret; a new one is made at the next "
            "start.",
        ) from error
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return f"{public.decode()} {comment}"
