"""The flow pretrain: texts without labels in, an encoder for later trainings out."""

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
    """Pretrain an encoder on all texts of the batches."""
    return pretrain_encoder(workspace, recipe, batches, RunProgress("Share of the pretraining done"))


@flow(name="pretrain", flow_run_name="pretrain with preset {preset}", validate_parameters=True)
def pretrain(
    preset: Preset = "default",
    settings: SettingChanges = [],  # noqa: B006 - never changed
    batches: Batches = [],  # noqa: B006
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> Encoder:
    """Pretrain an encoder on all texts, labelled or not, for later trainings to start from.

    Args:
        preset: Settings to start from.
        settings: Changes to the preset, each as section.field=value, for example pretraining.epochs=6.
        batches: Batches to pretrain on. Empty: all.
        workspace: Workspace folder. Empty: the one that the worker was started with.
    """
    encoder = pretrain_task(Workspace(workspace), load_recipe(preset, settings), batches)
    show_report("encoder", encoder_report(encoder, pictures=True), "The pretrained encoder: its data, its perplexity")
    return encoder


if __name__ == "__main__":
    raise SystemExit("this is a module: use nightlabel pretrain")
