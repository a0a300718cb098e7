"""Lists, compares and promotes model versions for the command line. Heavy modules are imported where they are used."""

from flows.reports.markdown import percent, table
from pipeline.errors import ModelError, PromotionError
from pipeline.models.registry import Registry
from pipeline.workspace import Workspace


def versions_table(workspace: str) -> str:
    """Return all versions of all models as a Markdown table.

    Raises:
        ModelError: the workspace has no model, or a bundle is damaged.
    """
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
    """Return the report of a version, as after its training.

    Raises:
        ModelError: the version is unknown or damaged.
    """
    from flows.reports.model import model_report
    from pipeline.promotion.comparison import read_comparison
    from pipeline.promotion.rule import Registration

    registry = Registry(Workspace(workspace))
    bundle = registry.find(spec)
    is_champion = registry.champion(bundle.name) == bundle.version
    reason = bundle.manifest["promotion"]["reason"]
    return model_report(Registration(bundle, is_champion, reason, read_comparison(bundle)), pictures=False)


def compare(workspace: str, champion: str, challenger: str) -> str:
    """Return the comparison of two versions, and the verdict of the challenger's promotion rule.

    Raises:
        ModelError: a version is unknown or damaged, both are the same, or no text is left to test them on.
    """
    from flows.reports.comparison import comparison_report
    from pipeline.promotion.comparison import compare_bundles
    from pipeline.promotion.rule import gate, promotion_rule

    folder = Workspace(workspace)
    before, after = Registry(folder).find(champion), Registry(folder).find(challenger)
    if before.title == after.title:
        raise ModelError(f"{before.title} and {after.title}: compare two different versions, for example NAME@1 NAME@2")
    limits = after.promotion_config.model_dump()
    comparison = compare_bundles(folder, before, after)
    return comparison_report(comparison, gate(comparison, **limits), promotion_rule(**limits), pictures=False)


def promote(workspace: str, spec: str, *, force: bool = False, reason: str | None = None) -> str:
    """Make `name@version` champion if it is not worse than the present one, or by force; return the outcome.

    Raises:
        ModelError: no version is named, or it is unknown or damaged.
        ConfigError: force without a reason.
        PromotionError: the version does not pass; says why, and how to force it.
    """
    from pipeline.promotion.rule import check_force, decide_promotion
    from pipeline.promotion.test_set import corpus_of
    from pipeline.promotion.version import ModelVersion

    check_force(force, reason)
    name, _, version = spec.partition("@")
    if not version.isdecimal():
        raise ModelError(f"promote {spec!r}: name a version, for example {name}@2")
    registry = Registry(Workspace(workspace))
    bundle = registry.load(name, int(version))
    if registry.champion(name) == bundle.version:
        return f"{bundle.title} is champion already."
    decision, _ = decide_promotion(
        registry,
        ModelVersion.of(bundle),
        lambda: corpus_of(registry.workspace, bundle),
        force=reason if force else None,
        **bundle.promotion_config.model_dump(),
    )
    if not decision.promoted:
        raise PromotionError(
            f"{bundle.title} is not promoted: {decision.reason}. To force it: "
            f'nightlabel models promote {bundle.title} --force --reason "..."'
        )
    record = decision.reason if decision.forced or not reason else f"{reason}; {decision.reason}"
    registry.promote(name, bundle.version, record, forced=decision.forced)
    return f"{bundle.title} is champion now: {record}."
