"""By what score to tell texts that belong to no class: probability, energy, or distance to the training encodings.

Run it from the project's root, on a workspace that trust.py has kept; it prints a Markdown row for each score:

    uv run python tests/benchmarks/trust.py clinc150 --keep /tmp/trust
    uv run python tests/benchmarks/strangers.py /tmp/trust/clinc150

A score is better the more texts of the classes it keeps where one in ten of the others is labelled, and the more of
the labels that are kept are right.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from pipeline.dataset.minibatches import TokenLists, plan_minibatches
from pipeline.dataset.token_set import TokenSet
from pipeline.models.bundle import Bundle
from pipeline.models.registry import Registry
from pipeline.models.write_bundle import load_classifier
from pipeline.training.ensemble import LSTM, NGRAM_LINEAR, as_probabilities, branch_logits
from pipeline.training.parallel import CorePool
from pipeline.workspace import Workspace

DATA = Path(__file__).parents[3] / "shared" / "data" / "clinc150"
NEIGHBOURS = 10
LABELLED_STRANGERS = 0.1


@dataclass(frozen=True)
class Seen:
    """What a model makes of some texts: the logits of each branch, their sum, the LSTM's encodings, the true class."""

    branches: dict[str, NDArray[np.float32]]
    logits: NDArray[np.float32]
    encodings: NDArray[np.float32]
    truth: NDArray[np.int64]

    @property
    def probabilities(self) -> NDArray[np.floating]:
        return as_probabilities(self.logits, multi_label=False)


def see(bundle: Bundle, file: str) -> Seen:
    model, table = load_classifier(bundle), pq.read_table(DATA / f"{file}.parquet")
    token_ids = bundle.tokenizer.encode(table["text"].combine_chunks()).token_ids
    tokens = TokenLists.of(token_ids)
    texts = TokenSet(table["id"].combine_chunks(), np.zeros(len(tokens), np.int32), tokens, np.eye(1, dtype=bool))
    with CorePool(torch.device("cpu")) as cores:
        branches = branch_logits(model, texts, cores)
    encodings = np.zeros((len(tokens), model.output.in_features), np.float32)
    read: list[torch.Tensor] = []
    model.output.register_forward_hook(lambda _module, inputs, _output: read.append(inputs[0]))
    with torch.inference_mode():
        for rows in plan_minibatches(tokens.lengths, batch_tokens=16_384):
            ids, lengths = (torch.from_numpy(array) for array in tokens.pad(rows))
            model.lstm_logits(ids, lengths.long())
            encodings[rows] = read.pop().numpy()
    numbers = {label: number for number, label in enumerate(bundle.labels)}
    truth = np.array([numbers.get(label, -1) for label in table["label"].to_pylist()])
    return Seen(branches, np.sum(list(branches.values()), axis=0), encodings, truth)


def energy(logits: NDArray[np.float32]) -> NDArray[np.floating]:
    """Return the negative energy of each text (Liu et al., "Energy-based Out-of-distribution Detection", 2020)."""
    highest = logits.max(axis=1)
    return highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))


def scores(train: Seen, texts: Seen) -> Iterator[tuple[str, NDArray[np.floating]]]:
    """Yield how much each text looks like one of the classes, by each score."""
    yield "highest probability", texts.probabilities.max(axis=1)
    yield "margin between the two highest", np.diff(np.sort(texts.probabilities, axis=1)[:, -2:], axis=1)[:, 0]
    yield "energy", energy(texts.logits)
    yield "highest logit", texts.logits.max(axis=1)
    for name in (LSTM, NGRAM_LINEAR):
        yield (
            f"highest probability, {name} alone",
            as_probabilities(texts.branches[name], multi_label=False).max(axis=1),
        )
    classes = np.unique(train.truth)
    means = np.stack([train.encodings[train.truth == number].mean(axis=0) for number in classes])
    shape = LedoitWolf().fit(train.encodings - means[np.searchsorted(classes, train.truth)])
    narrow = np.linalg.cholesky(shape.precision_)
    centres = NearestNeighbors(n_neighbors=1).fit(means @ narrow)
    yield "distance to the nearest class (Mahalanobis)", -centres.kneighbors(texts.encodings @ narrow)[0][:, 0]
    near = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine").fit(train.encodings)
    yield f"distance to {NEIGHBOURS} training texts (cosine)", -near.kneighbors(texts.encodings)[0].mean(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    bundle = Registry(Workspace(parser.parse_args().workspace)).find()
    train, known, strangers = (see(bundle, file) for file in ("train", "test", "oos_test"))
    right = known.logits.argmax(axis=1) == known.truth
    truth = np.repeat([1, 0], [len(known.truth), len(strangers.truth)])
    print("| score | AUROC | texts of the classes labelled, where 10 % of the others are | of these, right |")
    print("| --- | --- | --- | --- |")
    for (name, own), (_, others) in zip(scores(train, known), scores(train, strangers), strict=True):
        kept = own > np.quantile(others, 1 - LABELLED_STRANGERS)
        area = roc_auc_score(truth, np.concatenate([own, others]))
        print(f"| {name} | {area:.4f} | {kept.mean():.1%} | {right[kept].mean():.2%} |")


if __name__ == "__main__":
    main()
