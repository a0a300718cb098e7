"""Labelled documents in, a proven and registered model out."""

from typing import Annotated, Any

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
from pipeline.promotion.register import Registration, register
from pipeline.promotion.rule import check_force
from pipeline.training.evaluate import assess
from pipeline.training.loop import TrainedModel
from pipeline.training.prepare import PreparedData, WarmStart, prepare
from pipeline.training.pretrain.encoder import Encoder, matching_encoder, named_encoder
from pipeline.training.selection import fit
from pipeline.workspace import Workspace


@task(name="tokenize", task_run_name="tokenize", cache_policy=NO_CACHE, **RETRY)
def _tokenize(workspace: Workspace, recipe: Recipe, batches: list[str], start: WarmStart) -> PreparedData:
    return prepare(workspace, recipe, batches, start)


@task(name="fit", task_run_name="fit", cache_policy=NO_CACHE, **RETRY)
def _fit(workspace: Workspace, prepared: PreparedData, recipe: Recipe) -> TrainedModel:
    return fit(workspace, prepared, recipe, RunProgress("Share of the training done"))


@task(name="evaluate", task_run_name="evaluate", cache_policy=NO_CACHE)
def _evaluate(prepared: PreparedData, trained: TrainedModel, recipe: Recipe) -> dict[str, Any]:
    return assess(prepared, trained, recipe)


@task(name="export and register", task_run_name="export and register {model}", cache_policy=NO_CACHE)
def _publish(
    workspace: Workspace,
    model: str,
    *,
    prepared: PreparedData,
    trained: TrainedModel,
    recipe: Recipe,
    metrics: dict[str, Any],
    preset: str,
    force: bool,
    reason: str | None,
) -> Registration:
    return register(
        workspace, model, prepared, trained, recipe, metrics=metrics, preset=preset, force=force, reason=reason
    )


@flow(name="train", flow_run_name="train {model} from preset {preset}", validate_parameters=True)
def train(
    model: Annotated[str, Field(min_length=1), titled("Model", pattern=A_NAME)] = "default",
    preset: Preset = "default",
    settings: SettingChanges = [],  # noqa: B006 - never changed
    batches: Batches = [],  # noqa: B006
    target_precision: Annotated[float, Field(ge=0.0, lt=1.0), titled("Promised precision")] = 0.0,
    embeddings: WordVectorsFile = None,
    pretrain: Annotated[bool, titled("Pretrain")] = False,
    encoder: EncoderName = None,
    teacher: TeacherFile = None,
    force: Annotated[bool, titled("Promote in any case")] = False,
    reason: Annotated[str | None, *optional("Reason for promoting in any case")] = None,
    workspace: WorkspacePath = DEFAULT_WORKSPACE,
) -> Registration:
    """Train a model on the labelled documents, prove its export, and promote it if it is not worse.

    Args:
        model: Name of the model; a new version is added to it.
        preset: Start from default, imdb-lstm100, keras-lstm64, stacked-lstm128, or the path of a .toml file.
        settings: Changes to the preset, each as section.field=value, for example training.epochs=6.
        batches: Batches to learn from. Empty: all of them.
        target_precision: Share of the labelled rows that are to be right, for example 0.95; other rows get status
            'review'. 0: what the preset says, which is no promise unless changed.
        embeddings: File of word vectors to start from, a word and its numbers on each line. Empty: none.
        pretrain: Start from an encoder that was pretrained on all text there is; without one that suits, make one.
        encoder: Name of the encoder to start from. Empty: with pretrain the newest that suits, else none.
        teacher: File with a doc_id and a column of probabilities for each class, from another model. Empty: none.
        force: Promote the new version even if it is not shown to be as good as the champion.
        reason: Why it is promoted in any case, for the record.
        workspace: Folder in which everything is kept. Empty: the one that the worker was started with.
    """
    check_force(force, reason)
    promised = [f"promise.target_precision={target_precision}"] if target_precision else []
    recipe = load_recipe(preset, [*settings, *promised])
    place = Workspace(workspace)
    start = WarmStart(embeddings, _encoder(place, recipe, encoder, pretrain), teacher)
    prepared = _tokenize(place, recipe, batches, start)
    trained = _fit(place, prepared, recipe)
    metrics = _evaluate(prepared, trained, recipe)
    publication = _publish(
        place,
        model,
        prepared=prepared,
        trained=trained,
        recipe=recipe,
        metrics=metrics,
        preset=preset,
        force=force,
        reason=reason,
    )
    report = model_report(publication, pictures=True)
    (publication.bundle.path / CARD).write_text(model_card(publication.bundle), encoding="utf-8")
    show_report("model", report, f"{publication.bundle.title}: how good it is, and whether it is used")
    return publication


def _encoder(workspace: Workspace, recipe: Recipe, name: str | None, pretrain: bool) -> Encoder | None:
    if name:
        return named_encoder(workspace, name, recipe)
    if pretrain:
        return matching_encoder(workspace, recipe) or pretrain_task(workspace, recipe, [])
    return None
