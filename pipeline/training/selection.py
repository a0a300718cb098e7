"""Train the candidates of a recipe, mostly one, and let the validation split choose."""

import copy
import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.config import Recipe, TrainingConfig, training_digest_values
from pipeline.dataset.corpus import TRAIN, VALIDATION
from pipeline.dataset.token_set import TokenSet
from pipeline.dataset.tokenizer import RESERVED
from pipeline.files import value_digest
from pipeline.metrics.classification import log_loss, standard_error
from pipeline.training.ensemble import (
    BRANCHES,
    LSTM,
    MEAN_EMBEDDING,
    NGRAM_LINEAR,
    as_probabilities,
    branch_logits,
    fit_branch_weights,
)
from pipeline.training.linear.branches import (
    CrossFitted,
    cross_folds,
    fit_mean_embedding_linear,
    fit_ngram_linear,
    rows_with_target,
)
from pipeline.training.loop import (
    Candidate,
    OnEpoch,
    TrainedModel,
    choose_training_device,
    train_lstm,
    validation_metrics,
)
from pipeline.training.model import EMBEDDING_STD, Classifier
from pipeline.training.parallel import CorePool
from pipeline.training.prepare import PreparedData
from pipeline.training.resumable import Progress, part_of
from pipeline.training.subwords import SubwordEmbedding
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)

BALANCES = {"none": "", "weights": "class weights", "sampling": "balanced sampling"}
LINEAR_ALONE = "linear branches alone"
FEW_TEXTS = 2_000  # up to so many labelled texts, linear branches alone may beat an LSTM beside them
MIN_LEAD_STANDARD_ERRORS = 2.0


class Trial(NamedTuple):
    """One training of those that the settings leave open."""

    name: str
    config: TrainingConfig
    pretrained: bool


def fit(
    workspace: Workspace,
    prepared: PreparedData,
    recipe: Recipe,
    progress: Progress | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainedModel:
    """Train a model; a killed run resumes from its last checkpoint.

    Where the settings leave a choice (with or without pretraining, class balance), each trial is trained and the
    validation split chooses. The linear branches are fitted separately, on all labelled texts; the ensemble weights
    of all branches are fitted on the validation split, from linear fits without its texts.

    Raises:
        DeviceError: the requested device is not there.
    """
    trials = list_trials(prepared, recipe)
    sets = prepared.read(TRAIN), prepared.read(VALIDATION)
    trained = {}
    for number, trial in enumerate(trials):
        prefix = f"{trial.name}: " if len(trials) > 1 else ""
        part = part_of(progress, number / len(trials), (number + 1) / len(trials), prefix)
        trained[trial.name] = _train_trial(workspace, prepared, recipe, trial, sets, part, on_epoch)
    best = max(trained.values(), key=lambda model: model.best_macro_f1)
    linear = _linear_alone(prepared, recipe, sets)
    if linear is not None:
        trained[LINEAR_ALONE] = linear
        # The best of many epochs on few texts looks better than it is, so it must lead clearly.
        lead = best.best_macro_f1 - linear.best_macro_f1
        if lead <= MIN_LEAD_STANDARD_ERRORS * standard_error(linear.best_macro_f1, len(sets[1])):
            best = linear
    if len(trained) == 1:
        return best
    candidates = [
        Candidate(name, model.history, model.best_macro_f1, model.seconds, model is best)
        for name, model in trained.items()
    ]
    return replace(best, candidates=candidates)


def list_trials(prepared: PreparedData, recipe: Recipe) -> list[Trial]:
    """Return the trainings among which the validation split chooses."""
    requested = recipe.training.class_balance
    balances = list(BALANCES) if requested == "try" else [requested]
    starts = [False] if prepared.encoder is None else [True, False] if recipe.training.compare_scratch else [True]
    trials = []
    for pretrained in starts:
        for balance in balances:
            name = ", ".join(filter(None, ["pretrained" if pretrained else "from scratch", BALANCES[balance]]))
            changes = {"class_balance": balance} | ({} if pretrained else {"layer_decay": 1.0})
            trials.append(Trial(name, recipe.training.model_copy(update=changes), pretrained))
    return trials


def _train_trial(
    workspace: Workspace,
    prepared: PreparedData,
    recipe: Recipe,
    trial: Trial,
    sets: tuple[TokenSet, TokenSet],
    progress: Progress | None,
    on_epoch: OnEpoch | None,
) -> TrainedModel:
    device = choose_training_device(recipe.training.device)
    model = _new_model(prepared, recipe, sets[0], pretrained=trial.pretrained)
    logger.info(
        "training %s on %s: %s texts, %s classes, %s parameters",
        trial.name,
        device.type,
        f"{prepared.corpus.counts['train']:,}",
        len(prepared.corpus.labels),
        f"{model.parameter_count():,}",
    )
    checkpoint = checkpoint_path(workspace, prepared, recipe, trial)
    trained = train_lstm(
        model, *sets, trial.config, device=device, checkpoint=checkpoint, progress=progress, on_epoch=on_epoch
    )
    return _with_branches(trained, prepared, recipe, trial.config, sets, BRANCHES)


def _new_model(prepared: PreparedData, recipe: Recipe, texts: TokenSet, *, pretrained: bool) -> Classifier:
    torch.manual_seed(recipe.training.seed)
    corpus, tokenizer, size = prepared.corpus, prepared.cache.tokenizer, recipe.model.embedding_size
    words = min(tokenizer.size, prepared.encoder.vocabulary_size if prepared.encoder else recipe.model.vocabulary_size)
    model = Classifier(words, len(corpus.labels), recipe.model, multi_label=corpus.multi_label)
    if prepared.word_vectors is not None:
        token_ids = prepared.word_vectors.vocabulary_indices + RESERVED
        embedded = token_ids < words
        model.set_word_vectors(token_ids[embedded], prepared.word_vectors.scaled(EMBEDDING_STD)[embedded])
    if prepared.encoder is not None:
        if pretrained:
            prepared.encoder.initialise(model)
        else:  # random vectors of words that no training text has would only be noise
            counts = np.bincount(np.minimum(texts.tokens.values, words), minlength=words)
            unused = np.flatnonzero(counts[:words] == 0)
            model.set_word_vectors(unused, np.zeros((len(unused), size), np.float32))
    if recipe.model.subwords and not pretrained:
        vocabulary = tokenizer.vocabulary[: words - RESERVED].to_pylist()
        spread = EMBEDDING_STD if prepared.word_vectors is None else 0.0  # given vectors are not disturbed
        model.subwords = SubwordEmbedding.of(vocabulary, size, spread)
    return model


def _with_branches(
    trained: TrainedModel,
    prepared: PreparedData,
    recipe: Recipe,
    config: TrainingConfig,
    sets: tuple[TokenSet, TokenSet],
    branches: tuple[str, ...],
) -> TrainedModel:
    """Give a model linear branches, fitted on all labelled texts, and weigh its branches on the validation split."""
    started = time.monotonic()
    model, validation = trained.model, sets[1]
    fitted = _linear_branches(prepared, recipe, config, sets, model.multi_label)
    model.wide, model.average = (copy.deepcopy(each.branch) if each else None for each in fitted.values())
    logits = {name: each.logits[len(sets[0]) :] for name, each in fitted.items() if each}
    if LSTM in branches:
        with CorePool(torch.device("cpu")) as cores:
            logits = branch_logits(model, validation, cores, [LSTM]) | logits
    ensemble = fit_branch_weights(model, logits, validation.targets())
    ngrams = fitted[NGRAM_LINEAR]
    return replace(
        trained,
        best_macro_f1=ensemble.macro_f1,
        branches=ensemble.branches,
        held_out=ensemble.logits,
        linear_models=ngrams.scores if ngrams else (),
        seconds=trained.seconds + time.monotonic() - started,
    )


def _linear_branches(
    prepared: PreparedData,
    recipe: Recipe,
    config: TrainingConfig,
    sets: tuple[TokenSet, TokenSet],
    multi_label: bool,
) -> dict[str, CrossFitted | None]:
    """Return the linear branches, fitted once for all models with the same settings."""
    balanced, buckets = config.class_balance in ("weights", "sampling"), recipe.model.wide_buckets
    if (balanced, buckets) not in prepared.fitted:
        tokenizer = prepared.cache.tokenizer
        texts = sets[0].joined(sets[1], tokenizer.size)
        folds = cross_folds(texts, np.arange(len(texts)) >= len(sets[0]))
        settings = {"multi_label": multi_label, "balanced": balanced}
        vectors = prepared.document_vectors
        vocabulary = tokenizer.vocabulary
        prepared.fitted[balanced, buckets] = {
            NGRAM_LINEAR: fit_ngram_linear(texts, vocabulary, buckets, folds, **settings) if buckets else None,
            MEAN_EMBEDDING: (None if vectors is None else fit_mean_embedding_linear(vectors, texts, folds, **settings)),
        }
    branches: dict[str, CrossFitted | None] = prepared.fitted[balanced, buckets]
    return branches


def _linear_alone(prepared: PreparedData, recipe: Recipe, sets: tuple[TokenSet, TokenSet]) -> TrainedModel | None:
    """Return a model whose LSTM is disabled, if there are document vectors and few labelled texts; else None."""
    if prepared.encoder is None or not 0 < len(rows_with_target(sets[0])) <= FEW_TEXTS:
        return None
    if prepared.encoder.document_vectors is None:
        return None
    model = _new_model(prepared, recipe, sets[0], pretrained=False).eval()
    model.subwords = None
    model.disable_lstm()
    untrained = TrainedModel(
        model=model, history=[], best_epoch=0, seconds=0.0, tokens_per_second=0.0, device="cpu", best_macro_f1=0.0
    )
    trained = _with_branches(untrained, prepared, recipe, recipe.training, sets, (NGRAM_LINEAR, MEAN_EMBEDDING))
    with CorePool(torch.device("cpu")) as cores:
        train_loss = validation_metrics(model, sets[0], cores)["validation_loss"]
    probabilities = as_probabilities(np.sum(list(trained.held_out.values()), axis=0), model.multi_label)
    loss = log_loss(probabilities, sets[1].targets(), multi_label=model.multi_label)
    scores = {"validation_loss": math.nan if loss is None else loss, "validation_macro_f1": trained.best_macro_f1}
    return replace(trained, history=[{"epoch": 0, "train_loss": train_loss, **scores}])


def checkpoint_path(workspace: Workspace, prepared: PreparedData, recipe: Recipe, trial: Trial) -> Path:
    """Return the checkpoint file of a trial: a function of its data and settings."""
    digest = value_digest(
        [prepared.cache.fingerprint, training_digest_values(recipe, {"model", "training"}), trial.name]
        + ([prepared.word_vectors.digest] if prepared.word_vectors else [])
        + ([prepared.soft_labels.digest] if prepared.soft_labels else [])
        + ([prepared.encoder.name] if prepared.encoder else [])
    )
    return workspace.checkpoint_path(digest[:16])


def delete_checkpoints(workspace: Workspace, prepared: PreparedData, recipe: Recipe) -> None:
    """Delete the checkpoints of a recipe's trials."""
    for trial in list_trials(prepared, recipe):
        checkpoint_path(workspace, prepared, recipe, trial).unlink(missing_ok=True)
