"""Commands that make models, and choose among their versions."""

from typing import Annotated, Any

import typer

from flows.commands.options import (
    EncoderName,
    LearnFrom,
    PresetName,
    TeacherFile,
    WordVectorsFile,
    Workspace,
    check_encoder,
    check_file,
    console,
    field_help,
    quiet_prefect,
    show,
)
from pipeline.config import SelectiveConfig, load_recipe
from pipeline.errors import ConfigError


def train(
    model: Annotated[str, typer.Option("--model", "-m", help="Name of the model.")] = "default",
    preset: PresetName = "default",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value, for example training.epochs=5. Repeatable.")
    ] = None,
    batch: LearnFrom = None,
    target_precision: Annotated[float, typer.Option(help=field_help(SelectiveConfig, "target_precision"))] = 0.0,
    embeddings: WordVectorsFile = None,
    pretrain: Annotated[
        bool, typer.Option("--pretrain", help="Start from what all text here teaches, labelled or not.")
    ] = False,
    encoder: EncoderName = None,
    teacher: TeacherFile = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote it even if it is not shown to be as good as the champion.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why it is promoted by force, for the record.")] = None,
    workspace: Workspace = "workspace",
) -> None:
    """Train on the labelled documents, prove the export, and promote the version if it is not worse.

    Both versions label the same test texts; the report says what changed, and why it was promoted or not.
    A training that was killed goes on from its last checkpoint when the same command is given again.

    Examples:

        nightlabel train

        nightlabel train --model tickets --set training.epochs=6 --set model.pooling=attention

        nightlabel train --target-precision 0.95

        nightlabel train --preset imdb-lstm100

        nightlabel train --preset workspace/presets/tuned.toml

        nightlabel train --pretrain

        nightlabel train --embeddings glove.6B.100d.txt.gz --set model.embedding_size=100

        nightlabel train --teacher opinions.parquet --set training.teacher_weight=0.7

        nightlabel train --set promotion.margin=0

        nightlabel train --force --reason "the old classes are gone"
    """
    if force:
        from pipeline.promotion.rule import check_force  # brings PyTorch along

        check_force(force, reason)
    # A wrong setting is told at once, not after the server has started.
    promised = [f"promise.target_precision={target_precision}"] if target_precision else []
    recipe = load_recipe(preset, [*(settings or []), *promised])
    check_file("--embeddings", embeddings)
    check_file("--teacher", teacher)
    if embeddings and (pretrain or encoder):
        raise ConfigError("--embeddings and a pretrained encoder are two beginnings: choose one")
    check_encoder(workspace, encoder, recipe)
    quiet_prefect()
    from flows import train as train_flow
    from flows.reports.model import model_report

    publication = train_flow.train(
        model,
        preset,
        settings or [],
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
    show(model_report(publication, pictures=False))
    console.print(f"Bundle: {publication.bundle.path}\nNext: nightlabel score", soft_wrap=True)


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
    trials: Annotated[int, typer.Option(help="Most trainings, those of earlier runs of this search included.")] = 20,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes spent in trainings after which no other begins; no limit if empty.")
    ] = None,
    batch: LearnFrom = None,
    embeddings: WordVectorsFile = None,
    encoder: EncoderName = None,
    teacher: TeacherFile = None,
    workspace: Workspace = "workspace",
) -> None:
    """Search for settings that suit the labelled documents, and write the best as a preset.

    Each trial is a training, measured on the validation split; those that fall behind are stopped early. The first
    has the starting preset, so that the report can say what was gained. A search that was killed goes on when the
    same command is given again; a larger budget continues it.

    Examples:

        nightlabel tune

        nightlabel tune --trials 40 --minutes 120

        nightlabel tune --name rates --only training.learning_rate --only training.word_dropout

        nightlabel tune --name small --set model.hidden_size=64 --set training.epochs=4
    """
    from pipeline.training.tune.search_space import make_search_plan

    inputs: dict[str, Any] = {
        "batches": batch or [],
        "embeddings": str(embeddings) if embeddings else None,
        "encoder": encoder,
        "teacher": str(teacher) if teacher else None,
    }
    # A wrong setting is told at once, not after the server has started.
    plan = make_search_plan(name, preset, settings or [], only or [], trials=trials, minutes=minutes, **inputs)
    check_file("--embeddings", embeddings)
    check_file("--teacher", teacher)
    check_encoder(workspace, encoder, plan.start)
    quiet_prefect()
    from flows import tune as tune_flow
    from flows.reports.tuning import tuning_report

    tuning = tune_flow.tune(
        name,
        preset,
        settings or [],
        only or [],
        trials=trials,
        minutes=minutes,
        **inputs,
        workspace=workspace,
    )
    show(tuning_report(tuning, pictures=False))
    console.print(f"Preset: {tuning.preset or 'none'}\nPicture: {tuning.picture}", soft_wrap=True)


def pretrain(
    preset: PresetName = "default",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.field=value, for example pretraining.epochs=6. Repeatable."),
    ] = None,
    batch: LearnFrom = None,
    workspace: Workspace = "workspace",
) -> None:
    """Learn from every text there is, labelled or not, for later trainings to start from.

    A pretraining that was killed goes on from its last checkpoint when the same command is given again. The texts of
    the test split are left out, so that the test stays one; labels are never used.

    Examples:

        nightlabel pretrain

        nightlabel pretrain --set pretraining.epochs=8

        nightlabel pretrain --set pretraining.leave_out_test=false --batch 2026-11-20
    """
    load_recipe(preset, settings)
    quiet_prefect()
    from flows import pretrain as pretrain_flow
    from flows.reports.encoder import encoder_report

    encoder = pretrain_flow.pretrain(preset, settings or [], batches=batch or [], workspace=workspace)
    show(encoder_report(encoder, pictures=False))
    console.print(f"Encoder: {encoder.path}\nNext: nightlabel train --pretrain", soft_wrap=True)


def models_list(workspace: Workspace = "workspace") -> None:
    """List all versions; the champions are marked."""
    from flows.commands.registry import versions_table

    show(versions_table(workspace))


def models_show(
    spec: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")], workspace: Workspace = "workspace"
) -> None:
    """Show how good a version is, and what it was trained on."""
    from flows.commands.registry import version_report

    show(version_report(workspace, spec))


def models_compare(
    champion: Annotated[str, typer.Argument(metavar="A", help="NAME@VERSION, or NAME for its champion.")],
    challenger: Annotated[str, typer.Argument(metavar="B", help="NAME@VERSION, or NAME for its champion.")],
    workspace: Workspace = "workspace",
) -> None:
    """Have two versions label the same texts, and show what differs: scores, classes, and last night's labels.

    The texts are B's test split, less those that A learnt from.

    Examples:

        nightlabel models compare tickets tickets@7

        nightlabel models compare tickets@6 tickets@7
    """
    from flows.commands.registry import compare

    show(compare(workspace, champion, challenger))


def models_card(
    spec: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")], workspace: Workspace = "workspace"
) -> None:
    """Say in plain words what a version learnt from, what it is good and bad at, how sure it is, and how fast.

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
    force: Annotated[
        bool, typer.Option("--force", help="Promote it even if it is not shown to be as good as the champion.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why, for the record; --force needs one.")] = None,
    workspace: Workspace = "workspace",
) -> None:
    """Make a version the one that scoring uses by default, if it is not worse than the champion.

    Examples:

        nightlabel models promote tickets@7

        nightlabel models promote tickets@7 --force --reason "class refund was split in two"
    """
    from flows.commands.registry import promote

    console.print(promote(workspace, spec, force=force, reason=reason), soft_wrap=True)


def models_rollback(name: Annotated[str, typer.Argument(metavar="NAME")], workspace: Workspace = "workspace") -> None:
    """Make the champion before this one champion again."""
    from flows.commands.registry import rollback

    console.print(rollback(workspace, name))
