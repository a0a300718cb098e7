"""Choice of the scoring device, and ONNX Runtime sessions that are checked to run on it."""

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
GPU_MEMORY_SHARE = 0.8  # of a GPU's memory; cuDNN and other processes get the remainder
MIB = 1 << 20


@dataclass(frozen=True)
class Device:
    """The device a model runs on, as the labels manifest records it.

    Attributes:
        provider: ONNX Runtime's execution provider.
        name: the processor's or the GPU's name; "2 x ..." for two GPUs.
        driver: the GPU driver's version, None on a CPU.
        numbers: the GPUs used; empty on a CPU.
    """

    provider: str
    name: str
    driver: str | None = None
    numbers: tuple[int, ...] = ()

    @property
    def is_gpu(self) -> bool:
        """Whether CUDA runs the model."""
        return self.provider == CUDA


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it."""

    number: int
    name: str
    driver: str
    memory_mib: int


def choose_scoring_device(requested: str) -> Device:
    """Return the device to run on: "cpu", "cuda", or "auto" (CUDA if it works, else the CPU with a warning).

    Raises:
        DeviceError: "cuda" was requested and cannot work here; the message says why and what to do.
    """
    obstacle = None if requested == "cpu" else cuda_obstacle()
    if requested == "cpu" or obstacle:
        if requested == "cuda":
            raise DeviceError(f"device cuda cannot be used: {obstacle}")
        if requested == "auto":
            logger.warning("SCORING ON THE CPU, not on a GPU: device cuda cannot be used: %s", obstacle)
        return Device(CPU, processor_name())
    available = gpus()
    names = sorted({gpu.name for gpu in available}) or ["unknown GPU"]
    count = f"{len(available)} x " if len(available) > 1 else ""
    driver = available[0].driver if available else None
    return Device(CUDA, count + ", ".join(names), driver, tuple(range(max(len(available), 1))))


def cuda_obstacle() -> str | None:
    """Return why CUDA cannot work here and what to do, or None if no obstacle is known."""
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
    """Return the GPUs that this process may use, in CUDA's order; none if `nvidia-smi` fails."""
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
    """Return the GPUs of nvidia-smi's listing that CUDA_VISIBLE_DEVICES allows, numbered as CUDA numbers them.

    Args:
        listing: a line "name, driver, MiB, uuid" for each GPU.
        visible: numbers or UUIDs, comma-separated; None for all.
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.strip()]
    if visible is not None:
        by_key = {key: row for number, row in enumerate(rows) for key in (str(number), row[3])}
        rows = [by_key[key.strip()] for key in visible.split(",") if key.strip() in by_key]
    return [Gpu(number, row[0], row[1], int(float(row[2]))) for number, row in enumerate(rows)]


@lru_cache
def processor_name() -> str:
    """Return the processor's name and the number of usable cores."""
    cpuinfo = Path("/proc/cpuinfo")  # on Linux
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {usable_cores()} cores"


def usable_cores() -> int:
    """Return how many cores this process may use; in a container often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_session(model: Path | bytes, device: Device, number: int = 0) -> onnxruntime.InferenceSession:
    """Return a session that is checked to run on a device; a call runs on its caller's thread alone.

    Args:
        model: an ONNX file, or its content.
        device: from `choose_scoring_device`.
        number: of the GPU.

    Raises:
        DeviceError: the model cannot run there; the message says why and what to do.
    """
    if not device.is_gpu:
        return _session(model, [CPU])
    onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
    memory = next((gpu.memory_mib for gpu in gpus() if gpu.number == number), None)
    try:
        session = _session(model, [(CUDA, cuda_options(number, memory)), CPU])
    except Exception as error:  # ONNX Runtime has no common class of errors
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DeviceError(f"device cuda cannot be used: {reason}; see `nvidia-smi`") from error
    # ONNX Runtime falls back to the CPU with only a log line.
    if session.get_providers()[0] != CUDA:
        raise DeviceError(
            "device cuda cannot be used: ONNX Runtime could not start CUDA; check `nvidia-smi`, and that "
            "'onnxruntime-gpu[cuda,cudnn]' is installed with the libraries it needs, or use --device cpu"
        )
    check_placement(lstm_providers(session), CUDA)
    return session


def cuda_options(number: int, memory_mib: int | None) -> dict[str, str]:
    """Return the CUDA provider's options: true single precision, and memory on demand up to a limit."""
    options = {
        "device_id": str(number),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",  # fp32 means single precision; fp16 is the fast variant
    }
    if memory_mib is not None:
        options["gpu_mem_limit"] = str(int(memory_mib * GPU_MEMORY_SHARE) * MIB)
    return options


def lstm_providers(session: onnxruntime.InferenceSession) -> dict[str, str]:
    """Return the execution provider of each LSTM node of a session, by node name."""
    return {
        node.name: str(group.ep_name)
        for group in session.get_provider_graph_assignment_info()
        for node in group.get_nodes()
        if "LSTM" in node.op_type
    }


def check_placement(providers: Mapping[str, str], requested: str) -> None:
    """Check that all LSTM nodes run on the requested provider.

    Raises:
        DeviceError: a node runs on another provider, which would be silently slow.
    """
    misplaced = [f"{name} on {provider}" for name, provider in providers.items() if provider != requested]
    if misplaced or not providers:
        raise DeviceError(
            f"the LSTM does not run on {requested} ({', '.join(misplaced) or 'no LSTM found'}); "
            "choose another --variant, or use --device cpu"
        )


def _session(model: Path | bytes, providers: list[object]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a minibatch on each core is faster than one shared by all
    options.log_severity_level = FATAL_ONLY  # we check the placement ourselves
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return onnxruntime.InferenceSession(model, options, providers=providers)
