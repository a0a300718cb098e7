"""Hyperparameter search within a budget; a killed run resumes.

A trial is a training, scored by its macro-F1 on the validation split; the test split is not used. Bad trials are
pruned, and the best settings are written as a preset.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import distribution_to_json
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial, TrialState

from pipeline.config import Recipe, training_digest_values
from pipeline.dataset.corpus import TRAIN
from pipeline.files import atomic_path, value_digest
from pipeline.training.loop import OnEpoch, enough_epochs
from pipeline.training.prepare import PreparedData, WarmStart, prepare
from pipeline.training.pretrain.encoder import named_encoder
from pipeline.training.resumable import Progress
from pipeline.training.selection import delete_checkpoints, fit
from pipeline.training.tune.plots import tuning_trials
from pipeline.training.tune.search_space import SearchPlan, value_of, with_settings
from pipeline.training.tune.study import IS_START, distributions, open_study
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)

PRUNER_STARTUP_TRIALS = 5  # complete ones, before any is pruned
PRUNER_MIN_TRIALS = 3  # scores of an epoch, below which there is no median
IMPORTANCE_MIN_TRIALS = 8  # complete ones, below which importances are noise
LINE_SECONDS = 30.0  # between two progress lines of a trial


@dataclass(frozen=True)
class TrialResult:
    """A finished training of a search.

    Attributes:
        number: from 1, in the order of finishing.
        score: validation macro-F1, of a pruned trial the LSTM's best; None if it ran out of memory before an epoch.
        epochs: finished epochs.
        seconds: duration.
        pruned: whether it was stopped early.
        is_start: whether it has the starting settings.
        recipe: all settings.
        settings: the searched settings, by `section.field`.
    """

    number: int
    score: float | None
    epochs: int
    seconds: float
    pruned: bool
    is_start: bool
    recipe: Recipe
    settings: dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """The results of a search so far.

    Attributes:
        plan: of the search.
        trials: finished trials, in order.
        failed: number of killed trials; most were enqueued again and are among `trials`.
        new: number of trials that finished in this run.
        importance: share of each setting in the variance of the scores; empty if there are too few.
        preset: file with the best settings; None if no trial is complete.
        picture: a PNG of the trials.
    """

    plan: SearchPlan
    trials: list[TrialResult]
    failed: int
    new: int
    importance: dict[str, float]
    preset: Path | None
    picture: Path

    @property
    def best(self) -> TrialResult | None:
        """The complete trial with the highest score, if any."""
        return best_of(self.trials)

    @property
    def start(self) -> TrialResult | None:
        """The trial with the starting settings, if it is finished."""
        return next((trial for trial in self.trials if trial.is_start), None)

    @property
    def seconds(self) -> float:
        """Seconds spent in all finished trials."""
        return sum(trial.seconds for trial in self.trials)


def search(workspace: Workspace, plan: SearchPlan, progress: Progress | None = None) -> SearchResult:
    """Run trials until the budget is used up, and write the best settings as a preset.

    The trial of a killed run resumes from its last checkpoint.

    Args:
        workspace: where the documents and the search are.
        plan: what to search, and the budget.
        progress: called at the end of each trial, and now and then during one.

    Raises:
        TrainingDataError: the documents cannot train a classifier.
        BatchError: a named batch does not exist.
        InputError: word vectors or soft labels cannot be read, or do not match.
        ModelError: there is no such encoder, or it does not match.
        ConfigError: the search of this name was begun with other settings or documents.
        WorkspaceError: another run works on this search, or its journal is damaged.
    """
    workspace.ensure_writable()
    encoder = named_encoder(workspace, plan.encoder, plan.start) if plan.encoder else None
    prepared = prepare(workspace, plan.start, plan.batches, WarmStart(plan.embeddings, encoder, plan.teacher))
    space = {field: distribution_to_json(values) for field, values in distributions(plan.space).items()}
    start = training_digest_values(plan.start, {"tokenizer", "model", "pretraining", "training"})
    facts = {
        "starting settings": value_digest(start),
        "settings to search": value_digest(space),
        "word vectors": prepared.word_vectors.digest if prepared.word_vectors else "",
        "pretrained encoder": plan.encoder or "",
        "teacher": prepared.soft_labels.digest if prepared.soft_labels else "",
        "documents": prepared.cache.fingerprint,
    }
    with open_study(workspace.tuning_dir(plan.name), plan, facts) as study:
        return _Run(workspace, plan, prepared, study, progress).run_trials()


class _Run:
    """One run of a search. The checkpoints of its trials are in its own folder, apart from those of `train`."""

    def __init__(
        self,
        workspace: Workspace,
        plan: SearchPlan,
        prepared: PreparedData,
        study: optuna.Study,
        progress: Progress | None,
    ) -> None:
        self.workspace, self.plan, self.prepared, self.study, self.progress = workspace, plan, prepared, study, progress
        self.folder = workspace.tuning_dir(plan.name)
        training = plan.start.training
        # Set once, so that every batch size has the same number of epochs.
        with_subwords = plan.start.model.subwords and prepared.encoder is None
        epochs = training.epochs or enough_epochs(prepared.read(TRAIN), training, with_subwords=with_subwords)
        self.start = plan.start.model_copy(update={"training": training.model_copy(update={"epochs": epochs})})
        # Scores of the same epoch are compared, once the learning rate falls.
        study.pruner = MedianPruner(PRUNER_STARTUP_TRIALS, math.ceil(epochs / 3), n_min_trials=PRUNER_MIN_TRIALS)

    def run_trials(self) -> SearchResult:
        """Use up the budget, and return the results of the search."""
        plan, trials = self.plan, self.finished()
        before, limit = len(trials), math.inf if plan.minutes is None else 60 * plan.minutes
        logger.info("%d of %d trials are done; searched: %s", before, plan.trials, ", ".join(plan.space))
        while len(trials) < plan.trials and sum(trial.seconds for trial in trials) < limit:
            self.run_trial(len(trials) + 1)
            trials = self.finished()
            self.report_last(trials)
        importance, picture = _importance(self.study), self.folder / "trials.png"
        with atomic_path(picture) as temporary:
            temporary.write_bytes(
                tuning_trials(
                    [trial.score for trial in trials],
                    [trial.pruned for trial in trials],
                    importance={field.split(".")[1].replace("_", " "): share for field, share in importance.items()},
                    learning_rates=[trial.recipe.training.learning_rate for trial in trials],
                )
            )
        return SearchResult(
            plan=plan,
            trials=trials,
            failed=len(self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))),
            new=len(trials) - before,
            importance=importance,
            preset=self.write_preset(trials),
            picture=picture,
        )

    def finished(self) -> list[TrialResult]:
        """Return the complete and pruned trials, in order."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        results = []
        for number, trial in enumerate(trials, start=1):
            assert trial.duration is not None
            recipe = self.recipe_of(trial)
            results.append(
                TrialResult(
                    number=number,
                    score=max(trial.values or trial.intermediate_values.values(), default=None),
                    epochs=trial.last_step or 0,
                    seconds=trial.duration.total_seconds(),
                    pruned=trial.state == TrialState.PRUNED,
                    is_start=IS_START in trial.user_attrs,
                    recipe=recipe,
                    settings={field: value_of(recipe, field) for field in self.plan.space},
                )
            )
        return results

    def recipe_of(self, trial: FrozenTrial | optuna.Trial) -> Recipe:
        """Return all settings of a trial."""
        return self.start if IS_START in trial.user_attrs else with_settings(self.start, trial.params)

    def run_trial(self, number: int) -> None:
        """Train once, until the end or until the trial is pruned."""
        trial = self.study.ask(distributions(self.plan.space))
        recipe, folder, reported = self.recipe_of(trial), Workspace(self.folder), time.monotonic()

        def report(share: float, line: str) -> None:
            nonlocal reported
            if time.monotonic() - reported > LINE_SECONDS:
                reported = time.monotonic()
                self.report(number, number - 1 + share, line)

        try:
            trained = fit(folder, self.prepared, recipe, report, on_epoch=_pruning(trial, recipe.training.epochs))
        except (optuna.TrialPruned, torch.OutOfMemoryError):  # too large for this GPU counts like a low score
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, trained.best_macro_f1)
        delete_checkpoints(folder, self.prepared, recipe)

    def report_last(self, trials: Sequence[TrialResult]) -> None:
        """Report the last trial, and write the preset if it is the best."""
        last, best = trials[-1], best_of(trials)
        rank = f" (best is {best.score:.4f} of trial {best.number})" if best is not None else ""
        if best is last:
            self.write_preset(trials)
            rank = " (best so far)"
        self.report(last.number, last.number, f"{outcome(last)}{rank}; {describe(last, self.plan.start)}")

    def report(self, number: int, finished: float, line: str) -> None:
        """Report progress of a trial, after so many finished trials."""
        if self.progress:
            self.progress(finished / self.plan.trials, f"trial {number} of {self.plan.trials}: {line}")

    def write_preset(self, trials: Sequence[TrialResult]) -> Path | None:
        """Write the settings of the best trial as a preset, if a trial is complete; return its path."""
        best = best_of(trials)
        if best is None:
            return None
        origin = (
            f"# Found by nightlabel tune --name {self.plan.name}, starting from preset {self.plan.preset}:\n"
            f"# validation macro-F1 {best.score:.4f}, the best of {len(trials)} trials.\n"
        )
        path = self.workspace.preset_path(self.plan.name)
        with atomic_path(path) as temporary:
            temporary.write_text(origin + preset_text(best.recipe), encoding="utf-8")
        return path


def _pruning(trial: optuna.Trial, epochs: int) -> OnEpoch:
    """Return a callback that reports each epoch's score and prunes the trial, but not after its last epoch."""
    reported: set[int] = set()

    def report(entry: dict[str, float]) -> None:
        epoch = int(entry["epoch"])
        if epoch in reported:  # a recipe with several trainings reaches each epoch several times
            return
        reported.add(epoch)
        trial.report(entry["validation_macro_f1"], epoch)
        if epoch < epochs and trial.should_prune():
            raise optuna.TrialPruned

    return report


def best_of(trials: Sequence[TrialResult]) -> TrialResult | None:
    """Return the complete trial with the highest score, the first of equal ones."""
    complete = [trial for trial in trials if not trial.pruned]
    return max(complete, key=lambda trial: trial.score or 0.0, default=None)


def outcome(trial: TrialResult) -> str:
    """Return the outcome of a trial as a phrase."""
    if trial.score is None:
        return "out of memory"
    score = f"macro-F1 {trial.score:.4f}"
    return f"pruned after epoch {trial.epochs}, {score}" if trial.pruned else score


def describe(trial: TrialResult, start: Recipe) -> str:
    """Return the settings in which a trial differs from the start."""
    changes = [
        f"{field.split('.')[1]} {value}" for field, value in trial.settings.items() if value != value_of(start, field)
    ]
    return ", ".join(changes) or "the starting settings"


def _importance(study: optuna.Study) -> dict[str, float]:
    """Return each setting's share in the variance of the scores, largest first (fANOVA, Hutter et al. 2014)."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < IMPORTANCE_MIN_TRIALS or len({trial.value for trial in complete}) == 1:
        return {}
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {field: float(share) for field, share in shares.items()} if len(shares) > 1 else {}


def preset_text(recipe: Recipe) -> str:
    """Return settings as TOML, only those that differ from their defaults."""
    sections = []
    for section, values in recipe.model_dump(mode="json").items():
        defaults = getattr(Recipe(), section).model_dump(mode="json")
        # JSON of a number, a truth value, a string or a list is TOML too.
        lines = [f"{field} = {json.dumps(value)}" for field, value in values.items() if value != defaults[field]]
        if lines:
            sections.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(sections) + "\n"
