"""The disc from which cloud-init learns who a guest is: its NoCloud source.

An ISO 9660 disc labelled CIDATA with `meta-data`, `user-data` and perhaps `network-config`
(cloud-init's documentation, "NoCloud"). User data is often secret: it is on that disc, and in a
secret of the house until the disc is made, and nowhere else.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pycdlib

from guesthouse.errors import InvalidInput
from guesthouse.guestos.seed import check_public_key
from guesthouse.host.secrets import Secrets
from guesthouse.model.document import Noun, decode_strict, encode

LABEL = "CIDATA"
_PREFIX = "seed-"
_NOTHING = "#cloud-config\n{}\n"
_HEADS = (
    "#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "## template:",
    "#cloud-config-archive", "Content-Type:", "MIME-Version:", "From ",
)  # fmt: skip
"""How user data may begin, after cloud-init's "User-Data Formats"."""


class CloudInit(Noun, kw_only=True, frozen=True):
    """What a user hands to cloud-init. Secret."""

    user_data: str = ""
    network_config: str = ""


def check_user_data(text: str) -> str:
    """Return `text` if cloud-init would heed it: anything else it passes over in silence.

    :raise InvalidInput: it does not begin like any kind of user data. Nothing of it is quoted.
    """
    if not text.startswith(_HEADS):
        raise InvalidInput(
            "The user data does not begin as cloud-init wants it.",
            hint='The first line of cloud-config is "#cloud-config", that of a script "#!/bin/sh".',
            field="user_data",
        )
    return text


def disc(instance: str, hostname: str, public_keys: Sequence[str], cloud_init: CloudInit) -> bytes:
    """The content of the disc.

    :param instance: another one than last time makes cloud-init begin anew.
    :param public_keys: lines for authorized_keys of the image's own user.
    :raise InvalidInput: one of them is no public key.
    """
    for key in public_keys:
        check_public_key(key)
    meta = {
        "instance-id": instance,
        "local-hostname": hostname,
        "public-keys": list(public_keys),
    }
    files = {
        "meta-data": json.dumps(meta, indent=1) + "\n",  # JSON is YAML
        "user-data": cloud_init.user_data or _NOTHING,
    }
    if cloud_init.network_config:
        files["network-config"] = cloud_init.network_config
    return _iso(files)


def _iso(files: dict[str, str]) -> bytes:
    made = pycdlib.PyCdlib()
    made.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for name, text in files.items():
        data = text.encode()
        plain = name.replace("-", "").upper()
        made.add_fp(
            io.BytesIO(data),
            len(data),
            f"/{plain}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
        )
    out = io.BytesIO()
    made.write_fp(out)
    made.close()
    return out.getvalue()


def keep(secrets: Secrets, guest: str, cloud_init: CloudInit) -> None:
    """Until the disc of the guest with that id is made. Blocks."""
    secrets.put(_PREFIX + guest, encode(cloud_init))


def kept(secrets: Secrets, guest: str) -> CloudInit:
    """:raise NotFound: nothing is kept for it. Blocks."""
    return decode_strict(secrets.get(_PREFIX + guest), CloudInit, what="user data")


def forget(secrets: Secrets, guest: str) -> None:
    """Nothing is fine. Blocks."""
    secrets.delete(_PREFIX + guest)


def guests_kept(secrets: Secrets) -> list[str]:
    """Ids of the guests for which something is kept. Blocks."""
    return [name.removeprefix(_PREFIX) for name in secrets.list() if name.startswith(_PREFIX)]
