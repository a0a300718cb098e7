"""The promotion rule: whether a new version replaces the champion.

A version must pass all parts of the rule.

1. Its classes are the champion's, and parity proves that its graph is the trained model.
2. Overall, its macro-F1 on the same test texts is at least the champion's, or the one-sided 95 % bound of the
   difference lies above a margin (half a point). The first part serves small test splits: with 200 texts nothing
   smaller than a few points is ever significant, and then the better result wins. The second part serves large test
   splits, where two equally good versions differ by a few texts, and chance decides which is ahead: there the newer
   version, trained on newer texts, is preferred (a non-inferiority test). So the burden of proof is with the new
   version: one that is behind, and not shown to be as good, is refused. The same weights again are exactly equal, and
   pass; the same data with another seed pass if they are ahead, or if the test split is large enough to show that they
   are not behind.
3. No class is worse by more than a set amount of F1 beyond chance: an exact sign test, corrected for the number of
   classes (`pipeline.metrics.significance.sign_test_p_values`).

The margin applies anew at each promotion, so many small losses can add up. With a margin of 0, only versions that
are not behind are promoted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.dataset.corpus import Corpus
from pipeline.errors import ConfigError, ModelError, TrainingDataError
from pipeline.metrics.significance import SIGNIFICANCE_LEVEL
from pipeline.models.bundle import Bundle
from pipeline.models.registry import Registry
from pipeline.promotion.comparison import Comparison, compare_versions
from pipeline.promotion.version import ModelVersion

LISTED = 5


@dataclass(frozen=True)
class Decision:
    """Whether a version becomes champion, with reasons of a clause each; `forced` if against the rule."""

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
        margin: macro-F1 from 0 to 1; a version that is behind passes if it is proven to be less than this behind.
        class_margin: F1 from 0 to 1; no class may be worse by more than this beyond chance.
    """
    reasons = _mismatches(comparison)
    tested = comparison.tested
    if reasons or tested is None:
        return Decision(False, reasons or [f"no test texts to compare it with {comparison.champion} on"])
    difference, verdict = tested.difference, ""
    behind = tested.after < tested.before
    inferior = behind and tested.lower_bound <= -margin
    if inferior and difference.high < 0:
        verdict = ", which is worse beyond chance"
    elif inferior:
        verdict = f", and it is not shown to be less than {100 * margin:g} points worse"
    elif behind:
        verdict = f", shown to be less than {100 * margin:g} points worse"
    reasons.append(
        f"macro-F1 {tested.after:.4f} against {tested.before:.4f} of {comparison.champion} on the same "
        f"{tested.n:,} test texts ({points(difference.value)} points, 95 % interval {points(difference.low)} to "
        f"{points(difference.high)}){verdict}"
    )
    worse = [row for row in tested.classes if row.f1_difference.value < -class_margin]
    worse = [row for row in worse if row.p_value < SIGNIFICANCE_LEVEL]
    if worse:
        worse.sort(key=lambda row: row.f1_difference.value)
        subject = "one class is" if len(worse) == 1 else f"{len(worse)} classes are"
        drops = _listed([f"{row.label} from {row.before.f1:.3f} to {row.after.f1:.3f}" for row in worse])
        reasons.append(f"{subject} worse in F1 beyond chance: {drops}")
    return Decision(not worse and not inferior, reasons)


def _mismatches(comparison: Comparison) -> list[str]:
    """Return the reasons why a version cannot be compared or trusted."""
    reasons = []
    if not comparison.same_classes:
        classes = {"lacks": comparison.missing_classes, "adds": comparison.added_classes}
        differences = [f"{verb} {_listed(labels)}" for verb, labels in classes.items() if labels]
        if not comparison.same_task_type:
            differences.append("one gives a single label, the other several")
        reasons.append(f"its classes are not those of {comparison.champion} ({', '.join(differences)})")
    if not comparison.proven:
        reasons.append("its ONNX export was not verified against PyTorch; train it again")
    return reasons


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def points(difference: float) -> str:
    """Return a difference of scores from 0 to 1 in points (hundredths), with a sign."""
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
    """Refuse a forced promotion without a reason.

    Raises:
        ConfigError: says how to state one.
    """
    if force and not (reason and reason.strip()):
        raise ConfigError('--force without a reason: say why, for the record, with --force --reason "..."')


def promotion_record(decision: Decision, comparison: Comparison | None) -> dict[str, Any]:
    """Return a decision and the figures that it rests on, if there are any, for a bundle's manifest."""
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
        corpus: returns the documents it was trained, validated and tested on.
        margin: see `gate`.
        class_margin: see `gate`.
        force: the reason to promote it even if it does not pass; None not to.
    """
    champion = registry.champion(challenger.name) if challenger.name in registry.names() else None
    if champion is None:
        return Decision(True, ["first version"]), None
    try:
        current = registry.load(challenger.name, champion)
    except ModelError as error:
        return Decision(True, [f"the champion cannot be loaded ({error})"]), None
    comparison = None
    try:
        documents = corpus()
    except (ModelError, TrainingDataError) as error:
        decision = Decision(False, [str(error)])
    else:
        comparison = compare_versions(registry.workspace, current, challenger, documents)
        decision = gate(comparison, margin=margin, class_margin=class_margin)
    if force is None or decision.promoted:
        return decision, comparison
    prefix = f"forced over {comparison.champion}: " if comparison else "forced: "
    return Decision(True, [f"{prefix}{force.strip()}", *decision.reasons], forced=True), comparison


@dataclass(frozen=True)
class Registration:
    """A registered version, and whether it is the champion now."""

    bundle: Bundle
    promoted: bool
    reason: str
    comparison: Comparison | None = None  # with the champion at its registration
