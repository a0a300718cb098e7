"""The flow tune: labelled documents in, a preset with better settings out."""

from typing import Annotated

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.common import DEFAULT_WORKSPACE, RETRY, RunProgress, show_report
from flows.forms import (
    A_NAME,
    Batches,
    EncoderName,
    Preset,
    TeacherFile,
    WordVectorsFile,
    WorkspacePath,
    optional,
    setting_changes,
    titled,
)
from flows.reports.tuning import tuning_report
from pipeline.training.tune import search as tuning
from pipeline.training.tune.search import SearchResult
from pipeline.training.tune.search_space import SEARCH_SPACE, SearchPlan, make_search_plan
from pipeline.workspace import Workspace


@task(name="search", task_run_name="search", cache_policy=NO_CACHE, **RETRY)
def search_task(workspace: Workspace, plan: SearchPlan) -> SearchResult:
    """Run the trials of a search."""
    return tuning.search(workspace, plan, RunProgress("Share of the trials done"))


@flow(name="tune", flow_run_name="tune {name} from preset {preset}", validate_parameters=True)
def tune(
    name: Annotated[str, Field(min_length=1), titled("Name of the search", pattern=A_NAME)] = "tuned",
    preset: Preset = "default",
    settings: Annotated[list[str], setting_changes("Fixed settings", "Settings that are not searched")] = [],  # noqa: B006 - never changed
    only: Annotated[list[str], titled("Settings to search", items={"type": "string", "enum": list(SEARCH_SPACE)})] = [],  # noqa: B006
    trials: Annotated[int, Field(ge=1), titled("Trials")] = 20,
    minutes: Annotated[float | None, *optional("Minutes", type="number", minimum=0)] = None,
    batches: Batches = [],  # noqa: B006
    embeddings: WordVectorsFile = None,
    encoder: EncoderName = None,
    teacher: TeacherFile = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> SearchResult:
    """Search for better settings on the labelled documents, and write the best as a preset.

    Args:
        name: Name of the search, and of the preset that it writes. A search of that name continues.
        preset: Start from default, imdb-lstm100, keras-lstm64, stacked-lstm128, or the path of a .toml file.
        settings: Fixed settings, not searched, each as section.field=value, for example training.epochs=6.
        only: Settings to search, for example training.learning_rate. Empty: all.
        trials: Maximum trials, those of earlier runs of this search included.
        minutes: Minutes of training, earlier runs included, after which no trial starts. 0: no limit.
        batches: Batches to train on. Empty: all.
        embeddings: File of pretrained word vectors, a word and its numbers on each line. Empty: none.
        encoder: Name of the pretrained encoder to start from. Empty: none.
        teacher: Teacher to distil from: its name or folder, or a file with soft labels: doc_id and a probability column
            per class. Empty: none.
        workspace: Workspace folder. Empty: the one that the worker was started with.
    """
    plan = make_search_plan(
        name,
        preset,
        settings,
        only,
        trials=trials,
        minutes=minutes,
        batches=batches,
        embeddings=embeddings,
        encoder=encoder,
        teacher=teacher,
    )
    result = search_task(Workspace(workspace), plan)
    show_report("tuning", tuning_report(result, pictures=True), f"{name}: the best settings, and what they gain")
    return result


if __name__ == "__main__":
    raise SystemExit("this is a module: use nightlabel tune")
