"""A search spends its budget once, whatever kills it, and its preset gives the score it claims."""

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from conftest import weather_rows
from optuna.trial import TrialState

from pipeline.config import Recipe, load_recipe
from pipeline.errors import ConfigError, WorkspaceError
from pipeline.training.prepare import PreparedData, prepare
from pipeline.training.selection import fit
from pipeline.training.tune import search as tuning
from pipeline.training.tune.plots import tuning_trials
from pipeline.training.tune.search import SearchResult, search
from pipeline.training.tune.search_space import (
    SEARCH_SPACE,
    Range,
    SearchPlan,
    make_search_plan,
    starting_values,
    value_of,
    with_settings,
)
from pipeline.training.tune.study import ATTEMPTS, distributions, open_study
from pipeline.workspace import Batch, Workspace

# Small enough that a trial takes about a third of a second.
SMALL = [
    *("tokenizer.min_count=1", "tokenizer.vocabulary_size=500", "model.hidden_size=8", "model.embedding_size=8"),
    *("model.wide_buckets=101", "training.epochs=4", "training.batch_size=16", "training.device=cpu"),
]
RATE = "training.learning_rate"
FACTS = {"documents": "these"}
RUN = """
import sys
from pipeline.training.tune.search import search
from pipeline.training.tune.search_space import make_search_plan
from pipeline.workspace import Workspace

folder, trials, *settings = sys.argv[1:]
plan = make_search_plan("cut", settings=settings, trials=int(trials))

def say(share, line):
    print(line, flush=True)
    if line.startswith("trial 1 of 4: macro-F1"):
        sys.stdin.read()  # whose end never comes: it waits to be killed

search(Workspace(folder), plan, say)
"""


@pytest.fixture(autouse=True)
def documents(add_batch: Callable[..., Batch]) -> Batch:
    rows = weather_rows()
    for row in rows[::9]:  # some labels are wrong, so that scores differ
        row["label"] = "rain"
    return add_batch(rows)


def small_plan(**given: Any) -> SearchPlan:
    return make_search_plan(**{"name": "small", "settings": SMALL, "only": [RATE, "model.head_dropout"], **given})


def scores(tuning: SearchResult) -> list[tuple[Any, float | None]]:
    return [(trial.settings, trial.score) for trial in tuning.trials]


def test_the_first_trial_is_the_start_and_the_preset_trains_to_the_best_score(workspace: Workspace) -> None:
    found = search(workspace, small_plan(trials=4))
    assert found.start is found.trials[0]
    assert found.start.recipe == load_recipe("default", SMALL)
    assert found.best is not None
    assert found.best.score == max(trial.score or 0 for trial in found.trials)
    assert found.preset == workspace.root / "presets" / "small.toml"
    recipe = load_recipe(str(found.preset))
    assert recipe == found.best.recipe
    again = fit(workspace, prepare(workspace, recipe), recipe)
    assert again.best_macro_f1 == found.best.score


def test_a_preset_says_where_it_comes_from_and_only_what_differs_from_the_default(workspace: Workspace) -> None:
    found = search(workspace, small_plan(trials=1))
    assert found.preset is not None
    first, second, *rest = found.preset.read_text(encoding="utf-8").splitlines()
    assert first == "# Found by nightlabel tune --name small, starting from preset default:"
    assert second.startswith("# validation macro-F1 0.")
    assert rest == [
        *("[tokenizer]", "vocabulary_size = 500", ""),
        *("[model]", "embedding_size = 8", "hidden_size = 8", "wide_buckets = 101", ""),
        *("[training]", "epochs = 4", "batch_size = 16", 'device = "cpu"'),
    ]


def test_a_budget_is_spent_once_and_a_larger_one_goes_on(workspace: Workspace) -> None:
    first = search(workspace, small_plan(trials=2))
    again = search(workspace, small_plan(trials=2))
    more = search(workspace, small_plan(trials=4))
    assert [found.new for found in (first, again, more)] == [2, 0, 2]
    assert scores(again) == scores(first) == scores(more)[:2]
    assert len({str(settings) for settings, _ in scores(more)}) == 4  # nothing is proposed twice
    spent = search(workspace, small_plan(trials=9, minutes=1e-6))
    assert spent.new == 0


@pytest.mark.slow
def test_a_killed_search_goes_on_and_repeats_nothing_that_was_finished(workspace: Workspace) -> None:
    """Killed by SIGKILL as soon as the first of four trials is over."""
    settings = [*SMALL, "training.epochs=6"]
    command = [sys.executable, "-c", RUN, str(workspace.root), "4", *settings]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with closing(process.stdout) as lines:
            line = next(line for line in lines if line.startswith("trial 1 of 4: macro-F1"))
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    plan = make_search_plan("cut", settings=settings, trials=4)
    told: list[str] = []
    found = search(workspace, plan, lambda _share, text: told.append(text))
    assert found.start is not None
    assert f"{found.start.score:.4f}" in line
    assert len(found.trials) == 4
    assert found.new < 4
    ends = [text for text in told if "; " in text]  # on a busy machine there are lines from inside a trial too
    assert [text.split(":")[0] for text in ends] == [f"trial {n} of 4" for n in range(5 - found.new, 5)]
    assert search(workspace, plan).new == 0


def test_what_was_under_way_is_begun_again_until_it_was_killed_too_often(tmp_path: Path) -> None:
    plan = small_plan()
    for attempt in range(1, ATTEMPTS + 1):
        with open_study(tmp_path, plan, FACTS) as study:
            assert study.ask(distributions(plan.space)).params == starting_values(plan)
            assert len(study.get_trials(states=(TrialState.FAIL,))) == attempt - 1
    with open_study(tmp_path, plan, FACTS) as study:
        assert study.ask(distributions(plan.space)).params != starting_values(plan)


def test_half_a_line_and_a_lock_that_a_killed_run_left_are_removed(tmp_path: Path) -> None:
    plan = small_plan()
    with open_study(tmp_path, plan, FACTS) as study:
        study.tell(study.ask(distributions(plan.space)), 0.5)
    journal = tmp_path / "trials.log"
    with journal.open("a") as handle:
        handle.write('{"op_code":6,"wor')
    (tmp_path / "trials.log.lock").symlink_to(journal)
    with open_study(tmp_path, plan, FACTS) as study:
        study.tell(study.ask(distributions(plan.space)), 0.6)
    with open_study(tmp_path, plan, FACTS) as study:
        assert [trial.value for trial in study.trials] == [0.5, 0.6]


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "trials.log").write_text("not a journal\nat all\n")
    with (
        pytest.raises(WorkspaceError, match=r"trials.log is damaged .* choose another --name"),
        open_study(tmp_path, small_plan(), FACTS),
    ):
        pass


def test_two_runs_do_not_work_on_one_search(tmp_path: Path) -> None:
    refused = pytest.raises(WorkspaceError, match="another run works on the search 'small'")
    with open_study(tmp_path, small_plan(), FACTS), refused, open_study(tmp_path, small_plan(), FACTS):
        pass


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"settings": [*SMALL, "training.seed=2"]}, "starting settings"),
        ({"preset": "keras-lstm64"}, "starting settings"),
        ({"only": [RATE]}, "settings to search"),
    ],
)
def test_a_search_is_not_continued_with_other_settings(workspace: Workspace, given: dict[str, Any], what: str) -> None:
    search(workspace, small_plan(trials=1))
    with pytest.raises(ConfigError, match=f"'small' was begun with other {what}: choose another --name"):
        search(workspace, small_plan(trials=1, **given))


def test_a_search_is_not_continued_with_other_documents(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    search(workspace, small_plan(trials=1))
    add_batch(weather_rows(30), "two")
    with pytest.raises(ConfigError, match="other documents"):
        search(workspace, small_plan(trials=1))
    assert search(workspace, small_plan(trials=2, name="anew")).new == 2


def test_a_trial_that_falls_behind_is_pruned_and_leaves_no_checkpoint(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PRUNER_STARTUP_TRIALS", "PRUNER_MIN_TRIALS"):
        monkeypatch.setattr(f"pipeline.training.tune.search.{name}", 1)
    quick = [text for text in SMALL if "batch_size" not in text] + ["training.batch_size=4"]  # enough to tell apart
    found = search(workspace, small_plan(trials=8, settings=quick))
    pruned = [trial for trial in found.trials if trial.pruned]
    assert pruned
    assert all(2 <= trial.epochs < 4 for trial in pruned)
    assert all(trial.epochs == 4 for trial in found.trials if not trial.pruned)
    assert not list(workspace.root.rglob("*.pt"))


def test_settings_that_need_too_much_memory_are_a_trial_without_a_score(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_gpu(place: Workspace, prepared: PreparedData, recipe: Recipe, *args: Any, **named: Any) -> Any:
        if recipe.model.hidden_size > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fit(place, prepared, recipe, *args, **named)

    monkeypatch.setattr(tuning, "fit", small_gpu)
    settings = [text for text in SMALL if "hidden_size" not in text] + ["model.wide_buckets=0"]
    plan = make_search_plan(settings=settings, only=["model.hidden_size"])
    found = search(workspace, plan)
    assert sorted((trial.settings["model.hidden_size"], trial.pruned) for trial in found.trials) == [
        *((64, False), (128, True), (256, True))
    ]
    assert found.start is not None
    assert found.start.score is None
    assert found.best is not None


def test_a_few_combinations_are_each_tried_once(workspace: Workspace) -> None:
    plan = small_plan(only=["model.pooling"], trials=20)
    assert plan.trials == 3
    found = search(workspace, plan)
    assert sorted(trial.settings["model.pooling"] for trial in found.trials) == ["attention", "max", "mean"]


def test_what_mattered_is_said_once_there_are_enough_trials(workspace: Workspace) -> None:
    alone = {"settings": [*SMALL, "model.wide_buckets=0", "model.subwords=false"]}  # else every trial is right
    assert search(workspace, small_plan(trials=3, **alone)).importance == {}
    found = search(workspace, small_plan(trials=12, **alone))
    assert set(found.importance) == {RATE, "model.head_dropout"}
    assert sum(found.importance.values()) == pytest.approx(1.0)


def test_every_searched_setting_exists_and_takes_all_its_values() -> None:
    for field, values in SEARCH_SPACE.items():
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            assert value_of(with_settings(Recipe(), {field: value}), field) == value


@pytest.mark.parametrize("preset", ["default", "imdb-lstm100", "keras-lstm64", "stacked-lstm128"])
def test_a_search_can_start_from_any_preset(preset: str) -> None:
    """Values outside the usual ones are let in."""
    plan = make_search_plan(preset=preset)
    assert set(plan.space) == set(SEARCH_SPACE)
    for field, value in starting_values(plan).items():
        distribution = distributions(plan.space)[field]
        assert distribution._contains(distribution.to_internal_repr(value))
        assert value == value_of(plan.start, field) or field == "training.weight_decay"


def test_what_is_fixed_is_not_searched() -> None:
    plan = make_search_plan(settings=["model.pooling=mean", "training.epochs=2"], embeddings="vectors.txt")
    assert set(SEARCH_SPACE) - set(plan.space) == {"model.pooling", "model.embedding_size"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"only": ["training.epochs"]}, "--only 'training.epochs': not a setting that can be searched; there are: tr"),
        ({"only": [RATE], "settings": [f"{RATE}=0.1"]}, f"--only '{RATE}': cannot be searched, because --set fixes it"),
        ({"only": ["model.embedding_size"], "embeddings": "x.txt"}, "the word vectors fix it"),
        ({"settings": [f"{field}={value_of(Recipe(), field)}" for field in SEARCH_SPACE]}, "leave one of them free"),
        ({"trials": 0}, "--trials 0: a search needs at least one"),
        ({"minutes": 0.0}, "--minutes 0: a search needs some time"),
        ({"name": "../x"}, "search '../x' cannot be used"),
        ({"preset": "nope"}, "no preset 'nope'"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_search_plan(**given)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"[model\n", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"[model]\nsize = 3\n", "setting model.size = 3"),
        (b"[training]\nepochs = -1\n", "setting training.epochs = -1"),
    ],
)
def test_a_file_that_is_no_preset_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load_recipe(str(path))
    assert str(refused.value).startswith(f"preset {path}: ")
    assert message in str(refused.value)


@pytest.mark.parametrize("trials", [0, 1, 7, 50])
@pytest.mark.parametrize("importance", [{}, {"learning rate": 0.7, "pooling": 0.3}])
def test_any_number_of_trials_is_drawn(trials: int, importance: dict[str, float]) -> None:
    values = [None if number == 4 else 0.5 + 0.3 * (number * 7 % 10) / 10 for number in range(trials)]
    rates = [0.001 * (1 + number) for number in range(trials)]
    pruned = [number % 3 == 1 for number in range(trials)]
    png = tuning_trials(values, pruned, importance=importance, learning_rates=rates)
    assert png.startswith(b"\x89PNG")
    assert len(png) < 300_000


def test_the_search_library_says_nothing_by_itself(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    search(workspace, small_plan(trials=2))
    assert capfd.readouterr().err == ""
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
