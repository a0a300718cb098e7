"""Likely label errors: training labels that a model which was not trained on them confidently disagrees with.

The model is the linear branch alone (see `pipeline.training.linear.branches`), cross-validated in five folds: the
whole model would take five trainings, and finds about the same. Confident learning (Northcutt et al. 2021, the
library cleanlab) decides which disagreements are errors of the labels rather than of the model.

Texts of the validation and test split are never exported: correcting only those that a model gets wrong would make its
measured quality look better than it is.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import stored_recipe
from pipeline.dataset.corpus import TRAIN, Corpus
from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.token_set import TokenSet
from pipeline.dataset.tokenizer import Tokenizer
from pipeline.errors import ModelError, ReviewError
from pipeline.models.bundle import Bundle
from pipeline.promotion.test_set import corpus_of
from pipeline.schemas import join_labels
from pipeline.training.ensemble import as_probabilities
from pipeline.training.linear.branches import fit_ngram_linear
from pipeline.workspace import Workspace

FOLDS = 5
TINY = 1e-12
FEWEST_TEXTS = 50  # below, a fold is too small to tell


def likely_label_errors(workspace: Workspace, bundle: Bundle) -> Iterator[dict[str, Any]]:
    """Yield the training texts whose label is likely wrong, the most suspicious first, as in `REVIEW_REQUESTS`.

    `confidence` is the probability of the label, `second` the class that is likelier; multi-label, `second` is the
    class that is likeliest missing or wrong, and `confidence` the probability that it is neither.

    Raises:
        ReviewError: the model's training data is gone, or too little.
    """
    try:
        corpus = corpus_of(workspace, bundle)
    except ModelError as error:
        raise ReviewError(f"{error}; leave --suspicious out") from error
    multi_label = corpus.multi_label
    texts, rows = _training_texts(corpus, bundle.tokenizer)
    if len(texts) < FEWEST_TEXTS:
        raise ReviewError(
            f"{len(texts):,} training texts are too few to tell which labels are wrong (at least {FEWEST_TEXTS}); "
            "leave --suspicious out"
        )
    buckets = stored_recipe(bundle.settings["recipe"]).model.wide_buckets
    probabilities = cross_validated(texts, bundle.tokenizer.vocabulary, buckets, multi_label=multi_label)
    for text in label_issues(texts, probabilities, multi_label=multi_label).tolist():
        members = corpus.label_sets[texts.label_ids[text]]
        names = [corpus.labels[number] for number in np.flatnonzero(members).tolist()]
        if multi_label:
            confidence = self_confidence(probabilities[text], members)
            second = int(confidence.argmin())
        else:
            confidence = probabilities[text][members]
            second = int(np.where(members, -1.0, probabilities[text]).argmax())
        yield {
            **_read_row(corpus, int(rows[text])),
            "label": join_labels(names) if multi_label else names[0],
            "several": multi_label,
            "second": corpus.labels[second],
            "confidence": float(confidence.min()),
            "status": "labelled",
            "why": "suspicious",
        }


def _training_texts(corpus: Corpus, tokenizer: Tokenizer) -> tuple[TokenSet, NDArray[np.intp]]:
    """Return the training texts that have tokens, and the row of each in the corpus."""
    doc_ids, lists, label_ids, non_empty = [], [], [np.empty(0, np.int32)], [np.empty(0, bool)]
    for part_ids, texts, part_label_ids in corpus.read(TRAIN):
        encoded = tokenizer.encode(texts)
        has_tokens = encoded.lengths > 0
        doc_ids.append(part_ids.filter(pa.array(has_tokens)))
        lists.append(encoded.token_ids.filter(pa.array(has_tokens)))
        label_ids.append(part_label_ids[has_tokens])
        non_empty.append(has_tokens)
    tokens = TokenLists.of(pa.concat_arrays(lists) if lists else pa.array([], pa.list_(pa.int32())))
    rows = np.flatnonzero(corpus.splits == TRAIN)[np.concatenate(non_empty)]
    ids = pa.chunked_array(doc_ids, pa.string())
    groups = None if corpus.groups is None else corpus.groups[rows]
    return TokenSet(ids, np.concatenate(label_ids), tokens, corpus.label_sets, groups=groups), rows


def cross_validated(
    texts: TokenSet, vocabulary: pa.StringArray, buckets: int, *, multi_label: bool = False, seed: int = 0
) -> NDArray[np.float64]:
    """Return the probabilities of a cross-validated linear model, float64 [texts, classes].

    Args:
        texts: labelled ones; the folds divide no group, unless all examples of a class would be in one fold.
        vocabulary: the words of their tokenizer.
        buckets: most hash buckets for word pairs.
        multi_label: whether a document can have several classes, or none.
        seed: of the folds.
    """
    folds = stratified_folds(texts.label_ids, FOLDS, seed)
    if texts.groups is not None:
        by_group = stratified_folds(texts.label_ids, FOLDS, seed, texts.groups)
        members = texts.targets() > 0
        alone = [np.ptp(by_group[of_class]) == 0 for of_class in members.T if np.count_nonzero(of_class) > 1]
        folds = folds if any(alone) else by_group  # of a class that the other folds lack every label looks wrong
    fitted = fit_ngram_linear(texts, vocabulary, buckets, folds, multi_label=multi_label)
    return as_probabilities(fitted.logits.astype(np.float64), multi_label).astype(np.float64)


def stratified_folds(
    label_ids: NDArray[np.integer], folds: int, seed: int, groups: NDArray[np.integer] | None = None
) -> NDArray[np.intp]:
    """Return the fold of each text, [texts]: each class is spread evenly over the folds.

    Args:
        label_ids: [texts].
        folds: how many.
        seed: of the order.
        groups: [texts], equal for texts of one fold; such a group counts once, for the class of its first text.
    """
    if groups is not None:
        _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
        return stratified_folds(label_ids[first], folds, seed)[numbers]
    order = np.random.default_rng(seed).permutation(len(label_ids))
    order = order[np.argsort(label_ids[order], kind="stable")]
    assigned = np.empty(len(label_ids), dtype=np.intp)
    assigned[order] = np.arange(len(label_ids)) % folds
    return assigned


def label_issues(texts: TokenSet, probabilities: NDArray[np.float64], *, multi_label: bool = False) -> NDArray[np.intp]:
    """Return the texts whose label is likely wrong, the most suspicious first.

    Multi-label, they are ranked by how much likelier the likeliest missing class is than the least likely one of the
    label: on labels of 28 classes of which 3 % were swapped, 42 % of the first 50 were such ones, and 6 % in cleanlab's
    own order.

    Args:
        texts: labelled ones.
        probabilities: [texts, classes], of a model that was not trained on them.
        multi_label: whether a document can have several classes, or none.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.multilabel_classification.filter import find_label_issues as find_multi_label_issues

    options = {"return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes with few examples: nobody could act on them
        if not multi_label:
            classes, labels = np.unique(texts.label_ids, return_inverse=True)
            of_classes = probabilities[:, classes]
            of_classes = of_classes / of_classes.sum(axis=1, keepdims=True)
            issues = np.asarray(find_label_issues(labels, of_classes, **options), dtype=np.intp)
            return issues[of_classes[issues].argmax(axis=1) != labels[issues]]
        label_lists = [np.flatnonzero(texts.label_sets[label_id]).tolist() for label_id in texts.label_ids]
        issues = np.asarray(find_multi_label_issues(label_lists, probabilities, **options), dtype=np.intp)
    members, probabilities = texts.label_sets[texts.label_ids][issues], probabilities[issues]
    least_likely = np.where(members, probabilities, 1.0).min(axis=1)
    missing = np.where(members, 0.0, probabilities).max(axis=1)
    order = np.argsort(np.log(np.maximum(least_likely, TINY)) - np.log(np.maximum(missing, TINY)), kind="stable")
    doubted = self_confidence(probabilities, members).min(axis=1) < 0.5
    ranked: NDArray[np.intp] = issues[order][doubted[order]]
    return ranked


def self_confidence(probabilities: NDArray[np.float64], members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the probability that a label is right about each class, [..., classes]: to have it, or not to."""
    return np.where(members, probabilities, 1 - probabilities)


def _read_row(corpus: Corpus, row: int) -> dict[str, Any]:
    """Return batch, doc_id, text and content_hash of a row of a corpus."""
    for batch in corpus.batches:
        for path, part in zip(batch.parts, batch.manifest["parts"], strict=True):
            if row < part["rows"]:
                columns = ["doc_id", "text", "content_hash"]
                table = pq.read_table(path, columns=columns, partitioning=None).slice(row, 1)
                return {"batch": batch.id, **table.to_pylist()[0]}
            row -= part["rows"]
    raise AssertionError("a corpus has no such row")
