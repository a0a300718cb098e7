"""All that only a GPU can show, in one run: parity, fp16 against fp32, the benchmark, and PyTorch's cuDNN beside it.

WORKSPACE has a batch and a model trained by this version. `pipeline/` is all it needs: no Prefect, no network.

    python tests/benchmarks/gpu.py WORKSPACE --batch test
    python tests/benchmarks/gpu.py WORKSPACE --batch test --device cpu    # the same steps, int8 instead of fp16
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.config import ScoringConfig
from pipeline.dataset.minibatches import TokenLists
from pipeline.metrics.classification import decide
from pipeline.models.bundle import Bundle
from pipeline.models.engine import Engine, temporary_engine
from pipeline.models.quantization import agreement_with_fp32
from pipeline.models.variants import VARIANT_DEVICES
from pipeline.models.write_bundle import load_classifier
from pipeline.scoring.benchmark import ROWS, bench
from pipeline.scoring.benchmark_subject import take_rows, workspace_subject
from pipeline.scoring.labels import read_documents
from pipeline.scoring.score import unique_texts
from pipeline.workspace import Batch, Workspace

Batches = Sequence[tuple[np.ndarray, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--batch", required=True)
    parser.add_argument("--model")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    workspace = Workspace(options.workspace)
    subject = workspace_subject(workspace, options.batch, options.model)
    bundle, device = subject.bundle, options.device
    fewer_bits = next(precision for precision, where in VARIANT_DEVICES.items() if where == device)
    with tempfile.TemporaryDirectory() as folder:
        tokens = tokens_of(take_rows(subject.batch, Path(folder), options.rows), bundle)
    found: dict[str, Any] = {"rows": len(tokens), "tokens": int(tokens.lengths.sum())}
    on_cpu, _ = run(bundle, "fp32", "cpu", tokens)
    limits = bundle.thresholds
    for precision in ("fp32", fewer_bits):
        probabilities, found[f"{precision} alone, tokens/s"] = run(bundle, precision, device, tokens, options.rounds)
        facts = asdict(
            agreement_with_fp32(on_cpu, probabilities, decide(on_cpu, limits), limits, speed=1.0, device=device)
        )
        found[f"{precision} on {device} against fp32 on the cpu"] = {
            name: facts[name] for name in ("equal_labels", "equal_clear_labels", "largest_change")
        }
    half = device == "cuda"
    found[f"PyTorch {'cuDNN fp16' if half else 'fp32'}, tokens/s"] = pytorch(bundle, device, tokens, options.rounds)
    config = ScoringConfig(device=device)
    for precision in ("fp32", fewer_bits):
        settings = config.model_copy(update={"variant": precision})
        found[f"bench {precision}"] = bench(subject, settings, rows=options.rows, rounds=options.rounds, say=print)
    print(json.dumps(found, indent=2))


def tokens_of(batch: Batch, bundle: Bundle) -> TokenLists:
    """Return the token ids of all texts that have any."""
    lists = []
    for part in batch.manifest["parts"]:
        texts, _, _ = unique_texts(read_documents(batch.path / part["file"], part))
        lists.append(bundle.tokenizer.encode(texts).token_ids)
    tokens = TokenLists.of(pa.concat_arrays(lists))
    non_empty = tokens.lengths > 0
    return TokenLists(tokens.values, tokens.starts[non_empty], tokens.lengths[non_empty])


def run(bundle: Bundle, precision: str, device: str, tokens: TokenLists, rounds: int = 1) -> tuple[np.ndarray, float]:
    """Return the probabilities [texts, classes], and the median tokens/s of the product's own engine."""
    seconds = []
    with temporary_engine(bundle.model_path(precision), device=device) as engine:
        result = engine.probabilities(tokens)  # the first time shapes are planned
        for _ in range(rounds):
            started = time.perf_counter()
            engine.probabilities(tokens)
            seconds.append(time.perf_counter() - started)
    return result, float(tokens.lengths.sum()) / statistics.median(seconds)


@torch.inference_mode()
def pytorch(bundle: Bundle, device: str, tokens: TokenLists, rounds: int) -> float:
    """Return the median tokens/s of PyTorch on the same batches, in half precision on CUDA."""
    with temporary_engine(bundle.onnx_path, device=device) as engine:
        batches = prepared(engine, tokens)
    model = load_classifier(bundle).to(device)
    model = model.half() if device == "cuda" else model
    seconds = []
    for _ in range(rounds + 1):  # the first round warms up
        started = time.perf_counter()
        for token_ids, lengths in batches:
            inputs = torch.from_numpy(token_ids).long().to(device), torch.from_numpy(lengths).long().to(device)
            model.probabilities(model(*inputs).float()).cpu()
        seconds.append(time.perf_counter() - started)
    return float(tokens.lengths.sum()) / statistics.median(seconds[1:])


def prepared(engine: Engine, tokens: TokenLists) -> Batches:
    return [tokens.pad(rows) for rows in engine.plan(tokens.lengths)]


if __name__ == "__main__":
    main()
