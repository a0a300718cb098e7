"""Parsing of the label column: one label for each document, or several."""

import math
from collections import Counter
from typing import Any

from pipeline.errors import InputError
from pipeline.ingest.readers.base import MISSING, RejectReasons, all_strings, as_text, invalid_text_reason
from pipeline.schemas import LABEL_SEPARATOR, join_labels

USUAL_SEPARATORS = ("|", ";", ",", "/", "\t")
OTHER_SEPARATOR_SHARE = 0.1  # of the labels; if more hold another separator, and none the configured one, it is wrong


class LabelParser:
    """Parses the labels of a batch, and counts separators to detect a wrong one.

    Args:
        separator: separates several labels in a string; None if a string is one label.
        multi_label: whether documents have several labels, which are then stored as `join_labels` joins them.
    """

    def __init__(self, separator: str | None = None, *, multi_label: bool = False) -> None:
        self.multi_label = multi_label
        self._separator = separator
        self._labels = 0
        self._with_separator: Counter[str] = Counter()  # labels that hold each possible separator

    def read(self, values: list[Any], reasons: RejectReasons) -> list[str | None]:
        """Return the label of each row as documents store it; None if there is none, or the row is rejected.

        Args:
            values: of the label column.
            reasons: receives the reasons for rejected rows.
        """
        if not self.multi_label:
            return _single(values, reasons)
        if self._separator is not None:
            strings = [value for value in values if isinstance(value, str) and value.strip()]
            self._labels += len(strings)
            for mark in {self._separator, *USUAL_SEPARATORS}:
                self._with_separator[mark] += sum(mark in label for label in strings)
        labels: list[str | None] = []
        for number, value in enumerate(values):
            label, reason = _joined(value, self._separator)
            labels.append(label)
            if reason:
                reasons.setdefault(number, reason)
        return labels

    def check(self) -> None:
        """Check that labels hold the configured separator.

        Raises:
            InputError: none holds it, and many hold another separator.
        """
        if self._separator is None or self._with_separator[self._separator]:
            return
        mark = max(USUAL_SEPARATORS, key=lambda mark: self._with_separator[mark])
        if self._with_separator[mark] > OTHER_SEPARATOR_SHARE * self._labels:
            name, argument = ("a tab", r"$'\t'") if mark == "\t" else (repr(mark), repr(mark))
            raise InputError(
                f"no label holds the separator {self._separator!r}, but {self._with_separator[mark]:,} of "
                f"{self._labels:,} hold {name}: is it --label-separator {argument}?"
            )


def _single(values: list[Any], reasons: RejectReasons) -> list[str | None]:
    if all_strings(values):
        return [value.strip() or None for value in values]
    for number, value in enumerate(values):
        if isinstance(value, list | dict):
            reasons.setdefault(number, "label_not_a_value")
    return [_label(value) for value in values]


def _label(value: Any) -> str | None:
    absent = (
        value is None or value is MISSING or (isinstance(value, float) and math.isnan(value))
    )  # NaN is null in data frames
    return None if absent else as_text(value).strip() or None


def _joined(value: Any, separator: str | None) -> tuple[str | None, str]:
    """Return the labels of a document as one string, and why they are rejected, or ""."""
    if isinstance(value, list):  # its strings are not split
        items = value
    elif _label(value) is None:
        return None, ""
    else:
        items = [value] if separator is None or isinstance(value, dict) else as_text(value).split(separator)
    if any(isinstance(item, list | tuple | dict) for item in items):
        return None, "label_not_a_value"
    labels = [label for label in map(_label, items) if label]
    if len(labels) < len(items):
        return None, "empty_label"
    if any(LABEL_SEPARATOR in label for label in labels):
        return None, "label_with_separator"
    joined = join_labels(labels)
    return joined, invalid_text_reason(joined)
