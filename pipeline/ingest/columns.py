"""Which column of a source is what."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.schemas import SPLITS

SPLIT_NAMES = {name: name for name in SPLITS} | {"valid": "validation", "val": "validation", "dev": "validation"}


@dataclass(frozen=True)
class Columns:
    """Which columns of a source are text, label, id and split; a fixed split holds for every row."""

    text: Sequence[str]
    label: str | None = None
    id: str | None = None
    split: str | None = None
    fixed_split: str | None = None

    @property
    def used(self) -> list[str]:
        """All of them, each once, in an order that does not change."""
        return list(dict.fromkeys([*self.text, *(name for name in (self.label, self.id, self.split) if name)]))


def fixed_split(config: IngestConfig) -> str | None:
    """Return the split that holds for all rows, if the setting is one and not the name of a column."""
    return SPLIT_NAMES.get(config.split or "")


def named_columns(config: IngestConfig) -> list[tuple[str, str]]:
    """Return the columns that the settings name, each with its option."""
    split = None if fixed_split(config) else config.split
    others = {"--label": config.label, "--id": config.id, "--split": split}
    return [("--text", name) for name in config.text] + [(option, name) for option, name in others.items() if name]


def label_column(config: IngestConfig) -> str | None:
    """Return the column with the label, which by default may be absent; nothing if its name is used otherwise."""
    others = {*config.text, config.id, None if fixed_split(config) else config.split}
    return config.label or (None if "label" in others else "label")


def find_columns(source: str, names: Iterable[str], config: IngestConfig, *, sparse: bool = False) -> Columns:
    """Return what the settings mean for a source with these columns.

    Args:
        source: its name, for errors.
        names: the columns there are.
        config: the settings.
        sparse: whether rows further down can have columns that are not in `names`.

    Raises:
        InputError: a named column is not there.
    """
    there = list(names)
    for option, name in named_columns(config):
        if name not in there:
            shown = " ".join(", ".join(there[:30]).split()) or "none"  # a header can hold line ends
            raise InputError(f"{source}: no column {name!r} (there are: {shown}); choose one with {option}")
    split = None if fixed_split(config) else config.split
    free = [name for name in there if name not in {*config.text, config.label, config.id, split}]
    label = label_column(config)
    return Columns(
        text=config.text,
        label=label if sparse or label in there else None,
        id=config.id or next((name for name in ("id", "doc_id") if name in free), None),
        split=split,
        fixed_split=fixed_split(config),
    )


def folder_columns(config: IngestConfig) -> Columns:
    """Return the columns of a folder of text files, which are always the same."""
    fixed = fixed_split(config)
    return Columns(["text"], "label", "id", None if fixed else "split", fixed)
