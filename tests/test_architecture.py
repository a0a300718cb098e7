"""The direction of the house: deploy -> flows -> pipeline."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_work_knows_nothing_of_the_orchestrator() -> None:
    modules = list((ROOT / "pipeline").rglob("*.py"))
    assert len(modules) > 20
    offenders = [path.name for path in modules if imported(path) & {"prefect", "flows", "typer", "rich"}]
    assert offenders == []
