"""Where Debian's packages come from.

The order: the lines that the setting `mirrors` gives; else the Debian archive that this host itself
uses, of whatever suite, with the wanted suite put in; else what mmdebstrap takes by itself for a
stable suite (the archive, its updates and its security archive). Formats: sources.list(5).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from guesthouse.errors import HostLacks, InvalidInput

APT = Path("/etc/apt")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_ONE_LINE = re.compile(r"^(deb)\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)(?:\s+(.*))?$")


@dataclass(frozen=True)
class Entry:
    """One archive that apt is told of: where, which suites, and the options given with it."""

    uri: str
    suites: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_debian(self) -> bool:
        """Whether it looks like Debian's own archive, and not some third party's."""
        path = urlsplit(self.uri).path.rstrip("/")
        signed = self.options.get("signed-by", "")
        return "debian-archive" in signed or path.endswith(("/debian", "/debian-security"))

    @property
    def is_security(self) -> bool:
        path = urlsplit(self.uri).path.rstrip("/")
        security_suite = any(name.endswith(("-security", "/updates")) for name in self.suites)
        return security_suite or path.endswith("/debian-security")

    def line(self, suite: str, keyring: Path) -> str:
        """The one-line form that asks this archive for `suite`."""
        options = [f"signed-by={keyring}"]
        if self.options.get("trusted", "").lower() == "yes":
            options.append("trusted=yes")
        return f"deb [{' '.join(options)}] {self.uri} {suite} main"


def lines_for(
    suite: str, mirrors: Sequence[str] = (), *, apt: Path = APT, keyring: Path = KEYRING
) -> list[str]:
    """Lines for sources.list that give `suite`, its updates and its security archive.

    An empty list means: mmdebstrap's own choice. In a line of `mirrors`, "{suite}" stands for the
    wanted suite. Raises InvalidInput for a mirror that is no line for sources.list.
    """
    if mirrors:
        return [_checked(line.replace("{suite}", suite)) for line in mirrors]
    entries = [entry for entry in host_entries(apt) if entry.is_debian]
    archive = next((entry for entry in entries if not entry.is_security), None)
    security = next((entry for entry in entries if entry.is_security), None)
    # Hosts of testing or unstable have no security archive; a guest of a stable suite needs it.
    if archive is None or security is None:
        return []
    return [
        archive.line(suite, keyring),
        archive.line(f"{suite}-updates", keyring),
        security.line(f"{suite}-security", keyring),
    ]


def require_keyring(keyring: Path = KEYRING) -> None:
    """Raises HostLacks when Debian's signing keys are not on this host (Ubuntu, for one)."""
    if not keyring.is_file():
        raise HostLacks(
            "This host does not have the keys that Debian's packages are signed with.",
            hint="Install them: apt-get install debian-archive-keyring",
            capability="image-build",
        )


def host_entries(apt: Path = APT) -> list[Entry]:
    """What this host's apt is told of, in apt's own order. Files it cannot read are passed over."""
    found: list[Entry] = []
    listed = sorted((apt / "sources.list.d").glob("*"))
    for path in [apt / "sources.list", *listed]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if path.suffix == ".sources":
            found.extend(_parse_deb822(text))
        elif path.suffix == ".list":
            found.extend(_parse_lines(text))
    return found


def _parse_lines(text: str) -> Iterator[Entry]:
    for raw in text.splitlines():
        match = _ONE_LINE.match(raw.split("#", 1)[0].strip())
        if match is None:
            continue
        _, options, uri, suite, _ = match.groups()
        pairs = (word.split("=", 1) for word in (options or "").split() if "=" in word)
        yield Entry(uri, (suite,), {name.lower(): value for name, value in pairs})


def _parse_deb822(text: str) -> Iterator[Entry]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for raw in stanza.splitlines():
            if raw.startswith("#"):
                continue
            if raw[:1].isspace() and last:
                fields[last] += "\n" + raw.strip()
            elif ":" in raw:
                name, value = raw.split(":", 1)
                last = name.strip().lower()
                fields[last] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        suites = tuple(fields.get("suites", "").split())
        for uri in fields.get("uris", "").split():
            yield Entry(uri, suites, fields)


def _checked(line: str) -> str:
    match = _ONE_LINE.match(line.strip())
    if match is None or not urlsplit(match.group(3)).scheme:
        raise InvalidInput(
            f"{shlex.quote(line)} is not a line for sources.list.",
            hint='Write it as "deb URI SUITE main"; {suite} stands for the suite of the image.',
            field="mirrors",
        )
    return line.strip()
