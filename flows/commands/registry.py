"""Looks at the registry, and changes of champion, for the command line."""

from flows.reports.comparison import comparison_report
from flows.reports.markdown import percent, table
from flows.reports.model import model_report
from pipeline.errors import ModelError, PromotionError
from pipeline.models.registry import Registry
from pipeline.promotion.comparison import compare_bundles, read_comparison
from pipeline.promotion.register import Registration
from pipeline.promotion.rule import check_force, decide_promotion, gate, promotion_rule
from pipeline.promotion.test_set import corpus_of
from pipeline.promotion.version import ModelVersion
from pipeline.workspace import Workspace


def versions_table(workspace: str) -> str:
    """Return all versions of all models as a Markdown table."""
    registry = Registry(Workspace(workspace))
    if not registry.names():
        raise ModelError(f"no model in {workspace} yet: train one with nightlabel train")
    rows = []
    for name in registry.names():
        champion = registry.champion(name)
        for version in registry.versions(name):
            bundle = registry.load(name, version)
            test, baseline = bundle.metrics["test"], bundle.metrics.get("baseline") or {}
            rows.append(
                (
                    bundle.title,
                    "champion" if version == champion else "",
                    bundle.manifest["created"].replace("T", " ").removesuffix("+00:00"),
                    bundle.manifest["preset"],
                    percent(test["macro_f1"]),
                    percent(baseline.get("macro_f1")),
                )
            )
    return table(["model", "", "created (UTC)", "preset", "macro-F1", "linear baseline"], rows)


def version_report(workspace: str, spec: str) -> str:
    """Return the report of one version, as training showed it."""
    registry = Registry(Workspace(workspace))
    bundle = registry.find(spec)
    promotion = bundle.manifest["promotion"]
    champion = registry.champion(bundle.name) == bundle.version
    publication = Registration(bundle, champion, promotion["reason"], read_comparison(bundle))
    return model_report(publication, pictures=False)


def compare(workspace: str, champion: str, challenger: str) -> str:
    """Return two versions beside each other, and what the rule of the second says of it.

    Raises:
        ModelError: one of them is unknown or damaged, both are the same, or nothing is left to test them on.
    """
    place = Workspace(workspace)
    one, other = Registry(place).find(champion), Registry(place).find(challenger)
    if one.title == other.title:
        raise ModelError(f"{one.title} and {other.title}: compare two different versions, for example NAME@1 NAME@2")
    limits = other.promotion_config.model_dump()
    comparison = compare_bundles(place, one, other)
    return comparison_report(comparison, gate(comparison, **limits), promotion_rule(**limits), pictures=False)


def promote(workspace: str, spec: str, *, force: bool = False, reason: str | None = None) -> str:
    """Make `name@version` champion if it is not worse than the one there is, or by force, and say so.

    Raises:
        ModelError: no version is named, or it is unknown or damaged.
        ConfigError: force without a reason.
        PromotionError: it does not pass; says why, and how to promote it all the same.
    """
    check_force(force, reason)
    name, _, version = spec.partition("@")
    if not version.isdecimal():
        raise ModelError(f"promote {spec!r}: name a version, for example {name}@2")
    registry = Registry(Workspace(workspace))
    bundle = registry.load(name, int(version))
    if registry.champion(name) == bundle.version:
        return f"{bundle.title} is champion already."
    limits = bundle.promotion_config.model_dump()
    decision, _ = decide_promotion(
        registry,
        ModelVersion.of(bundle),
        lambda: corpus_of(registry.workspace, bundle),
        force=reason if force else None,
        **limits,
    )
    if not decision.promoted:
        raise PromotionError(
            f"{bundle.title} is not promoted: {decision.reason}. To do so all the same: "
            f'nightlabel models promote {bundle.title} --force --reason "..."'
        )
    told = decision.reason if decision.forced or not reason else f"{reason}; {decision.reason}"
    registry.promote(name, bundle.version, told, forced=decision.forced)
    return f"{bundle.title} is champion now: {told}."


def rollback(workspace: str, name: str) -> str:
    version = Registry(Workspace(workspace)).rollback(name)
    return f"{name}@{version} is champion again."
