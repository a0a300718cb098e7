"""A new version beside the champion: both label the same test texts, and what differs is counted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from pipeline.dataset.corpus import Corpus
from pipeline.files import write_json
from pipeline.metrics.classification import macro_f1
from pipeline.metrics.significance import IntervalEstimate, paired_differences, sign_test_p_values
from pipeline.models.bundle import Bundle
from pipeline.promotion.churn import Churn, prediction_churn
from pipeline.promotion.test_set import SharedTestSet, changed_batch_notes, corpus_of, held_out
from pipeline.promotion.version import ModelVersion, predict_labels
from pipeline.workspace import Workspace

COMPARISON_FILE = "comparison.json"
MOST_MOVED = 10
MISSED, WRONGLY = "(not given)", "(not true)"  # of documents with several classes


@dataclass(frozen=True)
class Scores:
    """How well a version finds a class, each from 0 to 1."""

    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class ClassChange:
    """A class beside itself.

    Attributes:
        label: its name.
        support: test texts that have it.
        before: the champion's scores.
        after: the challenger's.
        change: of F1.
        chance: how likely chance alone makes it look as much worse, see
        `pipeline.metrics.significance.sign_test_p_values`.
    """

    label: str
    support: int
    before: Scores
    after: Scores
    change: IntervalEstimate
    chance: float


@dataclass(frozen=True)
class ConfusionChange:
    """A confusion, and how many test texts each version makes it with."""

    truth: str
    given: str
    before: int
    after: int


@dataclass(frozen=True)
class PairedEvaluation:
    """What two versions with the same classes make of the same test texts.

    Attributes:
        n: texts.
        before: the champion's macro-F1.
        after: the challenger's.
        difference: between them.
        at_least: what the difference exceeds with 95 % confidence.
        probability_worse: how likely the challenger is worse.
        classes: in the order of the model's outputs.
        moved: the confusions whose number changed most.
    """

    n: int
    before: float
    after: float
    difference: IntervalEstimate
    at_least: float
    probability_worse: float
    classes: list[ClassChange]
    moved: list[ConfusionChange]


@dataclass(frozen=True)
class Comparison:
    """A challenger beside the champion.

    Attributes:
        champion: name@version.
        challenger: name@version.
        lost: classes of the champion that the challenger lacks.
        new: classes that only the challenger has.
        same_kind: whether both give one label each, or both several.
        proven: whether the challenger's graph is proven to be the trained model.
        tested: None where the classes differ, or no test text is left.
        left_out: test texts that the champion learnt from.
        unreadable: test texts without a token to one of the versions.
        notes: sentences about what could not be known.
        flips: labels of last night that would be others; None where there is no night that neither learnt from.
    """

    champion: str
    challenger: str
    lost: list[str]
    new: list[str]
    same_kind: bool
    proven: bool
    tested: PairedEvaluation | None
    left_out: int = 0
    unreadable: int = 0
    notes: list[str] = field(default_factory=list)
    flips: Churn | None = None

    @property
    def same_classes(self) -> bool:
        return self.same_kind and not self.lost and not self.new

    def promotion_metrics(self) -> dict[str, Any]:
        """Return what a promotion rests on, for a manifest."""
        facts: dict[str, Any] = {"champion": self.champion, "tested": self.tested.n if self.tested else 0}
        if self.tested:
            facts |= {
                "macro_f1": {"champion": self.tested.before, "challenger": self.tested.after},
                "difference": asdict(self.tested.difference),
                "at_least": self.tested.at_least,
                "probability_worse": self.tested.probability_worse,
            }
        return facts | {"flips": round(self.flips.share, 6) if self.flips else None}


def compare_versions(workspace: Workspace, champion: Bundle, challenger: ModelVersion, corpus: Corpus) -> Comparison:
    """Have two versions label the same test texts, and a sample of last night's.

    Args:
        workspace: where nights, and the documents that the champion learnt from, lie.
        champion: the version in use.
        challenger: the one that may replace it.
        corpus: what the challenger was trained, validated and tested on.
    """
    other = ModelVersion.of(champion)
    lost, new = _lacking(other.labels, challenger.labels), _lacking(challenger.labels, other.labels)
    same_kind = (other.thresholds is None) == (challenger.thresholds is None)
    texts = held_out(workspace, corpus, champion, challenger.labels)
    comparable = same_kind and other.labels == challenger.labels
    tested, unreadable = _test(other, challenger, texts) if comparable else (None, 0)
    return Comparison(
        champion=other.title,
        challenger=challenger.title,
        lost=lost,
        new=new,
        same_kind=same_kind,
        proven=challenger.proven,
        tested=tested,
        left_out=texts.left_out,
        unreadable=unreadable,
        notes=texts.notes,
        flips=prediction_churn(workspace, other, challenger),
    )


def compare_bundles(workspace: Workspace, champion: Bundle, challenger: Bundle) -> Comparison:
    """Compare two registered versions on the test texts of the second.

    Raises:
        ModelError: none of the batches that the second was made from is there any more.
    """
    found = compare_versions(workspace, champion, ModelVersion.of(challenger), corpus_of(workspace, challenger))
    return replace(found, notes=[*found.notes, *changed_batch_notes(workspace, challenger)])


def _lacking(ones: Sequence[str], others: Sequence[str]) -> list[str]:
    return [label for label in ones if label not in set(others)]


def _test(
    champion: ModelVersion, challenger: ModelVersion, texts: SharedTestSet
) -> tuple[PairedEvaluation | None, int]:
    """Return what both make of the texts that have a token to both, and how many have none."""
    before, after = predict_labels(champion, texts.columns), predict_labels(challenger, texts.columns)
    readable = before.non_empty & after.non_empty
    if not readable.any():
        return None, int((~readable).sum())
    truth = texts.targets[readable]
    return evaluate_paired(truth, before.given[readable], after.given[readable], challenger.labels), int(
        (~readable).sum()
    )


def evaluate_paired(
    truth: NDArray[np.bool_], before: NDArray[np.bool_], after: NDArray[np.bool_], labels: list[str]
) -> PairedEvaluation:
    """Count what two versions make of the same test texts.

    Args:
        truth: `[n, classes]`, the true classes; at least one text.
        before: `[n, classes]`, what the champion gives.
        after: `[n, classes]`, what the challenger gives.
        labels: the name of each class.
    """
    differences, chances = paired_differences(truth, before, after), sign_test_p_values(truth, before, after)
    scores = zip(_scores(truth, before), _scores(truth, after), strict=True)
    return PairedEvaluation(
        n=len(truth),
        before=macro_f1(before, truth),
        after=macro_f1(after, truth),
        difference=differences.macro_f1,
        at_least=differences.lower_bound,
        probability_worse=differences.probability_worse,
        classes=[
            ClassChange(label, int(truth[:, number].sum()), *both, differences.classes[number], float(chances[number]))
            for number, (label, both) in enumerate(zip(labels, scores, strict=True))
        ],
        moved=_moved(confusions(truth, before), confusions(truth, after), labels),
    )


def _scores(truth: NDArray[np.bool_], given: NDArray[np.bool_]) -> list[Scores]:
    hits, said, true = (truth & given).sum(axis=0), given.sum(axis=0), truth.sum(axis=0)
    f1 = 2 * hits / np.maximum(said + true, 1)
    columns = np.stack([f1, hits / np.maximum(said, 1), hits / np.maximum(true, 1)], axis=1)
    return [Scores(*row) for row in columns.tolist()]


def confusions(truth: NDArray[np.bool_], given: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return int64 `[classes + 1, classes + 1]`, how often each true class was missed and each other given instead.

    Where a document can have several classes, the last column counts classes that it has and was not given, and the
    last row those that it was given and has not, unless exactly one stands for another.

    Args:
        truth: `[n, classes]`.
        given: `[n, classes]`.
    """
    missed, wrongly = truth & ~given, given & ~truth
    single = (missed.sum(axis=1) == 1) & (wrongly.sum(axis=1) == 1)
    classes = truth.shape[1]
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    np.add.at(counts, (missed[single].argmax(axis=1), wrongly[single].argmax(axis=1)), 1)
    counts[:classes, classes] = missed[~single].sum(axis=0)
    counts[classes, :classes] = wrongly[~single].sum(axis=0)
    return counts


def _moved(before: NDArray[np.int64], after: NDArray[np.int64], labels: list[str]) -> list[ConfusionChange]:
    change = np.abs(after - before)
    order = np.argsort(-change, axis=None, kind="stable")[:MOST_MOVED]
    pairs = [(int(row), int(column)) for row, column in zip(*np.unravel_index(order, change.shape), strict=True)]
    truths, givens = [*labels, WRONGLY], [*labels, MISSED]
    return [
        ConfusionChange(truths[row], givens[column], int(before[row, column]), int(after[row, column]))
        for row, column in pairs
        if change[row, column]
    ]


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write a comparison as JSON. It keeps the ids of documents, not their texts: bundles travel."""
    value = asdict(comparison)
    for example in value["flips"]["examples"] if value["flips"] else []:
        del example["text"]
    write_json(path, value)


def read_comparison(bundle: Bundle) -> Comparison | None:
    """Return what a bundle says of its comparison with the champion of its day; None if there was none."""
    if COMPARISON_FILE not in bundle.manifest["files"]:
        return None
    return TypeAdapter(Comparison).validate_json((bundle.path / COMPARISON_FILE).read_bytes())
