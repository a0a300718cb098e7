"""A new version against the champion: both label the same test texts, and the differences are counted."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from pipeline.dataset.corpus import Corpus
from pipeline.files import write_json
from pipeline.metrics.classification import macro_f1
from pipeline.metrics.significance import IntervalEstimate, paired_differences, sign_test_p_values
from pipeline.models.bundle import Bundle
from pipeline.promotion.churn import Churn, prediction_churn
from pipeline.promotion.test_set import changed_batch_notes, corpus_of, shared_test_set
from pipeline.promotion.version import ModelVersion, predict_labels
from pipeline.workspace import Workspace

COMPARISON_FILE = "comparison.json"  # an alias below is a field's key in it
LISTED_CONFUSIONS = 10
MISSED, WRONGLY = "(not given)", "(not true)"  # of documents with several classes


@dataclass(frozen=True)
class Scores:
    """Scores of a version on one class, each from 0 to 1."""

    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class ClassChange:
    """The scores of both versions on one class.

    Attributes:
        label: the class.
        support: test texts that have it.
        before: the champion's scores.
        after: the challenger's.
        f1_difference: challenger less champion.
        p_value: of the sign test for a worse class, see `pipeline.metrics.significance.sign_test_p_values`.
    """

    label: str
    support: int
    before: Scores
    after: Scores
    f1_difference: Annotated[IntervalEstimate, Field(alias="change")]
    p_value: Annotated[float, Field(alias="chance")]


@dataclass(frozen=True)
class ConfusionChange:
    """A confusion, and on how many test texts each version makes it."""

    truth: str
    predicted: Annotated[str, Field(alias="given")]
    before: int
    after: int


@dataclass(frozen=True)
class PairedEvaluation:
    """Scores of two versions with the same classes on the same test texts.

    Attributes:
        n: texts.
        before: the champion's macro-F1.
        after: the challenger's.
        difference: challenger less champion.
        lower_bound: the difference exceeds it with 95 % confidence (one-sided).
        probability_worse: share of the bootstrap resamples in which the challenger is worse.
        classes: in the order of the model's outputs.
        changed_confusions: the confusions whose number changed most.
    """

    n: int
    before: float
    after: float
    difference: IntervalEstimate
    lower_bound: Annotated[float, Field(alias="at_least")]
    probability_worse: float
    classes: list[ClassChange]
    changed_confusions: Annotated[list[ConfusionChange], Field(alias="moved")]


@dataclass(frozen=True)
class Comparison:
    """A challenger compared with the champion.

    Attributes:
        champion: name@version.
        challenger: name@version.
        missing_classes: classes of the champion that the challenger lacks.
        added_classes: classes that only the challenger has.
        same_task_type: whether both give a single label, or both several.
        proven: whether parity proves that the challenger's graph is the trained model.
        tested: None if the classes differ, or no test text is left.
        left_out: test texts that the champion was trained or validated on.
        unreadable: test texts without a token for one of the versions.
        notes: sentences about what the workspace no longer shows.
        churn: changed labels of last night; None without a night that neither version was trained on.
    """

    champion: str
    challenger: str
    missing_classes: Annotated[list[str], Field(alias="lost")]
    added_classes: Annotated[list[str], Field(alias="new")]
    same_task_type: Annotated[bool, Field(alias="same_kind")]
    proven: bool
    tested: PairedEvaluation | None
    left_out: int = 0
    unreadable: int = 0
    notes: list[str] = field(default_factory=list)
    churn: Annotated[Churn | None, Field(alias="flips")] = None

    @property
    def same_classes(self) -> bool:
        return self.same_task_type and not self.missing_classes and not self.added_classes

    def promotion_metrics(self) -> dict[str, Any]:
        """Return the figures that a promotion rests on, for a manifest."""
        facts: dict[str, Any] = {"champion": self.champion, "tested": self.tested.n if self.tested else 0}
        if self.tested:
            facts |= {
                "macro_f1": {"champion": self.tested.before, "challenger": self.tested.after},
                "difference": asdict(self.tested.difference),
                "at_least": self.tested.lower_bound,
                "probability_worse": self.tested.probability_worse,
            }
        return facts | {"flips": round(self.churn.share, 6) if self.churn else None}


def compare_versions(workspace: Workspace, champion: Bundle, challenger: ModelVersion, corpus: Corpus) -> Comparison:
    """Have two versions label the same test texts, and a sample of last night's.

    Args:
        workspace: has the nights, and the documents that the champion was trained on.
        champion: the version in use.
        challenger: the version that may replace it.
        corpus: the challenger was trained, validated and tested on it.
    """
    current = ModelVersion.of(champion)
    same_task_type = (current.thresholds is None) == (challenger.thresholds is None)
    texts = shared_test_set(workspace, corpus, champion, challenger.labels)
    tested, unreadable = None, 0
    if same_task_type and current.labels == challenger.labels:
        before, after = predict_labels(current, texts.columns), predict_labels(challenger, texts.columns)
        readable = before.non_empty & after.non_empty
        unreadable = int((~readable).sum())
        if readable.any():
            predicted = before.predicted[readable], after.predicted[readable]
            tested = evaluate_paired(texts.targets[readable], *predicted, challenger.labels)
    return Comparison(
        champion=current.title,
        challenger=challenger.title,
        missing_classes=[label for label in current.labels if label not in challenger.labels],
        added_classes=[label for label in challenger.labels if label not in current.labels],
        same_task_type=same_task_type,
        proven=challenger.proven,
        tested=tested,
        left_out=texts.left_out,
        unreadable=unreadable,
        notes=texts.notes,
        churn=prediction_churn(workspace, current, challenger),
    )


def compare_bundles(workspace: Workspace, champion: Bundle, challenger: Bundle) -> Comparison:
    """Compare two registered versions on the test texts of the second.

    Raises:
        ModelError: none of the batches that the second was trained on is left.
    """
    comparison = compare_versions(workspace, champion, ModelVersion.of(challenger), corpus_of(workspace, challenger))
    return replace(comparison, notes=[*comparison.notes, *changed_batch_notes(workspace, challenger)])


def evaluate_paired(
    truth: NDArray[np.bool_], before: NDArray[np.bool_], after: NDArray[np.bool_], labels: list[str]
) -> PairedEvaluation:
    """Score two versions on the same test texts.

    Args:
        truth: `[n, classes]`, the true classes; at least one text.
        before: `[n, classes]`, the champion's predictions.
        after: `[n, classes]`, the challenger's.
        labels: the name of each class.
    """
    differences, p_values = paired_differences(truth, before, after), sign_test_p_values(truth, before, after)
    scores = zip(_class_scores(truth, before), _class_scores(truth, after), strict=True)
    counts_before, counts_after = confusions(truth, before), confusions(truth, after)
    change = np.abs(counts_after - counts_before)
    largest = np.argsort(-change, axis=None, kind="stable")[:LISTED_CONFUSIONS]
    cells = zip(*np.unravel_index(largest, change.shape), strict=True)
    return PairedEvaluation(
        n=len(truth),
        before=macro_f1(before, truth),
        after=macro_f1(after, truth),
        difference=differences.macro_f1,
        lower_bound=differences.lower_bound,
        probability_worse=differences.probability_worse,
        classes=[
            ClassChange(label, int(truth[:, number].sum()), *both, differences.classes[number], float(p_values[number]))
            for number, (label, both) in enumerate(zip(labels, scores, strict=True))
        ],
        changed_confusions=[
            ConfusionChange(
                truth=[*labels, WRONGLY][row],
                predicted=[*labels, MISSED][column],
                before=int(counts_before[row, column]),
                after=int(counts_after[row, column]),
            )
            for row, column in cells
            if change[row, column]
        ],
    )


def _class_scores(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> list[Scores]:
    hits, predictions, positives = (truth & predicted).sum(axis=0), predicted.sum(axis=0), truth.sum(axis=0)
    f1 = 2 * hits / np.maximum(predictions + positives, 1)
    columns = np.stack([f1, hits / np.maximum(predictions, 1), hits / np.maximum(positives, 1)], axis=1)
    return [Scores(*row) for row in columns.tolist()]


def confusions(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return int64 `[classes + 1, classes + 1]`, how often each class was predicted in place of each true class.

    Where a document can have several classes, the last column counts missed classes and the last row wrongly predicted
    ones, unless exactly one class stands for another.

    Args:
        truth: `[n, classes]`.
        predicted: `[n, classes]`.
    """
    missed, wrongly = truth & ~predicted, predicted & ~truth
    single = (missed.sum(axis=1) == 1) & (wrongly.sum(axis=1) == 1)
    classes = truth.shape[1]
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    np.add.at(counts, (missed[single].argmax(axis=1), wrongly[single].argmax(axis=1)), 1)
    counts[:classes, classes] = missed[~single].sum(axis=0)
    counts[classes, :classes] = wrongly[~single].sum(axis=0)
    return counts


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write a comparison as JSON, with the ids of documents but not their texts: bundles travel."""
    value = TypeAdapter(Comparison).dump_python(comparison, mode="json", by_alias=True)
    for example in value["flips"]["examples"] if value["flips"] else []:
        del example["text"]
    write_json(path, value)


def read_comparison(bundle: Bundle) -> Comparison | None:
    """Return a bundle's comparison with the champion at its registration; None if there was no champion."""
    if COMPARISON_FILE not in bundle.manifest["files"]:
        return None
    return TypeAdapter(Comparison).validate_json((bundle.path / COMPARISON_FILE).read_bytes())
