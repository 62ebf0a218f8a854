"""settings.toml: strict, with errors that help."""

from __future__ import annotations

from pathlib import Path

import pytest

from guesthouse.errors import Forbidden, InvalidInput, UnknownField
from guesthouse.host.settings import Settings, load_settings


def write(folder: Path, text: str) -> Path:
    (folder / "settings.toml").write_text(text)
    return folder


def test_no_file_means_defaults(tmp_path: Path) -> None:
    assert load_settings(tmp_path) == Settings()
    assert load_settings(tmp_path / "nowhere") == Settings()


def test_all_settings(tmp_path: Path) -> None:
    line = "deb https://deb.example.org/debian bookworm main"
    text = f'mirrors = ["{line}"]\ndefault_user = "ada"\njob_retention_days = 7\n'
    assert load_settings(write(tmp_path, text)) == Settings(
        mirrors=(line,), default_user="ada", job_retention_days=7
    )


def test_a_misspelt_key_names_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(UnknownField) as caught:
        load_settings(write(tmp_path, "mirors = []"))
    assert caught.value.detail["field"] == "mirors"
    assert "mirrors" in caught.value.hint
    with pytest.raises(UnknownField, match="zzz") as caught:
        load_settings(write(tmp_path, "zzz = 1"))
    assert "job_retention_days" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "mirrors = 'x'",
        "mirrors = ['http://x']",
        'mirrors = ["deb http://x a b\\nRun: evil"]',
        "default_user = 'Not A User'",
        "job_retention_days = -1",
        "job_retention_days = '7'",
        "= broken",
        "a = 1\na = 2",
    ],
)
def test_wrong_values_name_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_settings(write(tmp_path, text))
    assert "settings.toml" in str(caught.value) or caught.value.detail.get("field")


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="TOML"):
        load_settings(tmp_path)


def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").mkdir()
    with pytest.raises(Forbidden):
        load_settings(tmp_path)
