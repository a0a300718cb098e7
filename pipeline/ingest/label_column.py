"""What the label column says: one label of a document, or several."""

import math
from collections import Counter
from typing import Any

from pipeline.errors import InputError
from pipeline.ingest.readers.base import MISSING, RejectReasons, all_strings, as_text, invalid_text_reason
from pipeline.schemas import LABEL_SEPARATOR, join_labels

USUAL_SEPARATORS = ("|", ";", ",", "/", "\t")
OTHER_SEPARATOR_SHARE = 0.1  # of the labels; if more hold another separator, the one that none holds is a mistake


class LabelParser:
    """How the labels of a batch are read, and whether what joins several of them is really there.

    Args:
        separator: what joins several labels in a string; None if a string is one label.
        several: whether documents have several labels, which are then kept as `join_labels` joins them.
    """

    def __init__(self, separator: str | None = None, *, multi_label: bool = False) -> None:
        self.multi_label = multi_label
        self._separator = separator
        self._strings = 0
        self._holding: Counter[str] = Counter()

    def read(self, values: list[Any], reasons: RejectReasons) -> list[str | None]:
        """Return the label of each row as documents keep it; null where there is none, or a reason to refuse the row.

        Args:
            values: of the label column.
            reasons: where reasons go, by row.
        """
        if not self.multi_label:
            return _single(values, reasons)
        if self._separator is not None:
            self._count([value for value in values if isinstance(value, str) and value.strip()], self._separator)
        labels: list[str | None] = []
        for number, value in enumerate(values):
            label, reason = _joined(value, self._separator)
            labels.append(label)
            if reason:
                reasons.setdefault(number, reason)
        return labels

    def _count(self, labels: list[str], separator: str) -> None:
        self._strings += len(labels)
        for mark in {separator, *USUAL_SEPARATORS}:
            self._holding[mark] += sum(mark in label for label in labels)

    def check(self) -> None:
        """See that the separator is the one that the labels hold.

        Raises:
            InputError: none holds it, and many hold another.
        """
        if self._separator is None or self._holding[self._separator]:
            return
        mark = max(USUAL_SEPARATORS, key=lambda mark: self._holding[mark])
        if self._holding[mark] > OTHER_SEPARATOR_SHARE * self._strings:
            named, given = ("a tab", r"$'\t'") if mark == "\t" else (repr(mark), repr(mark))
            raise InputError(
                f"no label holds the separator {self._separator!r}, but {self._holding[mark]:,} of "
                f"{self._strings:,} hold {named}: is it --label-separator {given}?"
            )


def _single(values: list[Any], reasons: RejectReasons) -> list[str | None]:
    if all_strings(values):
        return [value.strip() or None for value in values]
    for number, value in enumerate(values):
        if isinstance(value, list | dict):
            reasons.setdefault(number, "label_not_a_value")
    return [_label(value) for value in values]


def _label(value: Any) -> str | None:
    absent = value is None or value is MISSING or (isinstance(value, float) and math.isnan(value))  # as data frames do
    return None if absent else as_text(value).strip() or None


def _joined(value: Any, separator: str | None) -> tuple[str | None, str]:
    """Return the labels of a document as one string, or why they cannot be taken."""
    if not isinstance(value, list) and _label(value) is None:
        return None, ""
    given = _given(value, separator)
    if any(isinstance(part, list | tuple | dict) for part in given):
        return None, "label_not_a_value"
    labels = [label for label in map(_label, given) if label]
    if len(labels) < len(given):
        return None, "empty_label"
    if any(LABEL_SEPARATOR in label for label in labels):
        return None, "label_with_separator"
    joined = join_labels(labels)
    return joined, invalid_text_reason(joined)


def _given(value: Any, separator: str | None) -> list[Any]:
    """Return the labels as they stand in a value; what stands in a list is not taken apart further."""
    if isinstance(value, list):
        return value
    if separator is None or isinstance(value, dict):
        return [value]
    return as_text(value).split(separator)
