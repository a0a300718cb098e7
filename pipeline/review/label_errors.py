"""Training labels that are likely wrong: those that a model which has not seen them confidently disagrees with.

The model is the linear branch alone (see `pipeline.training.linear.fit_ngram_linear`), fitted five times on four
fifths of the training texts: the whole model would take five trainings, and tells about the same. Which of its
disagreements are errors of the labels rather than of the model is decided by confident learning (Northcutt et al.
2021, the library cleanlab).

Texts of the validation and test split are never asked about: to mend only those that a model gets wrong would make its
measured quality look better than it is.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pipeline.config import stored_recipe
from pipeline.dataset.corpus import TRAIN, Corpus
from pipeline.dataset.minibatches import TokenLists, plan_minibatches
from pipeline.dataset.token_cache import TokenSet
from pipeline.dataset.tokenizer import Tokenizer
from pipeline.errors import ModelError, ReviewError
from pipeline.models.bundle import Bundle
from pipeline.promotion.test_set import corpus_of
from pipeline.schemas import join_labels
from pipeline.training.ensemble import NGRAM_LINEAR, PRIOR_WEIGHTS, as_probabilities, best_weights
from pipeline.training.linear import BATCH_TOKENS, FOLDS, fit_ngram_linear
from pipeline.workspace import Workspace

TINY = 1e-12
FEWEST_TEXTS = 50  # of fewer, a fifth left out tells nothing


def likely_label_errors(workspace: Workspace, bundle: Bundle) -> Iterator[dict[str, Any]]:
    """Yield the training texts whose label is likely wrong, the most suspicious first, as in
    `pipeline.schemas.REVIEW_REQUESTS`.

    `confidence` is the probability of the label that stands, `second` the class that is likelier; where documents can
    have several labels, `second` is the class that is likeliest missing or too many, and `confidence` that it is not.

    Raises:
        ReviewError: what the model learnt from is gone, or too little.
    """
    corpus = _corpus(workspace, bundle)
    texts, rows = _training_texts(corpus, bundle.tokenizer)
    if len(texts) < FEWEST_TEXTS:
        raise ReviewError(
            f"{len(texts):,} training texts are too few to tell which labels are wrong (at least {FEWEST_TEXTS}); "
            "leave --suspicious out"
        )
    recipe = stored_recipe(bundle.settings["recipe"])
    probabilities = cross_validated(
        texts, bundle.tokenizer.size, recipe.model.wide_buckets, multi_label=corpus.multi_label
    )
    for place in label_issues(texts, probabilities, multi_label=corpus.multi_label).tolist():
        likelier, confidence = _against(
            probabilities[place], corpus.label_sets[texts.label_ids[place]], corpus.multi_label
        )
        yield {
            **_read(corpus, int(rows[place])),
            "label": _name(corpus, int(texts.label_ids[place])),
            "several": corpus.multi_label,
            "second": corpus.labels[likelier],
            "confidence": confidence,
            "status": "labelled",
            "why": "suspicious",
        }


def _corpus(workspace: Workspace, bundle: Bundle) -> Corpus:
    try:
        return corpus_of(workspace, bundle)
    except ModelError as error:
        raise ReviewError(f"{error}; leave --suspicious out") from error


def _training_texts(corpus: Corpus, tokenizer: Tokenizer) -> tuple[TokenSet, NDArray[np.intp]]:
    """Return the training texts that have words, and the row of each in the corpus."""
    ids, lists, label_ids, non_empty = [], [], [np.empty(0, np.int32)], [np.empty(0, bool)]
    for doc_ids, texts, own in corpus.read(TRAIN):
        encoded = tokenizer.encode(texts)
        there = encoded.lengths > 0
        ids.append(doc_ids.filter(pa.array(there)))
        lists.append(encoded.token_ids.filter(pa.array(there)))
        label_ids.append(own[there])
        non_empty.append(there)
    tokens = TokenLists.of(pa.concat_arrays(lists) if lists else pa.array([], pa.list_(pa.int32())))
    rows = np.flatnonzero(corpus.splits == TRAIN)[np.concatenate(non_empty)]
    doc_ids = pa.chunked_array(ids, pa.string())
    return TokenSet(doc_ids, np.concatenate(label_ids), tokens, corpus.label_sets), rows


def cross_validated(
    texts: TokenSet, vocabulary_size: int, buckets: int, *, multi_label: bool = False, seed: int = 0
) -> NDArray[np.float64]:
    """Return what a linear model says of texts that it has not learnt from, probabilities [texts, classes].

    Args:
        texts: labelled ones.
        vocabulary_size: ids there are.
        buckets: rows for word pairs.
        multi_label: whether a document can have several classes, or none.
        seed: which texts stand together.
    """
    folds = stratified_folds(texts.label_ids, FOLDS, seed)
    logits = np.zeros((len(texts), texts.classes), dtype=np.float32)
    for fold in range(FOLDS):
        held_out = np.flatnonzero(folds == fold)
        seen = replace(texts, label_ids=np.where(folds == fold, -1, texts.label_ids))
        wide = fit_ngram_linear(seen, vocabulary_size, buckets, multi_label=multi_label)
        with torch.inference_mode():
            for batch in plan_minibatches(texts.tokens.lengths[held_out], batch_tokens=BATCH_TOKENS):
                rows = held_out[batch]
                logits[rows] = wide(torch.from_numpy(texts.tokens.pad(rows)[0])).numpy()
    (weight,) = best_weights([logits], texts.targets(), [PRIOR_WEIGHTS[NGRAM_LINEAR]], multi_label)
    return as_probabilities(logits.astype(np.float64) * weight, multi_label).astype(np.float64)


def stratified_folds(label_ids: NDArray[np.integer], folds: int, seed: int) -> NDArray[np.intp]:
    """Return the fold of each text, [texts]: each class is spread over all of them, as far as it goes."""
    order = np.random.default_rng(seed).permutation(len(label_ids))
    order = order[np.argsort(label_ids[order], kind="stable")]
    found = np.empty(len(label_ids), dtype=np.intp)
    found[order] = np.arange(len(label_ids)) % folds
    return found


def label_issues(texts: TokenSet, probabilities: NDArray[np.float64], *, multi_label: bool = False) -> NDArray[np.intp]:
    """Return the texts whose label is likely wrong, the most suspicious first.

    Args:
        texts: labelled ones.
        probabilities: [texts, classes], of a model that has not learnt from them.
        multi_label: whether a document can have several classes, or none.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.multilabel_classification.filter import find_label_issues as find_issues_of_several

    options = {"return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes with few examples: nobody could act on them
        if multi_label:
            members = [np.flatnonzero(texts.label_sets[label_id]).tolist() for label_id in texts.label_ids]
            found = np.asarray(find_issues_of_several(members, probabilities, **options), dtype=np.intp)
            return _by_ratio(found, probabilities, texts.label_sets[texts.label_ids])
        classes, labels = np.unique(texts.label_ids, return_inverse=True)
        known = probabilities[:, classes]
        known = known / known.sum(axis=1, keepdims=True)
        found = np.asarray(find_label_issues(labels, known, **options), dtype=np.intp)
    return found[known[found].argmax(axis=1) != labels[found]]


def _by_ratio(
    found: NDArray[np.intp], probabilities: NDArray[np.float64], members: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Return those of some texts about which the model disagrees, the worst first.

    Ranked by how much likelier the likeliest class that is missing is than the least likely that is there: on labels of
    28 classes of which 3 % were swapped, 42 % of the first 50 were such ones, and 6 % in cleanlab's own order.
    """
    there = np.where(members, probabilities, 1.0).min(axis=1)[found]
    missing = np.where(members, 0.0, probabilities).max(axis=1)[found]
    order = np.argsort(np.log(np.maximum(there, TINY)) - np.log(np.maximum(missing, TINY)), kind="stable")
    doubted = self_confidence(probabilities[found], members[found]).min(axis=1) < 0.5
    ranked: NDArray[np.intp] = found[order][doubted[order]]
    return ranked


def self_confidence(probabilities: NDArray[np.float64], members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how likely a label is right about each class, [..., classes]: to name it, or not to."""
    return np.where(members, probabilities, 1 - probabilities)


def _against(probabilities: NDArray[np.float64], members: NDArray[np.bool_], multi_label: bool) -> tuple[int, float]:
    """Return the class that speaks most against a label, and how likely the label is right."""
    if multi_label:
        right = self_confidence(probabilities, members)
        return int(right.argmin()), float(right.min())
    return int(np.where(members, -1.0, probabilities).argmax()), float(probabilities[members][0])


def _name(corpus: Corpus, label_id: int) -> str:
    members: Sequence[int] = np.flatnonzero(corpus.label_sets[label_id]).tolist()
    names = [corpus.labels[number] for number in members]
    return join_labels(names) if corpus.multi_label else names[0]


def _read(corpus: Corpus, row: int) -> dict[str, Any]:
    """Return batch, doc_id, text and content_hash of a row of a corpus."""
    for batch in corpus.batches:
        for path, part in zip(batch.parts, batch.manifest["parts"], strict=True):
            if row < part["rows"]:
                columns = ["doc_id", "text", "content_hash"]
                table = pq.read_table(path, columns=columns, partitioning=None).slice(row, 1)
                return {"batch": batch.id, **table.to_pylist()[0]}
            row -= part["rows"]
    raise AssertionError("a corpus has no such row")
