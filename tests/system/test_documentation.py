"""README and documents: their code runs, their commands exist, their links lead somewhere, and the site builds."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
import unittest
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
import yaml

from lume_diff.cli import app
from lume_diff.machine import check
from tests.system.ioc.conftest import free_ports, settings_of

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.usefixtures("time_limit")]

ROOT = Path(__file__).parents[2]
MADE = ("_build", "generated", "notebooks")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if not set(MADE) & set(path.relative_to(ROOT).parts)
)
#: What the code of a document needs that is an extra.
EXTRAS = {
    "README.md": ("at",),
    "docs/coming-from.md": ("lume", "xopt"),
    "docs/how-to/dask.md": ("distributed",),
    "docs/how-to/deployment.md": ("p4p", "caproto"),
    "docs/how-to/live-view.md": ("panel",),
}
#: Languages of the blocks that show commands.
COMMANDS = ("", "bash")
BLOCK = re.compile(r"^ *```(?P<language>[a-z]*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?:#[^)]*)?\)")
FETCHED = re.compile(r"""<(?:script|link|img)[^>]*(?:src="|rel="stylesheet"[^>]*href=")https?:[^>]*>""")


def blocks(name: str, *languages: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [found["text"] for found in BLOCK.finditer(text) if found["language"] in languages]


def having(*languages: str) -> list[str]:
    return [name for name in DOCUMENTS if blocks(name, *languages)]


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, on ports of its own."""
    monkeypatch.chdir(tmp_path)
    for variable, value in settings_of(free_ports()).items():
        monkeypatch.setenv(variable, value)
    return tmp_path


@pytest.mark.parametrize("name", having("python"))
def test_code_runs(name: str, somewhere: Path) -> None:
    sybil = pytest.importorskip("sybil", reason="reads the code of documents: pip install sybil")
    from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

    for needed in EXTRAS.get(name, ()):
        pytest.importorskip(needed, reason=f"what this extra brings is not installed: {needed}")
    document = sybil.Sybil(parsers=[PythonCodeBlockParser(), SkipParser()]).parse(ROOT / name)
    document.namespace["have"] = lambda *modules: all(find_spec(module) for module in modules)
    for example in document.examples():
        try:
            example.evaluate()
        except unittest.SkipTest as reason:
            print(f"{name}:{example.line}: {reason}")


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command of ours, without what stands behind ``#``."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["lume-diff"]:
            yield words[1:]


@pytest.mark.parametrize("name", having(*COMMANDS))
def test_commands_exist(name: str) -> None:
    for words in (words for text in blocks(name, *COMMANDS) for words in commands(text)):
        command = typer.main.get_command(app)
        while words and hasattr(command, "commands"):
            names = words.pop(0).split("|")
            assert set(names) <= set(command.commands), names
            command = command.commands[names[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        asked = {word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
        assert asked <= known, f"{command.name} has no {asked - known}"


def test_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    asked = {found for name in DOCUMENTS for found in re.findall(r"`?\bmake ([a-z]+)`", (ROOT / name).read_text())}
    assert asked <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize("name", having("yaml", "toml"))
def test_files_are_well_formed(name: str) -> None:
    for text in blocks(name, "yaml"):
        assert yaml.safe_load(text)
    for text in blocks(name, "toml"):
        assert tomllib.loads(text)


def test_the_machine_file_has_no_mistake(tmp_path: Path) -> None:
    text = next(text for text in blocks("docs/how-to/machine-files.md", "yaml") if "stages:" in text)
    lattice = '{"root": "l", "elements": {"Q1": ["Quadrupole", {"length": 0.1}]}, "lattices": {"l": ["Q1"]}}'
    (tmp_path / "line.json").write_text(lattice)
    (tmp_path / "machine.yaml").write_text(text)
    assert check(tmp_path / "machine.yaml") == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    text = BLOCK.sub("", (ROOT / name).read_text(encoding="utf-8"))
    targets = [found["target"] for found in LINK.finditer(text)]
    local = [target for target in targets if not target.startswith(("http:", "https:", "mailto:"))]
    made = [target for target in local if set(MADE) & set(Path(target).parts)]
    assert [target for target in local if target not in made and not ((ROOT / name).parent / target).exists()] == []


def test_the_site_builds_without_a_warning(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    for needed in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(needed, reason="the site needs the extra docs: pip install lume-diff[docs]")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {"index.html", "api/generated/models.html", "explanations/black-boxes.html", "how-to/own-simulator.html"}
    assert {page for page in pages if not (tmp_path / page).exists()} == set()
    # A closed network shows it as any other: no script, style or font of another server.
    asked = {page.name: FETCHED.findall(page.read_text(encoding="utf-8")) for page in tmp_path.rglob("*.html")}
    assert {name: found for name, found in asked.items() if found} == {}
