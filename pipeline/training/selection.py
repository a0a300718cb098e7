"""The trainings among which the validation split chooses; mostly there is only one."""

import copy
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.config import Recipe, TrainingConfig
from pipeline.dataset.corpus import TRAIN, VALIDATION
from pipeline.dataset.token_cache import TokenSet
from pipeline.dataset.tokenizer import RESERVED
from pipeline.files import value_digest
from pipeline.metrics.classification import standard_error
from pipeline.training.ensemble import BRANCHES, MEAN_EMBEDDING, NGRAM_LINEAR, fit_branch_weights
from pipeline.training.linear import fit_mean_embedding_linear, fit_ngram_linear, rows_with_target
from pipeline.training.loop import (
    Candidate,
    OnEpoch,
    Progress,
    TrainedModel,
    choose_training_device,
    train,
    validation_metrics,
)
from pipeline.training.model import EMBEDDING_STD, Classifier, MeanEmbeddingLinear, NgramLinear
from pipeline.training.parallel import CorePool
from pipeline.training.prepare import PreparedData
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)

BALANCES = {"none": "", "weights": "class weights", "sampling": "balanced sampling"}
LINEAR_ALONE = "linear branches alone"
FEW_TEXTS = 2_000  # labelled ones, up to which an LSTM beside document vectors may do more harm than good
MIN_LEAD_STANDARD_ERRORS = 2.0  # standard errors


def fit(
    workspace: Workspace,
    prepared: PreparedData,
    recipe: Recipe,
    progress: Progress | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainedModel:
    """Train a model; a run that was killed goes on from its last checkpoint.

    Where the settings leave a choice open (with or without pretraining, how classes are balanced), each is trained
    and the validation split chooses. The linear branches are fitted by themselves, and how much each branch has to
    say is weighed on the validation split too.

    Raises:
        DeviceError: the requested device is not there.
    """
    device = choose_training_device(recipe.training.device)
    sets = prepared.read(TRAIN), prepared.read(VALIDATION)
    runs = _trials(prepared, recipe)
    trained = []
    for number, trial in enumerate(runs):
        model = _new_model(prepared, recipe, sets[0], pretrained=trial.pretrained)
        logger.info(
            "training %son %s: %s texts, %s classes, %s parameters",
            f"{trial.name} " if len(runs) > 1 else "",
            device.type,
            f"{prepared.corpus.counts['train']:,}",
            len(prepared.corpus.labels),
            f"{model.parameter_count():,}",
        )
        alone = train(
            model,
            *sets,
            trial.config,
            device=device,
            checkpoint=_checkpoint(workspace, prepared, recipe, trial),
            progress=_part_of(progress, trial.name, number, len(runs)),
            on_epoch=on_epoch,
        )
        _join_branches(model, prepared, recipe, trial.config, sets[0])
        trained.append(_weighed(alone, sets[1], BRANCHES))
    names, best = [trial.name for trial in runs], max(trained, key=lambda one: one.best_macro_f1)
    simple = _linear_alone(prepared, recipe, sets)
    if simple is not None:
        names, trained = [*names, LINEAR_ALONE], [*trained, simple]
        # An epoch chosen among many by few texts looks better than it is: it has to be so clearly.
        lead = best.best_macro_f1 - simple.best_macro_f1
        if lead <= MIN_LEAD_STANDARD_ERRORS * standard_error(simple.best_macro_f1, len(sets[1])):
            best = simple
    if len(trained) == 1:
        return best
    return replace(
        best,
        candidates=[
            Candidate(name, one.history, one.best_macro_f1, one.seconds, one is best)
            for name, one in zip(names, trained, strict=True)
        ],
    )


def _join_branches(
    model: Classifier, prepared: PreparedData, recipe: Recipe, config: TrainingConfig, texts: TokenSet
) -> None:
    """Give a model linear branches of its own; they are fitted once for all models that may have the same."""
    balanced, buckets = config.class_balance in ("weights", "sampling"), recipe.model.wide_buckets
    if (balanced, buckets) not in prepared.fitted:
        prepared.fitted[balanced, buckets] = _fit_branches(prepared, texts, buckets, model.multi_label, balanced)
    model.wide, model.average = copy.deepcopy(prepared.fitted[balanced, buckets])


def _fit_branches(
    prepared: PreparedData, texts: TokenSet, buckets: int, multi_label: bool, balanced: bool
) -> tuple[NgramLinear | None, MeanEmbeddingLinear | None]:
    wide = average = None
    if buckets:
        size = prepared.cache.tokenizer.size
        wide = fit_ngram_linear(texts, size, buckets, multi_label=multi_label, balanced=balanced)
    vectors = prepared.encoder.document_vectors if prepared.encoder else None
    if vectors is not None:
        average = fit_mean_embedding_linear(vectors, texts, multi_label=multi_label, balanced=balanced)
    return wide, average


def _weighed(trained: TrainedModel, validation: TokenSet, branches: tuple[str, ...]) -> TrainedModel:
    """Return a trained model whose branches are weighed on the validation split."""
    started = time.monotonic()
    with CorePool(torch.device("cpu")) as cores:
        blended = fit_branch_weights(trained.model, validation, cores, branches)
    return replace(
        trained,
        best_macro_f1=blended.macro_f1,
        parts=blended.parts,
        seconds=trained.seconds + time.monotonic() - started,
    )


def _linear_alone(prepared: PreparedData, recipe: Recipe, sets: tuple[TokenSet, TokenSet]) -> TrainedModel | None:
    """Return a model whose LSTM is silent, where labels are few and document vectors know more than they."""
    if prepared.encoder is None or not 0 < len(rows_with_target(sets[0])) <= FEW_TEXTS:
        return None
    model = _new_model(prepared, recipe, sets[0], pretrained=False).eval()
    _join_branches(model, prepared, recipe, recipe.training, sets[0])
    if model.average is None:
        return None
    model.disable_lstm()
    found = TrainedModel(
        model=model, history=[], best_epoch=0, seconds=0.0, tokens_per_second=0.0, device="cpu", best_macro_f1=0.0
    )
    found = _weighed(found, sets[1], (NGRAM_LINEAR, MEAN_EMBEDDING))
    with CorePool(torch.device("cpu")) as cores:
        entry = {"epoch": 0, "train_loss": validation_metrics(model, sets[0], cores)["validation_loss"]}
        return replace(found, history=[{**entry, **validation_metrics(model, sets[1], cores)}])


@dataclass(frozen=True)
class _Trial:
    name: str
    config: TrainingConfig
    pretrained: bool


def _trials(prepared: PreparedData, recipe: Recipe) -> list[_Trial]:
    """Return the trainings among which the validation split is to choose; mostly there is only one."""
    wanted = recipe.training.class_balance
    balances = list(BALANCES) if wanted == "try" else [wanted]
    starts = [True] if prepared.encoder else [False]
    if prepared.encoder and recipe.training.compare_scratch:
        starts.append(False)
    return [
        _Trial(
            ", ".join(filter(None, ["pretrained" if pretrained else "from scratch", BALANCES[balance]])),
            recipe.training.model_copy(
                update={
                    "class_balance": balance,
                    **({} if pretrained else {"layer_decay": 1.0, "frozen_share": 0.0}),
                }
            ),
            pretrained,
        )
        for pretrained in starts
        for balance in balances
    ]


def _new_model(prepared: PreparedData, recipe: Recipe, texts: TokenSet, *, pretrained: bool) -> Classifier:
    torch.manual_seed(recipe.training.seed)
    corpus, size = prepared.corpus, prepared.cache.tokenizer.size
    model = Classifier(size, len(corpus.labels), recipe.model, multi_label=corpus.multi_label)
    if prepared.word_vectors is not None:
        model.start_from(
            prepared.word_vectors.vocabulary_indices + RESERVED, prepared.word_vectors.scaled(EMBEDDING_STD)
        )
    if prepared.encoder is not None:
        if pretrained:
            prepared.encoder.initialise(model)
        else:
            model.zero_word_vectors(np.flatnonzero(np.bincount(texts.tokens.values, minlength=size) == 0))
    return model


def _part_of(progress: Progress | None, name: str, number: int, of: int) -> Progress | None:
    """Return a progress for one of several trainings, which tells its share of the whole."""
    if progress is None or of == 1:
        return progress
    return lambda share, line: progress((number + share) / of, f"{name}: {line}")


def _checkpoint(workspace: Workspace, prepared: PreparedData, recipe: Recipe, trial: _Trial) -> Path:
    decided = value_digest(
        [prepared.cache.fingerprint, recipe.model_dump(mode="json", include={"model", "training"}), trial.name]
        + ([prepared.word_vectors.digest] if prepared.word_vectors else [])
        + ([prepared.soft_labels.digest] if prepared.soft_labels else [])
        + ([prepared.encoder.name] if prepared.encoder else [])
    )
    return workspace.checkpoint_path(decided[:16])


def delete_checkpoints(workspace: Workspace, prepared: PreparedData, recipe: Recipe) -> None:
    """Remove what a training kept to go on from, once its result is safe or not wanted."""
    for trial in _trials(prepared, recipe):
        _checkpoint(workspace, prepared, recipe, trial).unlink(missing_ok=True)
