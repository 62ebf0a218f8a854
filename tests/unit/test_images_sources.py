"""Where packages come from, told from what the host's apt says."""

from __future__ import annotations

from pathlib import Path

import pytest

from guesthouse.errors import HostLacks, InvalidInput
from guesthouse.images import sources

KEYS = Path("/keys.gpg")

DEB822 = """\
# comment
Types: deb deb-src
URIs: http://mirror.test/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
# the old one:
#URIs: http://old.test/debian-security
URIs: http://mirror.test/debian-security/
Suites: trixie-security
Components: main
"""

THIRD_PARTY = """\
Types: deb
URIs: https://vendor.test/node
Suites: nodistro
Components: main
Signed-By: /usr/share/keyrings/vendor.gpg
"""


def apt_folder(tmp_path: Path, **files: str) -> Path:
    listed = tmp_path / "sources.list.d"
    listed.mkdir()
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        target = tmp_path / "sources.list" if stem == "main" else listed / f"{stem}.{suffix}"
        target.write_text(text)
    return tmp_path


def test_deb822_of_another_suite(tmp_path: Path) -> None:
    apt = apt_folder(tmp_path, debian_sources=DEB822, vendor_sources=THIRD_PARTY)
    assert sources.lines_for("bookworm", apt=apt, keyring=KEYS) == [
        "deb [signed-by=/keys.gpg] http://mirror.test/debian bookworm main",
        "deb [signed-by=/keys.gpg] http://mirror.test/debian bookworm-updates main",
        "deb [signed-by=/keys.gpg] http://mirror.test/debian-security/ bookworm-security main",
    ]


def test_one_line_format_with_options(tmp_path: Path) -> None:
    text = (
        "deb-src http://a.test/debian bookworm main\n"
        "deb [arch=amd64 trusted=yes] http://a.test/debian/ bookworm main contrib # ours\n"
        "deb http://b.test/debian-security bookworm-security main\n"
    )
    apt = apt_folder(tmp_path, main_list=text)
    assert sources.lines_for("trixie", apt=apt, keyring=KEYS) == [
        "deb [signed-by=/keys.gpg trusted=yes] http://a.test/debian/ trixie main",
        "deb [signed-by=/keys.gpg trusted=yes] http://a.test/debian/ trixie-updates main",
        "deb [signed-by=/keys.gpg] http://b.test/debian-security trixie-security main",
    ]


def test_an_internal_mirror_is_known_by_its_keyring(tmp_path: Path) -> None:
    signed = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
    text = (
        f"deb [{signed}] http://in.test/pool/main bookworm main\n"
        f"deb [{signed}] http://in.test/pool/sec bookworm-security main\n"
    )
    lines = sources.lines_for("bookworm", apt=apt_folder(tmp_path, main_list=text), keyring=KEYS)
    assert [line.split()[2] for line in lines] == [
        "http://in.test/pool/main", "http://in.test/pool/main", "http://in.test/pool/sec",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "",
        "deb http://u.test/ubuntu noble main\ndeb http://u.test/ubuntu noble-security main\n",
        "deb http://m.test/debian sid main\n",  # no security archive: mmdebstrap knows one
    ],
)
def test_without_a_whole_debian_mmdebstrap_chooses(tmp_path: Path, text: str) -> None:
    assert sources.lines_for("bookworm", apt=apt_folder(tmp_path, main_list=text)) == []


def test_disabled_stanzas_and_other_files_are_passed_over(tmp_path: Path) -> None:
    apt = apt_folder(tmp_path, debian_sources="Enabled: no\n" + DEB822, debian_save=DEB822)
    assert [entry.uri for entry in sources.host_entries(apt)] == [
        "http://mirror.test/debian-security/"
    ]


def test_mirrors_win_and_take_the_suite(tmp_path: Path) -> None:
    mirrors = ["deb http://x.test/debian {suite} main", " deb [trusted=yes] file:/srv trixie main "]
    assert sources.lines_for("trixie", mirrors, apt=tmp_path) == [
        "deb http://x.test/debian trixie main",
        "deb [trusted=yes] file:/srv trixie main",
    ]


@pytest.mark.parametrize("line", ["http://x.test/debian", "deb x.test trixie main", "rm -rf /"])
def test_a_mirror_that_is_no_line_is_refused(line: str) -> None:
    with pytest.raises(InvalidInput, match=r"sources\.list") as caught:
        sources.lines_for("trixie", [line])
    assert caught.value.detail["field"] == "mirrors"


def test_missing_keys_name_the_package(tmp_path: Path) -> None:
    with pytest.raises(HostLacks) as caught:
        sources.require_keyring(tmp_path / "none.gpg")
    assert "debian-archive-keyring" in caught.value.hint
