"""The flow train: labelled documents in, a verified and registered model version out."""

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
    SettingChanges,
    TeacherFile,
    WordVectorsFile,
    WorkspacePath,
    optional,
    titled,
)
from flows.pretrain import pretrain_task
from flows.reports.model import model_report
from flows.reports.model_card import CARD_FILE as CARD
from flows.reports.model_card import model_card
from pipeline.config import Recipe, load_recipe
from pipeline.promotion.register import register
from pipeline.promotion.rule import Registration, check_force
from pipeline.training.evaluate import assess
from pipeline.training.loop import TrainedModel
from pipeline.training.prepare import PreparedData, WarmStart, prepare
from pipeline.training.pretrain.encoder import matching_encoder, named_encoder
from pipeline.training.selection import fit
from pipeline.workspace import Workspace


@task(name="fit", task_run_name="fit", cache_policy=NO_CACHE, **RETRY)
def fit_task(workspace: Workspace, prepared: PreparedData, recipe: Recipe) -> TrainedModel:
    """Train the model."""
    return fit(workspace, prepared, recipe, RunProgress("Share of the training done"))


tokenize_task = task(name="tokenize", task_run_name="tokenize", cache_policy=NO_CACHE, **RETRY)(prepare)
evaluate_task = task(name="evaluate", task_run_name="evaluate", cache_policy=NO_CACHE)(assess)
register_task = task(name="export and register", task_run_name="export and register {name}", cache_policy=NO_CACHE)(
    register
)


@flow(name="train", flow_run_name="train {model} from preset {preset}", validate_parameters=True)
def train(
    model: Annotated[str, Field(min_length=1), titled("Model", pattern=A_NAME)] = "default",
    preset: Preset = "default",
    settings: SettingChanges = [],  # noqa: B006 - never changed
    batches: Batches = [],  # noqa: B006
    target_precision: Annotated[float, Field(ge=0.0, lt=1.0), titled("Target precision")] = 0.0,
    embeddings: WordVectorsFile = None,
    pretrain: Annotated[bool, titled("Pretrain")] = False,
    encoder: EncoderName = None,
    teacher: TeacherFile = None,
    force: Annotated[bool, titled("Force promotion")] = False,
    reason: Annotated[str | None, *optional("Reason for forcing")] = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> Registration:
    """Train on the labelled documents, verify the export, and promote the version if it is not worse.

    Args:
        model: Name of the model; a new version is added to it.
        preset: Start from default, imdb-lstm100, keras-lstm64, stacked-lstm128, or the path of a .toml file.
        settings: Changes to the preset, each as section.field=value, for example training.epochs=6.
        batches: Batches to train on. Empty: all.
        target_precision: Share of the labelled rows that must be right, for example 0.95; rows below the confidence
            threshold get status 'review'. 0: the preset's, by default none.
        embeddings: File of pretrained word vectors, a word and its numbers on each line. Empty: none.
        pretrain: Start from an encoder pretrained on all texts; pretrain one if none fits.
        encoder: Name of the encoder to start from. Empty: with pretrain the newest that fits, else none.
        teacher: Teacher to distil from: its name or folder, or a file with soft labels: doc_id and a probability column
            per class. Empty: none.
        force: Promote the version even if it is not shown to be as good as the champion.
        reason: Reason for forcing, for the record.
        workspace: Workspace folder. Empty: the one that the worker was started with.
    """
    check_force(force, reason)
    target = [f"selective.target_precision={target_precision}"] if target_precision else []
    recipe = load_recipe(preset, [*settings, *target])
    folder, start = Workspace(workspace), None
    if encoder:
        start = named_encoder(folder, encoder, recipe)
    elif pretrain:
        start = matching_encoder(folder, recipe) or pretrain_task(folder, recipe, [])
    prepared = tokenize_task(folder, recipe, batches, WarmStart(embeddings, start, teacher))
    trained = fit_task(folder, prepared, recipe)
    metrics = evaluate_task(prepared, trained, recipe)
    registration = register_task(
        folder, model, prepared, trained, recipe, metrics=metrics, preset=preset, force=force, reason=reason
    )
    bundle = registration.bundle
    (bundle.path / CARD).write_text(model_card(bundle), encoding="utf-8")
    report = model_report(registration, pictures=True)
    show_report("model", report, f"{bundle.title}: its test scores, and whether it is champion")
    return registration


if __name__ == "__main__":
    raise SystemExit("this is a module: use nightlabel train")
