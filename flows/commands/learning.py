"""Commands that train models, and choose among their versions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import (
    EncoderName,
    ForceOption,
    PresetName,
    ReasonOption,
    SettingChanges,
    TeacherFile,
    TrainingBatches,
    VersionArgument,
    WordVectorsFile,
    WorkspaceOption,
    check_training_inputs,
    field_help,
    print_line,
    quiet_prefect,
    show,
)
from pipeline.config import SelectiveConfig, load_recipe
from pipeline.errors import ConfigError


def train(
    model: Annotated[str, typer.Option("--model", "-m", help="Name of the model.")] = "default",
    preset: PresetName = "default",
    settings: SettingChanges = None,
    batch: TrainingBatches = None,
    target_precision: Annotated[float, typer.Option(help=field_help(SelectiveConfig, "target_precision"))] = 0.0,
    embeddings: WordVectorsFile = None,
    pretrain: Annotated[
        bool, typer.Option("--pretrain", help="Start from an encoder pretrained on all texts, labelled or not.")
    ] = False,
    encoder: EncoderName = None,
    teacher: TeacherFile = None,
    force: ForceOption = False,
    reason: ReasonOption = None,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Train on the labelled documents, verify the export, and promote the version if it is not worse.

    The report compares the version with the champion on the same test texts, and says why it was promoted or not. The
    same command resumes a killed training from its last checkpoint.

    Examples:

        nightlabel train --model tickets --set training.epochs=6 --target-precision 0.95

        nightlabel train --preset workspace/presets/tuned.toml --pretrain

        nightlabel train --teacher all-MiniLM-L6-v2

        nightlabel train --force --reason "the old classes are gone"
    """
    if force:
        from pipeline.promotion.rule import check_force

        check_force(force, reason)
    if embeddings and (pretrain or encoder):
        raise ConfigError("--embeddings excludes --pretrain and --encoder: choose one to start from")
    changes = settings or []
    target = [f"selective.target_precision={target_precision}"] if target_precision else []
    recipe = load_recipe(preset, [*changes, *target])
    check_training_inputs(workspace, recipe, embeddings=embeddings, encoder=encoder, teacher=teacher)
    quiet_prefect()
    from flows import train as train_flow
    from flows.reports.model import model_report

    registration = train_flow.train(
        model,
        preset,
        changes,
        batches=batch or [],
        target_precision=target_precision,
        embeddings=str(embeddings) if embeddings else None,
        pretrain=pretrain,
        encoder=encoder,
        teacher=str(teacher) if teacher else None,
        force=force,
        reason=reason,
        workspace=workspace,
    )
    show(model_report(registration, pictures=False))
    print_line(f"Bundle: {registration.bundle.path}\nNext: nightlabel score")


def tune(
    name: Annotated[str, typer.Option(help="Name of the search, and of the preset that it writes.")] = "tuned",
    preset: PresetName = "default",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.field=value: a setting that is fixed, not searched. Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="section.field: search only this one. Repeatable.")
    ] = None,
    trials: Annotated[int, typer.Option(help="Maximum trials, those of earlier runs of this search included.")] = 20,
    minutes: Annotated[
        float | None, typer.Option(help="Start no trial after this many minutes of training; no limit if empty.")
    ] = None,
    batch: TrainingBatches = None,
    embeddings: WordVectorsFile = None,
    encoder: EncoderName = None,
    teacher: TeacherFile = None,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Search for better settings on the labelled documents, and write the best as a preset.

    Each trial is a training, measured on the validation split; trials that fall behind are pruned. The first trial is
    the starting preset. The same command resumes a killed search, and continues it with a larger budget.

    Examples:

        nightlabel tune --trials 40 --minutes 120

        nightlabel tune --name rates --only training.learning_rate --only training.word_dropout

        nightlabel tune --name small --set model.hidden_size=64 --set training.epochs=4
    """
    from pipeline.training.tune.search_space import make_search_plan

    inputs: dict[str, Any] = {
        "trials": trials,
        "minutes": minutes,
        "batches": batch or [],
        "embeddings": str(embeddings) if embeddings else None,
        "encoder": encoder,
        "teacher": str(teacher) if teacher else None,
    }
    plan = make_search_plan(name, preset, settings or [], only or [], **inputs)
    check_training_inputs(workspace, plan.start, embeddings=embeddings, encoder=encoder, teacher=teacher)
    quiet_prefect()
    from flows import tune as tune_flow
    from flows.reports.tuning import tuning_report

    result = tune_flow.tune(name, preset, settings or [], only or [], **inputs, workspace=workspace)
    show(tuning_report(result, pictures=False))
    print_line(f"Preset: {result.preset or 'none'}\nPicture: {result.picture}")


def pretrain(
    preset: PresetName = "default",
    settings: SettingChanges = None,
    batch: TrainingBatches = None,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Pretrain an encoder on all texts, labelled or not, for later trainings to start from.

    Labels and the texts of the test split are not used. The same command resumes a killed pretraining from its last
    checkpoint.

    Examples:

        nightlabel pretrain --set pretraining.epochs=8

        nightlabel pretrain --set pretraining.leave_out_test=false --batch 2026-11-20
    """
    load_recipe(preset, settings)
    quiet_prefect()
    from flows import pretrain as pretrain_flow
    from flows.reports.encoder import encoder_report

    encoder = pretrain_flow.pretrain(preset, settings or [], batches=batch or [], workspace=workspace)
    show(encoder_report(encoder, pictures=False))
    print_line(f"Encoder: {encoder.path}\nNext: nightlabel train --pretrain")


def teach(
    encoder: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Sentence encoder: a folder with config.json, tokenizer.json, and model.safetensors or model.onnx.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the teacher; the name of the encoder's folder if not given.")
    ] = None,
    preset: PresetName = "default",
    settings: SettingChanges = None,
    batch: TrainingBatches = None,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Make a teacher for later trainings from a sentence encoder on disk.

    It embeds all training texts, labelled or not, fits a classifier over the embeddings, and writes soft labels and
    word vectors. Texts of the validation and test split are not used. Nothing is downloaded, and no pickled weights
    are loaded. The same command resumes a killed run, and embeds only new texts.

    Examples:

        nightlabel teach --encoder models/all-MiniLM-L6-v2

        nightlabel teach --encoder models/multilingual-e5-small --name e5 --set model.embedding_size=256
    """
    load_recipe(preset, settings)
    from pipeline.training.teach.encoder_folder import EncoderFolder, check_packages

    check_packages()
    EncoderFolder.open(encoder)
    quiet_prefect()
    from flows import teach as teach_flow
    from flows.reports.encoder import teacher_report

    teacher = teach_flow.teach(str(encoder), name, preset, settings or [], batches=batch or [], workspace=workspace)
    show(teacher_report(teacher))
    print_line(f"Teacher: {teacher.path}\nNext: nightlabel train --teacher {teacher.name}")


def models_list(workspace: WorkspaceOption = "workspace") -> None:
    """List all versions and their test scores; the champions are marked."""
    from flows.commands.registry import versions_table

    show(versions_table(workspace))


def models_show(spec: VersionArgument, workspace: WorkspaceOption = "workspace") -> None:
    """Show the report of a version: its test scores, and the data it was trained on."""
    from flows.commands.registry import version_report

    show(version_report(workspace, spec))


def models_compare(
    champion: Annotated[str, typer.Argument(metavar="A", help="NAME@VERSION, or NAME for its champion.")],
    challenger: Annotated[str, typer.Argument(metavar="B", help="NAME@VERSION, or NAME for its champion.")],
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Compare two versions on the same texts: scores, classes, and prediction churn on last night's labels.

    The texts are B's test split, without those that A was trained on.

    Examples:

        nightlabel models compare tickets tickets@7

        nightlabel models compare tickets@6 tickets@7
    """
    from flows.commands.registry import compare

    show(compare(workspace, champion, challenger))


def models_card(spec: VersionArgument, workspace: WorkspaceOption = "workspace") -> None:
    """Print the model card of a version: training data, strengths and weaknesses, confidence, speed.

    Examples:

        nightlabel models card tickets

        nightlabel models card tickets@3 > card.md
    """
    from flows.reports.model_card import model_card
    from pipeline.models.registry import Registry
    from pipeline.workspace import Workspace

    show(model_card(Registry(Workspace(workspace)).find(spec)))


def models_promote(
    spec: Annotated[str, typer.Argument(metavar="NAME@VERSION")],
    force: ForceOption = False,
    reason: ReasonOption = None,
    workspace: WorkspaceOption = "workspace",
) -> None:
    """Make a version the champion, which scoring uses, if it is not worse than the present one.

    Examples:

        nightlabel models promote tickets@7

        nightlabel models promote tickets@7 --force --reason "class refund was split in two"
    """
    from flows.commands.registry import promote

    print_line(promote(workspace, spec, force=force, reason=reason))


def models_rollback(
    name: Annotated[str, typer.Argument(metavar="NAME")], workspace: WorkspaceOption = "workspace"
) -> None:
    """Make the previous champion the champion again."""
    from pipeline.models.registry import Registry
    from pipeline.workspace import Workspace

    version = Registry(Workspace(workspace)).rollback(name)
    print_line(f"{name}@{version} is champion again.")
