"""The report of a search for settings as Markdown, for the UI and the terminal."""

import shlex

from flows.reports.markdown import percent, picture, table
from pipeline.training.tune.search import SearchResult, TrialResult, describe

BEST_TRIALS = 10
LISTED_SETTINGS = 5


def tuning_report(tuning: SearchResult, *, pictures: bool) -> str:
    """Return what a search found, what it gained over the starting preset, and how to train with it.

    Args:
        tuning: what the search ended with.
        pictures: embed the picture of the trials (for the UI; a terminal cannot show it).
    """
    parts = [
        f"## Search {tuning.plan.name}: {_verdict(tuning)}",
        _counts(tuning),
        _gain(tuning),
        picture(tuning.picture) if pictures else "",
        f"### The best of {len(tuning.trials)} trials",
        _trial_table(tuning),
        _importance(tuning),
        _next_step(tuning),
    ]
    return "\n\n".join(part for part in parts if part)


def _verdict(tuning: SearchResult) -> str:
    best = tuning.best
    return f"validation macro-F1 {best.score:.4f}" if best else "no trial is complete"


def _counts(tuning: SearchResult) -> str:
    pruned = sum(trial.pruned for trial in tuning.trials)
    line = (
        f"{len(tuning.trials) - pruned} trials complete, {pruned} pruned, {tuning.failed} failed; "
        f"{tuning.seconds / 60:,.1f} minutes in all, {tuning.new} trials in this run."
    )
    if tuning.new:
        return line
    return (
        f"Nothing to do: the budget of this search is used up. A larger --trials or --minutes continues it.\n\n{line}"
    )


def _gain(tuning: SearchResult) -> str:
    """Return how much better the best trial is than the starting preset."""
    best, start = tuning.best, tuning.start
    if best is None or start is None or start.score is None:
        return ""
    if best.is_start:
        return f"No trial was better than the starting settings, those of preset {tuning.plan.preset}."
    gain = 100 * ((best.score or 0.0) - start.score)
    return (
        f"**{gain:.1f} points of macro-F1 above the starting settings**, those of preset {tuning.plan.preset} "
        f"({start.score:.4f}). Both were measured on the validation split, which chose the best of "
        f"{len(tuning.trials)}: on the test split expect less."
    )


def _trial_table(tuning: SearchResult) -> str:
    ordered = sorted(tuning.trials, key=lambda trial: (trial.pruned, -(trial.score or 0.0), trial.number))
    rows = [_row(trial, tuning) for trial in ordered[:BEST_TRIALS]]
    return table(["trial", "macro-F1", "", "epochs", "seconds", "what differs from the start"], rows)


def _row(trial: TrialResult, tuning: SearchResult) -> tuple[object, ...]:
    score = "" if trial.score is None else f"{trial.score:.4f}"
    state = "pruned" if trial.pruned else "complete"
    return trial.number, score, state, trial.epochs, f"{trial.seconds:,.0f}", describe(trial, tuning.plan.start)


def _importance(tuning: SearchResult) -> str:
    if not tuning.importance:
        return ""
    shares = [f"`{field}` {percent(share)}" for field, share in list(tuning.importance.items())[:LISTED_SETTINGS]]
    complete = sum(not trial.pruned for trial in tuning.trials)
    return (
        f"What mattered most, as far as {complete} complete trials can say (share of the differences between "
        f"their scores): {', '.join(shares)}."
    )


def _next_step(tuning: SearchResult) -> str:
    if tuning.preset is None:
        return ""
    words = ["nightlabel", "train", "--preset", str(tuning.preset)]
    for batch in tuning.plan.batches:
        words += ["--batch", batch]
    for option in ("embeddings", "encoder", "teacher"):
        if given := getattr(tuning.plan, option):
            words += [f"--{option}", given]
    return f"Train with the result: `{shlex.join(words)}`"
