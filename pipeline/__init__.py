"""The work itself: raw text in, labelled Parquet out. Knows nothing of Prefect.

The names in `__all__` are the library's entry points, loaded on first use; `pipeline.ingest.ingest` is one more, kept
in its wing because the wing has the same name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import load_recipe
    from pipeline.models.registry import Registry
    from pipeline.nights.finish import score_batch
    from pipeline.nights.publish import publish, published_batches
    from pipeline.promotion.register import train
    from pipeline.scoring.scorer import Scorer
    from pipeline.workspace import Workspace

__all__ = ["Registry", "Scorer", "Workspace", "load_recipe", "publish", "published_batches", "score_batch", "train"]
MODULES = {
    "Registry": "models.registry",
    "Scorer": "scoring.scorer",
    "Workspace": "workspace",
    "load_recipe": "config",
    "publish": "nights.publish",
    "published_batches": "nights.publish",
    "score_batch": "nights.finish",
    "train": "promotion.register",
}


def __getattr__(name: str) -> Any:
    """Import an entry point on first use (PEP 562)."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
