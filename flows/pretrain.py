"""Text without labels in, an encoder for later trainings out."""

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.common import DEFAULT_WORKSPACE, RETRY, RunProgress, show_report
from flows.forms import Batches, Preset, SettingChanges, WorkspacePath
from flows.reports.encoder import encoder_report
from pipeline.config import Recipe, load_recipe
from pipeline.training.pretrain.encoder import Encoder, pretrain_encoder
from pipeline.workspace import Workspace


@task(name="pretrain", task_run_name="pretrain", cache_policy=NO_CACHE, **RETRY)
def pretrain_task(workspace: Workspace, recipe: Recipe, batches: list[str]) -> Encoder:
    return pretrain_encoder(workspace, recipe, batches, RunProgress("Share of the pretraining done"))


@flow(name="pretrain", flow_run_name="pretrain with preset {preset}", validate_parameters=True)
def pretrain(
    preset: Preset = "default",
    settings: SettingChanges = [],  # noqa: B006 - never changed
    batches: Batches = [],  # noqa: B006
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> Encoder:
    """Learn from every text there is, labelled or not, so that later trainings start from what it holds.

    Args:
        preset: Settings to start from.
        settings: Changes to the preset, each as section.field=value, for example pretraining.epochs=6.
        batches: Batches to learn from. Empty: all of them.
        workspace: Folder in which everything is kept. Empty: the one that the worker was started with.
    """
    encoder = pretrain_task(Workspace(workspace), load_recipe(preset, settings), batches)
    show_report("encoder", encoder_report(encoder, pictures=True), "What was pretrained, on what, and how well")
    return encoder
