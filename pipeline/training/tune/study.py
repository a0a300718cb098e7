"""The trials of a search, kept by Optuna in one journal file, which a killed run leaves as good as whole."""

import fcntl
import itertools
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pipeline.errors import ConfigError, WorkspaceError
from pipeline.training.tune.search_space import SearchPlan, combinations, starting_values

logger = logging.getLogger(__name__)

RANDOM_TRIALS = 8  # before the sampler goes by what it has seen
LISTED = 24  # so few combinations are tried one by one
ATTEMPTS = 3  # settings that were killed this often are given up: perhaps it was they that took the memory
IS_START, ATTEMPT, AGAIN = "start", "attempt", "again"  # notes kept with a trial


@contextmanager
def open_study(folder: Path, plan: SearchPlan, facts: dict[str, str]) -> Iterator[optuna.Study]:
    """Yield a search, new or taken up: what was killed is marked as failed and enqueued again.

    Args:
        folder: of this search.
        plan: what it is to do.
        facts: digests of all that must stay the same while it goes on, by name, in the order of what to say first.

    Raises:
        ConfigError: it was begun with other facts.
        WorkspaceError: another run is at work on it, or its journal is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress tells the same in our words
    with _alone(folder, plan.name):
        study = _load(folder / "trials.log", plan.name)
        _check_same(study, facts)
        if not study.trials:
            study.enqueue_trial(starting_values(plan), {IS_START: True})
        _take_up(study)
        if combinations(plan.space) <= LISTED:
            _enqueue_all(study, plan)
        # A seed of its own for each run: a search that goes on does not propose the same again.
        seed = plan.start.training.seed + len(study.trials)
        study.sampler = TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
        yield study


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """See to it that one process at a time works on a search; the system lets go of what a killed one held."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkspaceError(
                f"another run is at work on the search {name!r}: wait for it, or choose another --name"
            ) from error
        yield


def _load(journal: Path, name: str) -> optuna.Study:
    _mend(journal)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    except (ValueError, KeyError) as error:
        raise WorkspaceError(
            f"{journal} is damaged ({error}): delete {journal.parent}, or choose another --name"
        ) from error


def _mend(journal: Path) -> None:
    """Remove what a killed run leaves: the lock on the journal, and half a line at its end."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        whole = journal.read_bytes().rfind(b"\n") + 1
        with journal.open("r+b") as handle:
            handle.truncate(whole)


def _check_same(study: optuna.Study, facts: dict[str, str]) -> None:
    begun = study.user_attrs.get("begun")
    if begun is None:
        study.set_user_attr("begun", facts)
        return
    for what, digest in facts.items():
        if begun.get(what) != digest:
            raise ConfigError(f"the search {study.study_name!r} was begun with other {what}: choose another --name")


def _take_up(study: optuna.Study) -> None:
    """Mark what was under way when a run was killed as failed, and enqueue its settings again."""
    again = {trial.user_attrs.get(AGAIN) for trial in study.trials}
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        attempt = trial.user_attrs.get(ATTEMPT, 1)
        values: dict[str, Any] = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if attempt == ATTEMPTS:
            logger.warning("settings under which %d runs were killed are given up: %s", attempt, values)
        elif trial.number not in again:
            study.enqueue_trial(values, {**trial.user_attrs, AGAIN: trial.number, ATTEMPT: attempt + 1})
        study.tell(trial.number, state=TrialState.FAIL)


def _enqueue_all(study: optuna.Study, plan: SearchPlan) -> None:
    """Enqueue every combination that is not there yet, in an order that depends on the seed."""
    choices = [one.choices for one in plan.space.values() if isinstance(one, CategoricalDistribution)]
    rows = list(itertools.product(*choices))
    random.Random(plan.start.training.seed).shuffle(rows)
    for row in rows:
        study.enqueue_trial(dict(zip(plan.space, row, strict=True)), skip_if_exists=True)
