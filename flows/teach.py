"""The flow teach: a sentence encoder's folder in, a teacher for later trainings out."""

from pathlib import Path
from typing import Annotated

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.common import DEFAULT_WORKSPACE, RETRY, RunProgress, show_report
from flows.forms import Batches, Preset, SettingChanges, WorkspacePath, named, titled
from flows.reports.encoder import teacher_report
from pipeline.config import Recipe, load_recipe
from pipeline.training.teach.teach import teach as make_teacher
from pipeline.training.teach.teacher import Teacher
from pipeline.workspace import Workspace


@task(name="teach", task_run_name="teach", cache_policy=NO_CACHE, **RETRY)
def teach_task(workspace: Workspace, encoder: Path, recipe: Recipe, name: str | None, batches: list[str]) -> Teacher:
    """Make a teacher from a sentence encoder."""
    progress = RunProgress("Share of the teaching done")
    return make_teacher(workspace, encoder, recipe, name=name, batch_ids=batches, progress=progress)


@flow(name="teach", flow_run_name="teach by {encoder}", validate_parameters=True)
def teach(
    encoder: Annotated[str, Field(min_length=1), titled("Encoder folder")],
    name: Annotated[str | None, *named("Name")] = None,
    preset: Preset = "default",
    settings: SettingChanges = [],  # noqa: B006 - never changed
    batches: Batches = [],  # noqa: B006
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> Teacher:
    """Make a teacher for later trainings from a sentence encoder on disk.

    Args:
        encoder: Folder of the sentence encoder, with config.json, tokenizer.json, and model.safetensors or model.onnx.
        name: Name of the teacher; an earlier one of that name is replaced. Empty: the name of the encoder's folder.
        preset: Settings to start from; the training must split the documents alike.
        settings: Changes to the preset, each as section.field=value, for example model.embedding_size=256.
        batches: Batches to teach. Empty: all.
        workspace: Workspace folder. Empty: the one that the worker was started with.
    """
    teacher = teach_task(Workspace(workspace), Path(encoder), load_recipe(preset, settings), name, batches)
    show_report("teacher", teacher_report(teacher), "The teacher: its texts, and its cross-validated scores")
    return teacher


if __name__ == "__main__":
    raise SystemExit("this is a module: use nightlabel teach")
