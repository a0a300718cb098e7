"""ONNX Runtime sessions on the device that was asked for, and the truth about which one it became."""

import ctypes
import logging
from pathlib import Path

import onnxruntime

from pipeline.errors import DeviceError

logger = logging.getLogger(__name__)

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
FATAL_ONLY = 4


def open_session(path: Path, *, device: str, threads: int = 0) -> onnxruntime.InferenceSession:
    """Return a session whose first provider is the one that really runs the model.

    Args:
        path: an ONNX file.
        device: "cpu", "cuda", or "auto" (CUDA if it works, else the CPU with a warning).
        threads: CPU threads inside an operator; 0 takes all cores.

    Raises:
        DeviceError: "cuda" was asked for and does not work here; says why and what mends it.
    """
    if device == "cpu":
        return _session(path, [CPU], threads)
    try:
        return _cuda_session(path, threads)
    except DeviceError as error:
        if device == "cuda":
            raise
        logger.warning("SCORING ON THE CPU, not on a GPU: %s", error)
        return _session(path, [CPU], threads)


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


def _cuda_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    obstacle = cuda_obstacle()
    if obstacle:
        raise DeviceError(f"device cuda cannot be used: {obstacle}")
    onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
    try:
        session = _session(path, [(CUDA, {"arena_extend_strategy": "kSameAsRequested"}), CPU], threads)
    except Exception as error:  # ONNX Runtime raises plain exceptions of several kinds
        raise DeviceError(f"device cuda cannot be used: {_first_line(error)}; see `nvidia-smi`") from error
    # A session asked for CUDA falls back to the CPU with no more than a log line.
    if session.get_providers()[0] != CUDA:
        raise DeviceError(
            "device cuda cannot be used: ONNX Runtime could not start CUDA; check `nvidia-smi`, and that "
            "'onnxruntime-gpu[cuda,cudnn]' is installed with the libraries it needs, or use --device cpu"
        )
    return session


def _session(path: Path, providers: list[object], threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = FATAL_ONLY  # what matters is checked and said by us
    return onnxruntime.InferenceSession(path, options, providers=providers)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
