"""The floor plan: imports go down only, wings stay small, and light wings stay free of heavy libraries."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_MODULES = 15  # in a folder

# The order in which a document passes through the wings; a wing imports those of a lower rank, and itself.
RANKS = {
    "ground": 0,
    "ingest": 1,
    "metrics": 1,
    "dataset": 2,
    "training": 3,
    "models": 4,
    "scoring": 5,
    "promotion": 6,
    "nights": 6,
    "review": 7,
}
NOT_BELOW = {("metrics", "ingest"), ("dataset", "metrics")}  # neighbours that do not know each other
TORCH = {
    "pipeline.training",
    "pipeline.models.onnx_graph",
    "pipeline.models.parity",
    "pipeline.models.write_bundle",
    "pipeline.promotion",
    "pipeline.review.label_errors",
}
# Runs the encoders of others, which training learns from; the engines of `models` are for models of ours.
FOREIGN_ONNX = {"pipeline.training.teach.onnx_backend"}
LIGHT = (
    "pipeline.scoring.score",
    "pipeline.scoring.benchmark",
    "pipeline.models.registry",
    "pipeline.models.bundle",
    "pipeline.nights.publish",
    "pipeline.nights.hold",
    "pipeline.nights.summary",
    "pipeline.review.export",
    "pipeline.training.tune.search_space",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for folder in ("pipeline", "flows") for path in (ROOT / folder).rglob("*.py")}


def run_time_nodes(node: ast.AST, *, lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that run; with `lazy` also those inside functions. What only type checkers read is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from run_time_nodes(child, lazy=lazy)


def imported(name: str, *, lazy: bool) -> set[str]:
    """Return the modules that a module imports: ours by their full name, others as they are written."""
    names: set[str] = set()
    for node in run_time_nodes(ast.parse(MODULES[name].read_text(encoding="utf-8")), lazy=lazy):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (full & MODULES.keys()) or {node.module}
    return names


def wing(name: str) -> str:
    """Return the wing of a module of `pipeline`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / "pipeline" / parts[1]).is_dir() else "ground"


def test_every_wing_has_its_rank() -> None:
    assert {wing(name) for name in MODULES if name.startswith("pipeline.")} == RANKS.keys()


@pytest.mark.parametrize("library", ["prefect", "flows", "typer", "rich"])
def test_the_work_knows_nothing_of_the_orchestrator(library: str) -> None:
    offenders = [
        name
        for name in MODULES
        if name.startswith("pipeline") and any(one.split(".")[0] == library for one in imported(name, lazy=True))
    ]
    assert offenders == []


def test_imports_go_down_only() -> None:
    """Also those inside functions: an import that is made late still ties two wings together."""
    offenders = [
        f"{name} imports {other}"
        for name in MODULES
        if name.startswith("pipeline.")
        for other in imported(name, lazy=True)
        if other.startswith("pipeline.")
        and (here := wing(name)) != (there := wing(other))
        and (RANKS[there] >= RANKS[here] or (here, there) in NOT_BELOW)
    ]
    assert offenders == []


def test_no_import_runs_in_a_circle() -> None:
    graph = {name: imported(name, lazy=False) & MODULES.keys() for name in MODULES}
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in finished:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def test_no_folder_holds_more_modules_than_a_reader_takes_in() -> None:
    folders = {path.parent for path in MODULES.values()}
    assert {str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > MOST_MODULES} == {}


def test_torch_is_imported_where_models_are_trained_or_exported_only() -> None:
    offenders = [
        name
        for name in MODULES
        if any(one.split(".")[0] in ("torch", "safetensors") for one in imported(name, lazy=False))
        and not any(name == place or name.startswith(f"{place}.") for place in TORCH)
    ]
    assert offenders == []


def test_onnxruntime_is_imported_in_models_and_above_only() -> None:
    offenders = [
        name
        for name in MODULES
        if name.startswith("pipeline.")
        and RANKS[wing(name)] < RANKS["models"]
        and name not in FOREIGN_ONNX
        and any(one.split(".")[0] == "onnxruntime" for one in imported(name, lazy=True))
    ]
    assert offenders == []


def test_scoring_and_publishing_run_without_pytorch() -> None:
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    program += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", program, *LIGHT], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert {"torch", "sklearn", "matplotlib", "optuna", "prefect", "cleanlab"} & set(loaded.stdout.split()) == set()
