"""docs/reference/ is made from the code, and is not older than it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from guesthouse.cli.app import COMMANDS
from guesthouse.errors import GuesthouseError, all_errors
from guesthouse.host.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "docs" / "generate.py"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generate: ModuleType) -> dict[str, str]:
    made: dict[str, str] = generate.pages()
    return made


def test_no_page_is_stale(generate: ModuleType) -> None:
    assert generate.stale() == [], "write them anew with: python docs/generate.py"


def test_it_notices_and_writes(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert generate.stale() == []
    (tmp_path / "errors.md").write_text("old")
    assert generate.stale() == ["errors.md"]


def test_as_a_program() -> None:
    done = subprocess.run([sys.executable, PROGRAM, "--wrong"], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"--check" in done.stderr


def test_every_error_is_explained(pages: dict[str, str]) -> None:
    for kind in all_errors().values():
        if kind is GuesthouseError:
            continue
        assert "__doc__" in vars(kind)
        assert vars(kind)["__doc__"], kind
        (row,) = [line for line in pages["errors.md"].splitlines() if f"`{kind.code}` |" in line]
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[3:5] == [str(kind.status), str(kind.exit_code)]
        assert len(cells[5]) > 10


def test_every_command_and_option_is_there(pages: dict[str, str]) -> None:
    text = pages["commands.md"]
    for name in COMMANDS:
        assert f"\n### guest {name}\n" in text
    for wanted in ("### guest image build", "`--publish`, `-p` `[IP:]HOST:GUEST[/udp]`",
                   "`--sort`", "guest completion [OPTIONS] {bash|zsh|fish}"):  # fmt: skip
        assert wanted in text


def test_every_setting_is_explained_and_the_example_is_the_default(
    pages: dict[str, str], tmp_path: Path
) -> None:
    text = pages["settings.md"]
    for one in msgspec.structs.fields(Settings):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{one.name}` |")]
        assert len(row.split("|")[3].strip()) > 10
    example = text.split("```toml\n")[1].split("```")[0]
    (tmp_path / "settings.toml").write_text(example)
    assert load_settings(tmp_path) == Settings()
    assert "`GUESTHOUSE_STATE`" in text


def test_the_api_is_whole(pages: dict[str, str]) -> None:
    described = json.loads(pages["openapi.json"])
    routes = {
        f"`{method.upper()} {path}`" for path, one in described["paths"].items() for method in one
    }
    assert len(routes) > 30
    for route in routes:
        assert f"| {route} |" in pages["api.md"]
