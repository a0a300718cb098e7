"""The role of each column of a source: text, label, id, split, group."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.schemas import SPLITS

SPLIT_NAMES = {name: name for name in SPLITS} | {"valid": "validation", "val": "validation", "dev": "validation"}


@dataclass(frozen=True)
class Columns:
    """The columns of a source by role; a fixed split applies to every row."""

    text: Sequence[str]
    label: str | None = None
    id: str | None = None
    split: str | None = None
    fixed_split: str | None = None
    group: str | None = None

    @property
    def used(self) -> list[str]:
        """All of them, each once, in a fixed order."""
        optional = (self.label, self.id, self.split, self.group)
        return list(dict.fromkeys([*self.text, *(name for name in optional if name)]))


def fixed_split(config: IngestConfig) -> str | None:
    """Return the split of all rows, if the setting is the name of a split and not of a column."""
    return SPLIT_NAMES.get(config.split or "")


def named_columns(config: IngestConfig) -> list[tuple[str, str]]:
    """Return (option, column) of each column that the settings name."""
    split = None if fixed_split(config) else config.split
    options = {"--label": config.label, "--id": config.id, "--split": split, "--group": config.group}
    return [("--text", name) for name in config.text] + [(option, name) for option, name in options.items() if name]


def label_column(config: IngestConfig) -> str | None:
    """Return the label column: by default "label", which may be absent, or None if that column has another role."""
    named = {name for _, name in named_columns(config)}
    return config.label or (None if "label" in named else "label")


def find_columns(source: str, names: Iterable[str], config: IngestConfig, *, sparse: bool = False) -> Columns:
    """Return the columns that the settings select, with defaults for label and id.

    Args:
        source: its name, for errors.
        names: the columns of the source.
        config: the settings.
        sparse: whether later rows can have columns that are not in `names`.

    Raises:
        InputError: a column that the settings name does not exist.
    """
    existing = list(names)
    for option, name in named_columns(config):
        if name not in existing:
            shown = " ".join(", ".join(existing[:30]).split()) or "none"  # a header can hold line ends
            raise InputError(f"{source}: no column {name!r} (there are: {shown}); choose one with {option}")
    split = None if fixed_split(config) else config.split
    free = [name for name in existing if name not in {*config.text, config.label, config.id, split, config.group}]
    label = label_column(config)
    return Columns(
        text=config.text,
        label=label if sparse or label in existing else None,
        id=config.id or next((name for name in ("id", "doc_id") if name in free), None),
        split=split,
        fixed_split=fixed_split(config),
        group=config.group,
    )


def folder_columns(config: IngestConfig) -> Columns:
    """Return the columns of a folder of text files, which do not depend on the settings, but for the split."""
    fixed = fixed_split(config)
    return Columns(["text"], "label", "id", None if fixed else "split", fixed)
