"""ONNX Runtime sessions on the device that was asked for, and the truth about which one it became."""

import ctypes
import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import onnxruntime

from pipeline.errors import DeviceError

logger = logging.getLogger(__name__)

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
FATAL_ONLY = 4
GPU_MEMORY_SHARE = 0.8  # of a GPU's memory; the rest is for cuDNN and for others
MIB = 1 << 20


@dataclass(frozen=True)
class Device:
    """What a model runs on, as the manifest tells it.

    Attributes:
        provider: ONNX Runtime's execution provider.
        name: the processor's or the GPU's name; "2 x ..." if there are several.
        driver: the GPU driver's version, None on a CPU.
        numbers: the GPUs used; empty on a CPU.
    """

    provider: str
    name: str
    driver: str | None = None
    numbers: tuple[int, ...] = ()

    @property
    def is_gpu(self) -> bool:
        return self.provider == CUDA


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver describes it."""

    number: int
    name: str
    driver: str
    memory_mib: int


def choose_scoring_device(requested: str) -> Device:
    """Return the device to run on: "cpu", "cuda", or "auto" (CUDA if it works, else the CPU with a warning).

    Raises:
        DeviceError: "cuda" was asked for and cannot work here; says why and what mends it.
    """
    obstacle = None if requested == "cpu" else cuda_obstacle()
    if requested == "cpu" or obstacle:
        if requested == "cuda":
            raise DeviceError(f"device cuda cannot be used: {obstacle}")
        if requested == "auto":
            logger.warning("SCORING ON THE CPU, not on a GPU: device cuda cannot be used: %s", obstacle)
        return Device(CPU, processor_name())
    found = gpus()
    names = sorted({gpu.name for gpu in found}) or ["unknown GPU"]
    count = f"{len(found)} x " if len(found) > 1 else ""
    driver = found[0].driver if found else None
    return Device(CUDA, count + ", ".join(names), driver, tuple(range(max(len(found), 1))))


def cuda_obstacle() -> str | None:
    """Return why CUDA cannot work here and what mends it, or None if nothing speaks against it."""
    if CUDA not in onnxruntime.get_available_providers():
        return (
            "this ONNX Runtime has no CUDA support; uninstall onnxruntime and install "
            "'onnxruntime-gpu[cuda,cudnn]' instead (both together break each other)"
        )
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (
            "no NVIDIA driver on this machine (libcuda.so.1 is missing); install the driver, give the "
            "container its GPU (--gpus all), or use --device cpu"
        )
    return None


def gpus() -> list[Gpu]:
    """Return the GPUs that this process may use, in CUDA's order; none if the driver's tool does not answer."""
    query = "name,driver_version,memory.total,uuid"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return visible_gpus(answer.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(listing: str, visible: str | None) -> list[Gpu]:
    """Return the GPUs of nvidia-smi's listing that CUDA_VISIBLE_DEVICES leaves, numbered as CUDA numbers them.

    Args:
        listing: a line "name, driver, MiB, uuid" for each GPU.
        visible: numbers or UUIDs with commas between; None for all.
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.strip()]
    if visible is not None:
        by_key = {key: row for number, row in enumerate(rows) for key in (str(number), row[3])}
        rows = [by_key[key.strip()] for key in visible.split(",") if key.strip() in by_key]
    return [Gpu(number, row[0], row[1], int(float(row[2]))) for number, row in enumerate(rows)]


@lru_cache
def processor_name() -> str:
    """Return the processor's name as the system tells it, and its cores."""
    linux = Path("/proc/cpuinfo")
    lines = linux.read_text(encoding="utf-8").splitlines() if linux.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.processor() or platform.machine())}, {usable_cores()} cores"


def usable_cores() -> int:
    """Return how many cores this process may use: a container has often fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_session(model: Path | bytes, device: Device, number: int = 0) -> onnxruntime.InferenceSession:
    """Return a session that really runs on a device, each call on its caller's thread alone.

    Args:
        model: an ONNX file, or what would stand in it.
        device: from `choose_device`.
        number: which of several GPUs.

    Raises:
        DeviceError: the model cannot run there; says why and what mends it.
    """
    if not device.is_gpu:
        return _session(model, [CPU])
    onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
    memory = next((gpu.memory_mib for gpu in gpus() if gpu.number == number), None)
    try:
        session = _session(model, [(CUDA, cuda_options(number, memory)), CPU])
    except Exception as error:  # ONNX Runtime raises plain exceptions of several kinds
        raise DeviceError(f"device cuda cannot be used: {_first_line(error)}; see `nvidia-smi`") from error
    # A session asked for CUDA falls back to the CPU with no more than a log line.
    if session.get_providers()[0] != CUDA:
        raise DeviceError(
            "device cuda cannot be used: ONNX Runtime could not start CUDA; check `nvidia-smi`, and that "
            "'onnxruntime-gpu[cuda,cudnn]' is installed with the libraries it needs, or use --device cpu"
        )
    check_placement(lstm_providers(session), CUDA)
    return session


def cuda_options(number: int, memory_mib: int | None) -> dict[str, str]:
    """Return the CUDA provider's options: exact single precision, and memory as it is needed up to a limit."""
    options = {
        "device_id": str(number),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",  # single precision means single precision; who wants speed takes fp16
    }
    if memory_mib is not None:
        options["gpu_mem_limit"] = str(int(memory_mib * GPU_MEMORY_SHARE) * MIB)
    return options


def lstm_providers(session: onnxruntime.InferenceSession) -> dict[str, str]:
    """Return on which provider each LSTM node of a session runs."""
    return {
        node.name: str(group.ep_name)
        for group in session.get_provider_graph_assignment_info()
        for node in group.get_nodes()
        if "LSTM" in node.op_type
    }


def check_placement(providers: Mapping[str, str], requested: str) -> None:
    """Fail unless all LSTM nodes run where they should.

    Raises:
        DeviceError: a node was left to another provider, which would be slow without a word.
    """
    strays = [f"{name} on {provider}" for name, provider in providers.items() if provider != requested]
    if strays or not providers:
        raise DeviceError(
            f"the LSTM does not run on {requested} ({', '.join(strays) or 'no LSTM found'}); "
            "choose another --precision, or use --device cpu"
        )


def _session(model: Path | bytes, providers: list[object]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # batches run side by side, which wastes less than sharing one out
    options.log_severity_level = FATAL_ONLY  # what matters is checked and said by us
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return onnxruntime.InferenceSession(model, options, providers=providers)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
