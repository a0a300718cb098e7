"""Light commands start at once: they load no library that they do not need."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.promotion.rule import Registration

HEAVY = ("torch", "sklearn", "scipy.stats", "matplotlib", "optuna", "prefect")
RUN = f"""
import json, sys
from flows.cli import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as exit_:
    print(exit_.code or 0, sorted(sys.modules.keys() & set({HEAVY!r})))
"""


def last_line(*words: str, **environment: str) -> str:
    command = [sys.executable, "-c", RUN, json.dumps(words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return ended.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["score", "--help"], ["models", "--help"]])
def test_help_loads_no_heavy_library(words: list[str]) -> None:
    assert last_line(*words) == "0 []"


def test_the_registry_is_listed_and_rolled_back_without_heavy_libraries(trained: Registration) -> None:
    workspace = str(trained.bundle.path.parents[2])
    assert last_line("models", "list", "--workspace", workspace) == "0 []"
    assert last_line("models", "rollback", "weather", "--workspace", workspace) == "2 []"  # there is no version before
    assert last_line("publish", "one", "--workspace", workspace) == "2 []"  # it has no labels


def test_the_shell_completes_commands_without_heavy_libraries() -> None:
    completing = {"_NIGHTLABEL_COMPLETE": "complete_bash", "COMP_WORDS": "nightlabel mo", "COMP_CWORD": "1"}
    code = f"import sys; sys.argv = ['nightlabel']\n{RUN.replace('json.loads(sys.argv[1])', '[]')}"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | completing
    )
    assert ended.stdout.split() == ["models", "0", "[]"]


def test_an_automation_is_the_same_whatever_the_process_that_makes_it() -> None:
    """Its digest tells `nightlabel setup` whether to write it again, and that would undo changes made in the UI."""
    code = "from flows.server.automations import crash_silent_runs; print(crash_silent_runs().tags)"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": n},
        )
        for n in "123"
    ]
    assert len({run.stdout for run in runs}) == 1


def test_a_flow_that_is_run_as_a_module_names_the_command() -> None:
    """It was a way to start a night: a schedule that still does must not be told that all is well."""
    ended = subprocess.run([sys.executable, "-m", "flows.pretrain"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "use nightlabel pretrain" in ended.stderr
