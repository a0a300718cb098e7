"""Looks at the registry, and changes of champion, for the command line."""

from flows.report import model_report, percent, table
from pipeline.build import Publication
from pipeline.errors import ModelError
from pipeline.registry import Registry
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
    return model_report(Publication(bundle, champion, promotion["reason"]), pictures=False)


def promote(workspace: str, spec: str, reason: str) -> str:
    """Make `name@version` champion, and say so.

    Raises:
        ModelError: no version is named, or it is unknown or damaged.
    """
    name, _, version = spec.partition("@")
    if not version.isdecimal():
        raise ModelError(f"promote {spec!r}: name a version, for example {name}@2")
    Registry(Workspace(workspace)).promote(name, int(version), reason)
    return f"{name}@{version} is champion now."


def rollback(workspace: str, name: str) -> str:
    version = Registry(Workspace(workspace)).rollback(name)
    return f"{name}@{version} is champion again."
