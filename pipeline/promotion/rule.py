"""Whether a new version replaces the champion: better, or not promoted.

The rule has four parts, and a version must pass all of them.

1. Its classes are the champion's, and its graph is proven to be the trained model.
2. Overall: its macro-F1 on the same test texts is at least the champion's, or lies below it by so little that with
   95 % confidence the true difference is less than a margin (half a point). The first is what a small test split
   can say: with 200 texts nothing smaller than some points is ever proven, and where nothing can be proven the
   better result wins. The second is for large test splits, where two equally good versions differ by a few texts,
   and which of them is ahead is chance: there the newer one, which knows newer texts, is preferred (a
   non-inferiority test). So the burden of proof is with the new version: what is behind, and cannot be shown to be
   as good, is refused. The same weights again are exactly equal, and pass; the same data with another seed pass if
   they are ahead, or if the test split is large enough to show that they are not behind.
3. Each class: none is worse by more than a set amount of F1, unless chance explains it: an exact test, in which many
   classes are not counted as so many chances to fail (`pipeline.metrics.significance.sign_test_p_values`).
4. The margin is given away anew with each promotion, so many small losses can add up: with a margin of 0 only
   versions that are ahead are promoted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.dataset.corpus import Corpus
from pipeline.errors import ConfigError, ModelError, TrainingDataError
from pipeline.metrics.significance import SIGNIFICANCE_LEVEL
from pipeline.models.registry import Registry
from pipeline.promotion.comparison import ClassChange, Comparison, PairedEvaluation, compare_versions
from pipeline.promotion.version import ModelVersion

LISTED = 5


@dataclass(frozen=True)
class Decision:
    """Whether a version becomes champion, and why or why not, a clause each; `forced` if against the rule."""

    promoted: bool
    reasons: list[str]
    forced: bool = False

    @property
    def reason(self) -> str:
        return "; ".join(self.reasons)


def gate(comparison: Comparison, *, margin: float, class_margin: float) -> Decision:
    """Decide by the rule of this module whether a challenger replaces the champion.

    Args:
        comparison: of the two.
        margin: macro-F1 from 0 to 1, within which a version that is behind counts as good enough if that is proven.
        class_margin: F1 from 0 to 1, by which no class may be worse beyond chance.
    """
    refused = _unfit(comparison)
    tested = comparison.tested
    if refused or tested is None:
        return Decision(False, refused or [f"no test texts to compare it with {comparison.champion} on"])
    behind = tested.after < tested.before and tested.at_least <= -margin
    overall = f"{_overall(tested, comparison.champion)}{_doubt(tested, margin, behind)}"
    lost = regressed_classes(tested.classes, class_margin)
    if behind or lost:
        return Decision(False, [overall, *([_tell_lost(lost)] if lost else [])])
    return Decision(True, [overall])


def _unfit(comparison: Comparison) -> list[str]:
    """Return what keeps a version from being compared, or from being trusted."""
    reasons = []
    if not comparison.same_classes:
        reasons.append(f"its classes are not those of {comparison.champion}{_other_classes(comparison)}")
    if not comparison.proven:
        reasons.append("nothing proves that its ONNX graph is the trained model; train it again")
    return reasons


def _other_classes(comparison: Comparison) -> str:
    told = [
        f"{word} {_listed(labels)}" for word, labels in (("lacks", comparison.lost), ("adds", comparison.new)) if labels
    ]
    if not comparison.same_kind:
        told.append("one gives a single label, the other several")
    return f" ({', '.join(told)})"


def _overall(tested: PairedEvaluation, champion: str) -> str:
    difference = tested.difference
    return (
        f"macro-F1 {tested.after:.4f} against {tested.before:.4f} of {champion} on the same {tested.n:,} test texts "
        f"({points(difference.value)} points, 95 % interval {points(difference.low)} to {points(difference.high)})"
    )


def _doubt(tested: PairedEvaluation, margin: float, behind: bool) -> str:
    if behind and tested.difference.high < 0:
        return ", which is worse beyond chance"
    if behind:
        return f", and it is not shown to be less than {100 * margin:g} points worse"
    if tested.after < tested.before:
        return f", shown to be less than {100 * margin:g} points worse"
    return ""


def regressed_classes(classes: Sequence[ClassChange], class_margin: float) -> list[ClassChange]:
    """Return the classes that are worse by more than a set amount of F1, beyond chance, the worst first."""
    lost = [one for one in classes if one.change.value < -class_margin and one.chance < SIGNIFICANCE_LEVEL]
    return sorted(lost, key=lambda one: one.change.value)


def _tell_lost(lost: Sequence[ClassChange]) -> str:
    told = [f"{one.label} from {one.before.f1:.3f} to {one.after.f1:.3f}" for one in lost[:LISTED]]
    more = f" and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
    subject = "one class is" if len(lost) == 1 else f"{len(lost)} classes are"
    return f"{subject} worse in F1 beyond chance: {', '.join(told)}{more}"


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - LISTED} more" if len(labels) > LISTED else ""
    return ", ".join(labels[:LISTED]) + more


def points(difference: float) -> str:
    """Return a difference of scores from 0 to 1 as people say it: hundredths, with a sign."""
    value = round(100 * difference, 1)
    return "0.0" if value == 0 else f"{value:+.1f}"


def promotion_rule(margin: float, class_margin: float) -> str:
    """Return the rule as a sentence."""
    return (
        "A version replaces the champion if its macro-F1 on the same test texts is at least the champion's, or is "
        f"shown with 95 % confidence to be less than {100 * margin:g} points below it, and if no class loses more than "
        f"{100 * class_margin:g} points of F1 beyond chance."
    )


def check_force(force: bool, reason: str | None) -> None:
    """Refuse a promotion by force that nobody gives a reason for.

    Raises:
        ConfigError: says how to give one.
    """
    if force and not (reason and reason.strip()):
        raise ConfigError('--force without a reason: say why, for the record, with --force --reason "..."')


def promotion_record(decision: Decision, comparison: Comparison | None) -> dict[str, Any]:
    """Return what a bundle's manifest keeps of a decision, with the figures that it rests on, if there are any."""
    return {
        "promoted": decision.promoted,
        "forced": decision.forced,
        "reason": decision.reason,
        "figures": comparison.promotion_metrics() if comparison else None,
    }


def decide_promotion(
    registry: Registry,
    challenger: ModelVersion,
    corpus: Callable[[], Corpus],
    *,
    margin: float,
    class_margin: float,
    force: str | None = None,
) -> tuple[Decision, Comparison | None]:
    """Compare a version with the champion of its model, if there is one, and decide.

    Args:
        registry: knows the champion.
        challenger: the new version.
        corpus: returns what it was trained, validated and tested on.
        margin: see `gate`.
        class_margin: see `gate`.
        force: why to promote it even if it does not pass; None not to.
    """
    decision, comparison = _judge(registry, challenger, corpus, margin, class_margin)
    if force is None or decision.promoted:
        return decision, comparison
    over = f"forced over {comparison.champion}: " if comparison else "forced: "
    return Decision(True, [f"{over}{force.strip()}", *decision.reasons], forced=True), comparison


def _judge(
    registry: Registry, challenger: ModelVersion, corpus: Callable[[], Corpus], margin: float, class_margin: float
) -> tuple[Decision, Comparison | None]:
    version = registry.champion(challenger.name) if challenger.name in registry.names() else None
    if version is None:
        return Decision(True, ["first version"]), None
    try:
        champion = registry.load(challenger.name, version)
    except ModelError as error:
        return Decision(True, [f"the champion cannot be loaded ({error})"]), None
    try:
        documents = corpus()
    except (ModelError, TrainingDataError) as error:
        return Decision(False, [str(error)]), None
    comparison = compare_versions(registry.workspace, champion, challenger, documents)
    return gate(comparison, margin=margin, class_margin=class_margin), comparison
