"""The Optuna study of a search: opened, locked, and repaired after a kill.

A journal file rather than SQLite: storing 40 trials of 8 epochs takes a fifth of the time, and it works on NFS.
"""

import fcntl
import itertools
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pipeline.errors import ConfigError, WorkspaceError
from pipeline.training.tune.search_space import Range, SearchPlan, Space, combinations, starting_values

logger = logging.getLogger(__name__)

RANDOM_TRIALS = 8  # before the sampler uses the results
MAX_LISTED = 24  # up to so many combinations are all tried
ATTEMPTS = 3  # killed this often, settings are given up: they may need too much memory
IS_START, ATTEMPT, AGAIN = "start", "attempt", "again"  # user attributes of a trial


@contextmanager
def open_study(folder: Path, plan: SearchPlan, facts: dict[str, str]) -> Iterator[optuna.Study]:
    """Yield a search's study, new or resumed: trials of a killed run are marked as failed and enqueued again.

    Args:
        folder: of this search.
        plan: what to search.
        facts: digests of all that must not change while a search goes on, by name, the most telling first.

    Raises:
        ConfigError: it was begun with other facts.
        WorkspaceError: another run works on it, or its journal is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress reports the same in our words
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # the system releases it if the process is killed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkspaceError(
                f"another run works on the search {plan.name!r}: wait for it, or choose another --name"
            ) from error
        study = _load(folder / "trials.log", plan.name)
        if "begun" not in study.user_attrs:
            study.set_user_attr("begun", facts)
        for name, digest in facts.items():
            if study.user_attrs["begun"].get(name) != digest:
                raise ConfigError(f"the search {plan.name!r} was begun with other {name}: choose another --name")
        _enqueue(study, plan)
        # A seed for each run: a resumed search does not propose the same settings again.
        seed = plan.start.training.seed + len(study.trials)
        study.sampler = TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
        yield study


def _load(journal: Path, name: str) -> optuna.Study:
    """Load or create a study, after removing what a killed run leaves: a lock, and half a line at the end."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        with journal.open("r+b") as handle:
            handle.truncate(handle.read().rfind(b"\n") + 1)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    except (ValueError, KeyError) as error:
        raise WorkspaceError(
            f"{journal} is damaged ({error}): delete {journal.parent}, or choose another --name"
        ) from error


def _enqueue(study: optuna.Study, plan: SearchPlan) -> None:
    """Enqueue the starting settings, the trials of a killed run, and all combinations if there are few."""
    if not study.trials:
        study.enqueue_trial(starting_values(plan), {IS_START: True})
    enqueued = {trial.user_attrs.get(AGAIN) for trial in study.trials}
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        attempt = trial.user_attrs.get(ATTEMPT, 1)
        values: dict[str, Any] = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if attempt == ATTEMPTS:
            logger.warning("settings are given up, because %d runs were killed with them: %s", attempt, values)
        elif trial.number not in enqueued:
            study.enqueue_trial(values, {**trial.user_attrs, AGAIN: trial.number, ATTEMPT: attempt + 1})
        study.tell(trial.number, state=TrialState.FAIL)
    if combinations(plan.space) <= MAX_LISTED:
        rows = list(itertools.product(*(values for values in plan.space.values() if isinstance(values, tuple))))
        random.Random(plan.start.training.seed).shuffle(rows)
        for row in rows:
            study.enqueue_trial(dict(zip(plan.space, row, strict=True)), skip_if_exists=True)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return a search space as Optuna's distributions."""
    return {
        field: FloatDistribution(values.low, values.high, log=values.log)
        if isinstance(values, Range)
        else CategoricalDistribution(values)
        for field, values in space.items()
    }
