"""The report of a search for settings: its trials, its gain over the starting preset, and how to train with it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from flows.reports.markdown import percent, picture, table

if TYPE_CHECKING:  # these bring PyTorch and Optuna along
    from pipeline.training.tune.search import SearchResult

BEST_TRIALS = 10
LISTED_SETTINGS = 5


def tuning_report(tuning: SearchResult, *, pictures: bool) -> str:
    """Return the trials of a search, its gain over the starting preset, and the command to train with the result.

    Args:
        tuning: the result of the search.
        pictures: embed the picture of the trials (for the UI; a terminal cannot show it).
    """
    from pipeline.training.tune.search import describe

    verdict = f"validation macro-F1 {tuning.best.score:.4f}" if tuning.best else "no trial is complete"
    best_first = sorted(tuning.trials, key=lambda trial: (trial.pruned, -(trial.score or 0.0), trial.number))
    rows = [
        (
            trial.number,
            "" if trial.score is None else f"{trial.score:.4f}",
            "pruned" if trial.pruned else "complete",
            trial.epochs,
            f"{trial.seconds:,.0f}",
            describe(trial, tuning.plan.start),
        )
        for trial in best_first[:BEST_TRIALS]
    ]
    parts = [
        f"## Search {tuning.plan.name}: {verdict}",
        *_summary(tuning),
        picture(tuning.picture) if pictures else "",
        f"### The best of {len(tuning.trials)} trials",
        table(["trial", "macro-F1", "", "epochs", "seconds", "differences from the start"], rows),
    ]
    if tuning.importance:
        shares = [f"`{field}` {percent(share)}" for field, share in list(tuning.importance.items())[:LISTED_SETTINGS]]
        complete = sum(not trial.pruned for trial in tuning.trials)
        parts.append(
            f"The most important settings, estimated from {complete} complete trials (share of the differences "
            f"between their scores): {', '.join(shares)}."
        )
    if tuning.preset:
        words = ["nightlabel", "train", "--preset", str(tuning.preset)]
        for batch in tuning.plan.batches:
            words += ["--batch", batch]
        for option in ("embeddings", "encoder", "teacher"):
            if value := getattr(tuning.plan, option):
                words += [f"--{option}", value]
        parts.append(f"Train with the result: `{shlex.join(words)}`")
    return "\n\n".join(part for part in parts if part)


def _summary(tuning: SearchResult) -> list[str]:
    """Return the counts of the trials, and the gain of the best over the starting preset."""
    pruned, trials = sum(trial.pruned for trial in tuning.trials), len(tuning.trials)
    lines = [
        f"{trials - pruned} trials complete, {pruned} pruned, {tuning.failed} failed; "
        f"{tuning.seconds / 60:,.1f} minutes in all, {tuning.new} trials in this run."
    ]
    if not tuning.new:
        lines.insert(
            0, "Nothing to do: the budget of this search is used up. A larger --trials or --minutes continues it."
        )
    best, start = tuning.best, tuning.start
    if best is None or start is None or start.score is None:
        return lines
    if best.is_start:
        return [*lines, f"No trial was better than the starting settings, those of preset {tuning.plan.preset}."]
    gain = 100 * ((best.score or 0.0) - start.score)
    return [
        *lines,
        f"**{gain:.1f} points of macro-F1 above the starting settings**, those of preset {tuning.plan.preset} "
        f"({start.score:.4f}). Both are validation scores, and the validation split chose the best of {trials} trials: "
        "on the test split expect less.",
    ]
