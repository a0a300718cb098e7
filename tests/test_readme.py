"""What the README shows is what there is."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from flows.cli import app
from pipeline.schemas import LABELS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"uv run nightlabel ([^#\n]+)", README)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_parses(command: str) -> None:
    """Verbs, options and values exist; nothing is run."""
    parser, words = typer.main.get_command(app), shlex.split(command)
    while hasattr(parser, "commands"):
        parser = parser.commands[words.pop(0)]
    parser.make_context("nightlabel", words)


def test_the_table_of_the_house_names_every_wing_once() -> None:
    table = README.split("## Code structure")[1]
    listed = re.findall(r"^\| `((?:flows|pipeline)/[^`]*)` \|", table, re.MULTILINE)
    packages = [path.parent.relative_to(ROOT) for path in [*ROOT.glob("*/__init__.py"), *ROOT.glob("*/*/__init__.py")]]
    assert sorted(listed) == sorted(f"{package}/" for package in packages)


def test_the_public_names_of_the_house_are_there() -> None:
    for folder, names in re.findall(r"^\| `(pipeline/[^`]*)` \|[^|]*\| `([^`]+)` \|", README, re.MULTILINE):
        source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py"))
        for name in names.split(", "):
            assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), f"{folder}: {name}"


def test_the_table_of_results_has_the_columns_of_the_schema() -> None:
    table = README.split("## What comes out")[1].split("```")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == LABELS.names
