"""The proof that an exported graph is the trained model."""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from pipeline.dataset.token_set import TokenSet
from pipeline.errors import ParityError
from pipeline.models.engine import HostRunner
from pipeline.training.model import Classifier, packed_logits

TOLERANCE = 1e-5
# ONNX Runtime's CPU kernels approximate tanh and the sigmoid, and an unstable model magnifies any rounding: measured
# on such models, the kernels are 7 to 12 times as far from double precision as PyTorch's own single precision. A wrong
# graph is off by far more, and nothing above the ceiling passes.
ROUNDING_FACTOR = 30
CEILING = 1e-3
MINIBATCH_ROWS = 32


@dataclass(frozen=True)
class Parity:
    """How much the ONNX graph and PyTorch's packed model differ on ragged minibatches.

    Attributes:
        texts: how many were run.
        largest_difference: of all probabilities.
        rounding: the largest difference between single and double precision in PyTorch.
        tolerance: the largest difference allowed.
        equal_labels: share of texts with the same most probable class.
    """

    texts: int
    largest_difference: float
    rounding: float
    tolerance: float
    equal_labels: float

    def as_dict(self) -> dict[str, float | int]:
        """Return the content of parity.json."""
        return asdict(self)


def prove_parity(model: Classifier, path: Path, texts: TokenSet, *, sample: int = 512) -> Parity:
    """Run the same ragged minibatches through the exported file and through packed PyTorch.

    Args:
        model: the trained model, on the CPU.
        path: the exported file of the bundle.
        texts: texts to run; a sample spread evenly over all lengths is used.
        sample: most texts to run.

    Raises:
        ParityError: a probability differs by more than 1e-5, and by more than single precision explains.
    """
    by_length = np.argsort(texts.tokens.lengths, kind="stable")
    rows = by_length[np.linspace(0, len(by_length) - 1, min(sample, len(by_length))).astype(int)]
    rows = np.random.default_rng(0).permutation(rows)  # ragged on purpose
    minibatches = [texts.tokens.pad(some) for some in np.array_split(rows, max(1, len(rows) // MINIBATCH_ROWS))]
    model = model.cpu().eval()
    runner = HostRunner(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]))
    unknown = None if model.wide is None else model.wide.unknown_rows(texts.unknown_words)
    rows_of_words = None if unknown is None else unknown.numpy()
    exported = np.concatenate([runner.run(ids, lengths, rows_of_words) for ids, lengths in minibatches])
    trained = _packed_probabilities(model, minibatches, unknown)
    exact = _packed_probabilities(copy.deepcopy(model).double(), minibatches, unknown)
    rounding = float(np.abs(trained - exact).max())
    parity = Parity(
        texts=len(rows),
        largest_difference=float(np.abs(exported - trained).max()),
        rounding=rounding,
        tolerance=max(TOLERANCE, min(CEILING, ROUNDING_FACTOR * rounding)),
        equal_labels=float(np.mean(exported.argmax(axis=1) == trained.argmax(axis=1))),
    )
    if not parity.largest_difference <= parity.tolerance:  # NaN fails too
        raise ParityError(
            f"the exported graph differs from the trained model by {parity.largest_difference:.2e} "
            f"(at most {parity.tolerance:.2e} is allowed)"
        )
    return parity


@torch.no_grad()
def _packed_probabilities(
    model: Classifier, minibatches: list[tuple[np.ndarray, np.ndarray]], unknown: torch.Tensor | None
) -> np.ndarray:
    """Return probabilities [texts, classes] in the model's own precision."""
    return np.concatenate(
        [
            model.probabilities(
                packed_logits(model, torch.from_numpy(ids), torch.from_numpy(lengths.astype(np.int64)), unknown)
            ).numpy()
            for ids, lengths in minibatches
        ]
    )
