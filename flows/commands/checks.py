"""What is missing on this machine, and the command that mends it."""

import importlib.metadata
import sys
from dataclasses import dataclass

from flows.server.connection import check_configured
from pipeline.errors import ConfigError, WorkspaceError
from pipeline.models.session import cuda_obstacle
from pipeline.workspace import Workspace

SHOWN = ("prefect", "torch", "onnx", "pyarrow")


@dataclass(frozen=True)
class MachineCheck:
    ok: bool
    line: str


def check_machine(workspace: str) -> list[MachineCheck]:
    """Return a line for each thing a night needs."""
    return [_versions(), _runtime(), _gpu(), _workspace(workspace), _server()]


def _versions() -> MachineCheck:
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in SHOWN)
    return MachineCheck(True, f"Python {sys.version.split()[0]}, {libraries}")


def _runtime() -> MachineCheck:
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(installed) == 2:
        return MachineCheck(
            False,
            "onnxruntime and onnxruntime-gpu are both installed and break each other: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install this project again",
        )
    return MachineCheck(bool(installed), f"{installed[0]} {importlib.metadata.version(installed[0])}")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _gpu() -> MachineCheck:
    obstacle = cuda_obstacle()
    return MachineCheck(True, f"no GPU, scoring runs on the CPU: {obstacle}" if obstacle else "a GPU can be used")


def _workspace(path: str) -> MachineCheck:
    try:
        batches = Workspace(path).ensure_writable().batches()
    except WorkspaceError as error:
        return MachineCheck(False, str(error))
    return MachineCheck(True, f"workspace {path}: {len(batches)} batches")


def _server() -> MachineCheck:
    try:
        url = check_configured()
    except ConfigError as error:
        return MachineCheck(False, str(error))
    if not url:
        return MachineCheck(True, "no Prefect server configured: each command starts a temporary one")
    return MachineCheck(True, f"Prefect server at {url}")
