"""A budgeted search for better settings, which a killed run takes up again.

A trial is a training, scored by its macro-F1 on the validation split; the test split takes no part. Trials
that fall behind are pruned, and the best settings become a preset.
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

from pipeline.config import Recipe
from pipeline.dataset.corpus import TRAIN
from pipeline.files import atomic_path, value_digest
from pipeline.training.loop import OnEpoch, Progress, enough_epochs
from pipeline.training.prepare import PreparedData, WarmStart, prepare
from pipeline.training.pretrain.encoder import named_encoder
from pipeline.training.selection import delete_checkpoints, fit
from pipeline.training.tune.plots import tuning_trials
from pipeline.training.tune.search_space import SearchPlan, value_of, with_settings
from pipeline.training.tune.study import IS_START, open_study
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)

PRUNER_STARTUP_TRIALS = 5  # complete ones, before the next are measured by them
PRUNER_MIN_TRIALS = 3  # fewest scores of an epoch that make a median
IMPORTANCE_MIN_TRIALS = 8  # complete ones, below which it is guesswork which settings mattered
LINE_SECONDS = 30.0  # between two lines from inside a trial


@dataclass(frozen=True)
class Trial:
    """One training of a search that came to its end.

    Attributes:
        number: its place in the order of those that ended, from 1.
        score: its validation macro-F1, of a pruned one the LSTM's best; None if memory did not suffice for an epoch.
        epochs: how far it came.
        seconds: it took.
        pruned: whether it was stopped early.
        is_start: whether it has the starting settings.
        recipe: all its settings.
        settings: those of them that are searched, by `section.field`.
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
    """What a search has found so far.

    Attributes:
        plan: what it was to do.
        trials: those that ended, in order.
        failed: how many others were killed; most of them began again and are among `trials`.
        new: how many ended in this run.
        importance: share of each setting in the differences between scores; empty if there are too few to say.
        preset: file with the best settings; None if no trial is complete.
        picture: a PNG of the trials.
    """

    plan: SearchPlan
    trials: list[Trial]
    failed: int
    new: int
    importance: dict[str, float]
    preset: Path | None
    picture: Path

    @property
    def best(self) -> Trial | None:
        return best_of(self.trials)

    @property
    def start(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.is_start), None)

    @property
    def seconds(self) -> float:
        return sum(trial.seconds for trial in self.trials)


def search(workspace: Workspace, plan: SearchPlan, progress: Progress | None = None) -> SearchResult:
    """Try settings until the budget is used up, and write the best as a preset.

    What a killed run had under way goes on from its last checkpoint.

    Args:
        workspace: where the documents lie, and the search is kept.
        plan: what to do.
        progress: called at the end of each trial, and now and then from inside one.

    Raises:
        TrainingDataError: the documents cannot train a classifier.
        BatchError: a named batch does not exist.
        InputError: word vectors or a teacher's table cannot be read, or do not suit.
        ModelError: there is no such encoder, or it does not suit.
        ConfigError: the search of this name was begun with other settings or documents.
        WorkspaceError: another run is at work on this search, or its journal is damaged.
    """
    workspace.ensure_writable()
    encoder = named_encoder(workspace, plan.encoder, plan.start) if plan.encoder else None
    start = WarmStart(plan.embeddings, encoder, plan.teacher)
    prepared = prepare(workspace, plan.start, plan.batches, start)
    with open_study(workspace.tuning_dir(plan.name), plan, _facts(plan, prepared)) as study:
        return _Run(workspace, plan, prepared, study, progress).to_the_end()


def _facts(plan: SearchPlan, prepared: PreparedData) -> dict[str, str]:
    return {
        "starting settings": value_digest(plan.start.model_dump(mode="json", exclude={"selective", "promotion"})),
        "settings to search": value_digest({field: distribution_to_json(one) for field, one in plan.space.items()}),
        "word vectors": prepared.word_vectors.digest if prepared.word_vectors else "",
        "pretrained encoder": plan.encoder or "",
        "teacher": prepared.soft_labels.digest if prepared.soft_labels else "",
        "documents": prepared.cache.fingerprint,
    }


class _Run:
    """One run of a search. The checkpoints of its trials lie in its own folder, apart from those of `train`."""

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
        self.start = _with_epochs(plan.start, prepared)
        # Scores after as many epochs are compared, once the learning rate has ceased to rise.
        warm_up = math.ceil(self.start.training.epochs / 3)
        study.pruner = MedianPruner(PRUNER_STARTUP_TRIALS, warm_up, n_min_trials=PRUNER_MIN_TRIALS)

    def to_the_end(self) -> SearchResult:
        """Spend what is left of the budget, and return all there is to say of the search."""
        before = len(self.ended())
        logger.info("%d of %d trials are done; searched: %s", before, self.plan.trials, ", ".join(self.plan.space))
        while not self._used_up():
            self._try()
        trials, importance, picture = self.ended(), _importance(self.study), self.folder / "trials.png"
        with atomic_path(picture) as temporary:
            temporary.write_bytes(_picture(trials, importance))
        return SearchResult(
            plan=self.plan,
            trials=trials,
            failed=len(self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))),
            new=len(trials) - before,
            importance=importance,
            preset=self._write_preset(),
            picture=picture,
        )

    def ended(self) -> list[Trial]:
        """Return the trials that are complete or pruned, in order."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return [self._told(number, trial) for number, trial in enumerate(trials, start=1)]

    def _told(self, number: int, trial: FrozenTrial) -> Trial:
        assert trial.duration is not None
        recipe = self._recipe(trial)
        return Trial(
            number=number,
            score=max(trial.values or trial.intermediate_values.values(), default=None),
            epochs=trial.last_step or 0,
            seconds=trial.duration.total_seconds(),
            pruned=trial.state == TrialState.PRUNED,
            is_start=IS_START in trial.user_attrs,
            recipe=recipe,
            settings={field: value_of(recipe, field) for field in self.plan.space},
        )

    def _used_up(self) -> bool:
        trials = self.ended()
        minutes = sum(trial.seconds for trial in trials) / 60
        return len(trials) >= self.plan.trials or (self.plan.minutes is not None and minutes >= self.plan.minutes)

    def _recipe(self, trial: FrozenTrial | optuna.Trial) -> Recipe:
        return self.start if IS_START in trial.user_attrs else with_settings(self.start, trial.params)

    def _try(self) -> None:
        """Train once, to the end or until the trial falls behind."""
        trial = self.study.ask(self.plan.space)
        recipe, place = self._recipe(trial), Workspace(self.folder)
        try:
            trained = fit(place, self.prepared, recipe, self._inside(), on_epoch=_pruning(trial, recipe))
        except (optuna.TrialPruned, torch.OutOfMemoryError):  # too large for this GPU is a bad choice, like a low score
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, trained.best_macro_f1)
        delete_checkpoints(place, self.prepared, recipe)
        self._conclude()

    def _inside(self) -> Progress:
        """Return what a training tells its progress to: passes a line on now and then, with the trial's number."""
        number, told = len(self.ended()) + 1, time.monotonic()

        def tell(share: float, line: str) -> None:
            nonlocal told
            if time.monotonic() - told > LINE_SECONDS:
                told = time.monotonic()
                self._say(number, number - 1 + share, line)

        return tell

    def _conclude(self) -> None:
        """Say how the last trial went, and write the preset if it is the best."""
        trials = self.ended()
        last, best = trials[-1], best_of(trials)
        rank = ""
        if best is last:
            self._write_preset()
            rank = " (best so far)"
        elif best is not None:
            rank = f" (best is {best.score:.4f} of trial {best.number})"
        self._say(last.number, last.number, f"{outcome(last)}{rank}; {describe(last, self.plan.start)}")

    def _say(self, number: int, done: float, line: str) -> None:
        if self.progress:
            self.progress(done / self.plan.trials, f"trial {number} of {self.plan.trials}: {line}")

    def _write_preset(self) -> Path | None:
        trials, path = self.ended(), self.workspace.preset_path(self.plan.name)
        best = best_of(trials)
        if best is None:
            return None
        origin = (
            f"# Found by nightlabel tune --name {self.plan.name}, starting from preset {self.plan.preset}:\n"
            f"# validation macro-F1 {best.score:.4f}, the best of {len(trials)} trials.\n"
        )
        with atomic_path(path) as temporary:
            temporary.write_text(origin + preset_text(best.recipe), encoding="utf-8")
        return path


def _with_epochs(start: Recipe, prepared: PreparedData) -> Recipe:
    """Return the starting settings with their epochs counted, so that every batch size has as many."""
    training = start.training
    epochs = training.epochs or enough_epochs(len(prepared.read(TRAIN)), training.batch_size)
    return start.model_copy(update={"training": training.model_copy(update={"epochs": epochs})})


def _pruning(trial: optuna.Trial, recipe: Recipe) -> OnEpoch:
    """Return what is called with each epoch: it ends a training that has fallen behind, unless it is over anyway."""
    seen: set[int] = set()

    def report(entry: dict[str, float]) -> None:
        epoch = int(entry["epoch"])
        if epoch in seen:  # a training that tries several ways comes by each epoch several times
            return
        seen.add(epoch)
        trial.report(entry["validation_macro_f1"], epoch)
        if epoch < recipe.training.epochs and trial.should_prune():
            raise optuna.TrialPruned

    return report


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the complete trial with the highest score, the first of equal ones."""
    complete = [trial for trial in trials if not trial.pruned]
    return max(complete, key=lambda trial: trial.score or 0.0, default=None)


def outcome(trial: Trial) -> str:
    """Return how a trial ended, in some words."""
    if trial.score is None:
        return "memory did not suffice"
    score = f"macro-F1 {trial.score:.4f}"
    return f"pruned after epoch {trial.epochs}, {score}" if trial.pruned else score


def describe(trial: Trial, start: Recipe) -> str:
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


def _picture(trials: Sequence[Trial], importance: dict[str, float]) -> bytes:
    return tuning_trials(
        [trial.score for trial in trials],
        [trial.pruned for trial in trials],
        importance={field.split(".")[1].replace("_", " "): share for field, share in importance.items()},
        learning_rates=[trial.recipe.training.learning_rate for trial in trials],
    )


def preset_text(recipe: Recipe) -> str:
    """Return settings as TOML, only those that differ from their defaults."""
    sections = []
    for section, values in recipe.model_dump(mode="json").items():
        defaults = getattr(Recipe(), section).model_dump(mode="json")
        # What JSON writes of a number, a truth value, a string or a list is TOML too.
        lines = [f"{field} = {json.dumps(value)}" for field, value in values.items() if value != defaults[field]]
        if lines:
            sections.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(sections) + "\n"
