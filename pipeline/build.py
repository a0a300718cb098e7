"""A model from documents: prepare, fit, assess, publish. Each step can run, and be retried, on its own."""

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pipeline import figures
from pipeline.baseline import linear_baseline
from pipeline.batching import TokenLists
from pipeline.bundle import Bundle, write_model
from pipeline.config import Recipe, TrainingConfig
from pipeline.cores import Cores
from pipeline.corpus import TEST, TRAIN, VALIDATION, Corpus, select
from pipeline.encoder import Encoder
from pipeline.engine import opened
from pipeline.errors import ModelError
from pipeline.evaluation import best_thresholds, decide, evaluate, macro_f1, standard_error
from pipeline.few_labels import FEW_TEXTS, learn_from_few
from pipeline.files import value_digest, write_json
from pipeline.model import EMBEDDING_SPREAD, Classifier
from pipeline.registry import Registry
from pipeline.teacher import Teacher, check_ids, read_teacher
from pipeline.tokenizer import RESERVED
from pipeline.tokens import TokenCache, TokenSet, build_tokens
from pipeline.training import Candidate, OnEpoch, Progress, TrainedModel, choose_device, measure, predict, train
from pipeline.vectors import WordVectors, read_vectors
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a training can begin with beside the labelled documents; nothing by default.

    Attributes:
        embeddings: a file of word vectors.
        encoder: what a pretraining left.
        teacher: a file of class probabilities from another model.
    """

    embeddings: str | None = None
    encoder: Encoder | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class Prepared:
    """The labelled documents, divided and tokenized, and what to start from, if anything."""

    corpus: Corpus
    cache: TokenCache
    vectors: WordVectors | None = None
    encoder: Encoder | None = None
    teacher: Teacher | None = None

    def read(self, split: int) -> TokenSet:
        """Return the texts of a split; those to train on with the teacher's opinion."""
        texts = self.cache.read(split)
        if self.teacher is None or split != TRAIN:
            return texts
        return replace(texts, teacher=self.teacher.aligned(texts.doc_ids))


@dataclass(frozen=True)
class Publication:
    """A registered version, and whether scoring uses it from now on."""

    bundle: Bundle
    promoted: bool
    reason: str


def prepare(
    workspace: Workspace,
    recipe: Recipe,
    batch_ids: Iterable[str] = (),
    start: Start = Start(),
) -> Prepared:
    """Divide the labelled documents and tokenize them.

    Args:
        workspace: where the documents lie.
        recipe: how to divide and tokenize.
        batch_ids: batches to learn from; all if none are named.
        start: what to begin with.

    Raises:
        TrainingDataError: the documents cannot train a classifier.
        BatchError: a named batch does not exist.
        InputError: word vectors or a teacher's table cannot be read, or do not suit.
    """
    batches = [workspace.batch(batch_id) for batch_id in batch_ids] or workspace.batches()
    training = recipe.training
    divide = partial(
        select,
        batches,
        method=training.split,
        validation_share=training.validation_share,
        test_share=training.test_share,
    )
    corpus, teacher = divide(), None
    if start.teacher is not None:
        teacher = read_teacher(Path(start.teacher), corpus.labels, multi_label=corpus.multi_label)
        check_ids(teacher, corpus.all_ids())
        corpus = divide(taught=teacher.doc_ids)
    tokenizer = start.encoder.tokenizer(recipe) if start.encoder else None
    cache = build_tokens(workspace, corpus, recipe.tokenizer, tokenizer)
    vectors = None
    if start.embeddings is not None:
        words = cache.tokenizer.vocabulary.to_pylist()
        vectors = read_vectors(Path(start.embeddings), words, recipe.model.embedding_size)
    return Prepared(corpus, cache, vectors, start.encoder, teacher)


def fit(
    workspace: Workspace,
    prepared: Prepared,
    recipe: Recipe,
    progress: Progress | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainedModel:
    """Train a model; a run that was killed goes on from its last checkpoint.

    Where the settings leave a choice open (with or without pretraining, how classes are balanced), each is trained
    and the validation split chooses.

    Raises:
        DeviceError: the requested device is not there.
    """
    device = choose_device(recipe.training.device)
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
        trained.append(
            train(
                model,
                *sets,
                trial.config,
                device=device,
                checkpoint=_checkpoint(workspace, prepared, recipe, trial),
                progress=_part_of(progress, trial.name, number, len(runs)),
                on_epoch=on_epoch,
            )
        )
    names, best = [trial.name for trial in runs], max(trained, key=lambda one: one.best_macro_f1)
    simple = _from_few(prepared, recipe, sets)
    if simple is not None:
        names, trained = [*names, "document vectors alone"], [*trained, simple]
        # An epoch chosen among many by few texts looks better than it is: it has to be so clearly.
        if best.best_macro_f1 - simple.best_macro_f1 <= standard_error(simple.best_macro_f1, len(sets[1])):
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


def _from_few(prepared: Prepared, recipe: Recipe, sets: tuple[TokenSet, TokenSet]) -> TrainedModel | None:
    """Return the model that only learns from document vectors, where labels are few and there are such vectors."""
    started = time.monotonic()
    labelled = int(np.count_nonzero(sets[0].label_ids >= 0))
    if prepared.encoder is None or not 0 < labelled <= FEW_TEXTS:
        return None
    model = _new_model(prepared, recipe, sets[0], pretrained=True).eval()
    if model.average is None:
        return None
    learn_from_few(model, sets[0])
    with Cores(torch.device("cpu")) as cores:
        entry = measure(model, sets[1], cores)
        entry["train_loss"] = measure(model, sets[0], cores)["validation_loss"]
    return TrainedModel(
        model=model,
        history=[{"epoch": 0, **entry}],
        best_epoch=0,
        seconds=time.monotonic() - started,
        tokens_per_second=0.0,
        device="cpu",
        best_macro_f1=entry["validation_macro_f1"],
    )


@dataclass(frozen=True)
class _Trial:
    name: str
    config: TrainingConfig
    pretrained: bool


BALANCES = {"none": "", "weights": "class weights", "sampling": "balanced sampling"}


def _trials(prepared: Prepared, recipe: Recipe) -> list[_Trial]:
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


def _new_model(prepared: Prepared, recipe: Recipe, texts: TokenSet, *, pretrained: bool) -> Classifier:
    torch.manual_seed(recipe.training.seed)
    corpus, size = prepared.corpus, prepared.cache.tokenizer.size
    model = Classifier(size, len(corpus.labels), recipe.model, multi_label=corpus.multi_label)
    if prepared.vectors is not None:
        model.start_from(prepared.vectors.numbers + RESERVED, prepared.vectors.scaled(EMBEDDING_SPREAD))
    if prepared.encoder is not None:
        if pretrained:
            prepared.encoder.start(model, texts.tokens)
        else:
            model.silence(np.flatnonzero(np.bincount(texts.tokens.values, minlength=size) == 0))
    return model


def _part_of(progress: Progress | None, name: str, number: int, of: int) -> Progress | None:
    """Return a progress for one of several trainings, which tells its share of the whole."""
    if progress is None or of == 1:
        return progress
    return lambda share, line: progress((number + share) / of, f"{name}: {line}")


def _checkpoint(workspace: Workspace, prepared: Prepared, recipe: Recipe, trial: _Trial) -> Path:
    decided = value_digest(
        [prepared.cache.fingerprint, recipe.model_dump(mode="json", exclude={"tokenizer", "pretraining"}), trial.name]
        + ([prepared.vectors.digest] if prepared.vectors else [])
        + ([prepared.teacher.digest] if prepared.teacher else [])
        + ([prepared.encoder.name] if prepared.encoder else [])
    )
    return workspace.checkpoint_of(decided[:16])


def forget_checkpoints(workspace: Workspace, prepared: Prepared, recipe: Recipe) -> None:
    """Remove what a training kept to go on from, once its result is safe or not wanted."""
    for trial in _trials(prepared, recipe):
        _checkpoint(workspace, prepared, recipe, trial).unlink(missing_ok=True)


def assess(prepared: Prepared, trained: TrainedModel, recipe: Recipe) -> dict[str, Any]:
    """Measure a trained model on its validation and test split, with the linear baseline beside it."""
    labels = prepared.corpus.labels
    metrics: dict[str, Any] = {}
    thresholds = None
    with Cores(torch.device("cpu")) as cores:
        for name, split in (("validation", VALIDATION), ("test", TEST)):
            texts = prepared.read(split)
            probabilities, targets = predict(trained.model, texts, cores=cores), texts.targets() > 0
            if trained.model.multi_label and split == VALIDATION:
                thresholds = best_thresholds(probabilities, targets)
            metrics[name] = evaluate(probabilities, targets, labels, thresholds)
    if recipe.training.baseline:
        logger.info("training the linear baseline on the same split")
        metrics["baseline"] = _baseline(prepared)
    return {
        **metrics,
        "multi_label": prepared.corpus.multi_label,
        "thresholds": None if thresholds is None else thresholds.tolist(),
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "candidates": [asdict(candidate) for candidate in trained.candidates],
        "training_seconds": round(trained.seconds, 1),
        "training_tokens_per_second": round(trained.tokens_per_second),
        "training_device": trained.device,
        "counts": prepared.corpus.counts,
        "tokens": prepared.cache.manifest["stats"],
        "word_vectors": prepared.vectors.facts() if prepared.vectors else None,
        "encoder": prepared.encoder.facts() if prepared.encoder else None,
        "teacher": prepared.teacher.facts() if prepared.teacher else None,
    }


def _baseline(prepared: Prepared) -> dict[str, Any]:
    splitter, corpus = prepared.cache.tokenizer.splitter, prepared.corpus

    def texts_and_targets(split: int) -> tuple[list[str], NDArray[np.bool_]]:
        texts: list[str] = []
        label_ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
        for _, column, ids in corpus.read(split):
            labelled = ids >= 0
            texts += pc.binary_join(splitter.split(column.filter(pa.array(labelled))), " ").to_pylist()
            label_ids.append(ids[labelled])
        return texts, corpus.sets[np.concatenate(label_ids)]

    return linear_baseline(*texts_and_targets(TRAIN), *texts_and_targets(TEST), multi_label=corpus.multi_label)


def publish(
    workspace: Workspace,
    name: str,
    prepared: Prepared,
    trained: TrainedModel,
    recipe: Recipe,
    metrics: dict[str, Any],
    *,
    preset: str = "default",
    force: bool = False,
) -> Publication:
    """Export a trained model, prove the export, register it, and promote it if it is not worse.

    Args:
        workspace: where the model goes.
        name: the model's name.
        prepared: what it was trained on.
        trained: the weights.
        recipe: the settings they came from.
        metrics: from `assess`.
        preset: the preset the settings started from, for the record.
        force: promote it even if it is worse than the champion.

    Raises:
        ParityError: the exported graph disagrees with the trained weights; nothing is registered.
    """
    registry = Registry(workspace)
    promoted, reason = _compare(registry, name, prepared.corpus, metrics, force)
    with workspace.staging() as staging:
        folder = staging / "bundle"
        folder.mkdir()
        thresholds = metrics["thresholds"]
        parity = write_model(
            folder,
            trained.model,
            prepared.cache.tokenizer,
            labels=prepared.corpus.labels,
            recipe=recipe,
            proof=prepared.read(TRAIN),
            validation=prepared.read(VALIDATION),
            thresholds=None if thresholds is None else np.array(thresholds, dtype=np.float32),
        )
        _write_report(folder, {**metrics, "parity": parity.as_dict()}, prepared.corpus.labels)
        facts = {
            "preset": preset,
            "promotion": {"promoted": promoted, "forced": force, "reason": reason},
            "batches": [
                {"batch": batch.id, "fingerprint": batch.manifest["fingerprint"], "documents": batch.rows}
                for batch in prepared.corpus.batches
            ],
        }
        bundle = registry.register(name, folder, facts)
    if promoted:
        registry.promote(name, bundle.version, reason)
    forget_checkpoints(workspace, prepared, recipe)
    return Publication(bundle, promoted, reason)


def _write_report(folder: Any, metrics: dict[str, Any], labels: list[str]) -> None:
    write_json(folder / "metrics.json", metrics)
    (folder / "figures").mkdir()
    split = metrics["test"] if metrics["test"]["n"] else metrics["validation"]
    curves = {one["name"]: one["history"] for one in metrics["candidates"]} or {"": metrics["history"]}
    pictures = {
        "learning_curve": figures.learning_curve(curves),
        "reliability": figures.reliability_diagram(split["reliability"], split["calibration_error"]),
    }
    if split["confusion"] is not None:
        pictures["confusion_matrix"] = figures.confusion_matrix(split["confusion"], labels)
    for name, png in pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(png)


def _compare(registry: Registry, name: str, corpus: Corpus, metrics: dict[str, Any], force: bool) -> tuple[bool, str]:
    """Return whether the new version becomes champion, and why."""
    champion = registry.champion(name) if name in registry.names() else None
    if champion is None:
        return True, "first version"
    if force:
        return True, f"forced over version {champion}"
    try:
        bundle = registry.load(name, champion)
    except ModelError as error:
        return True, f"the champion cannot be loaded ({error})"
    if bundle.labels != corpus.labels or bool(bundle.settings.get("multi_label")) != corpus.multi_label:
        return False, f"its classes are not those of the champion, version {champion}; promote it by hand"
    if not metrics["test"]["n"]:
        return False, f"no test texts to compare it with version {champion} on; promote it by hand"
    own, other = metrics["test"]["macro_f1"], champion_macro_f1(bundle, corpus)
    return own >= other, f"macro-F1 {own:.4f} against {other:.4f} of version {champion} on the same test split"


def champion_macro_f1(bundle: Bundle, corpus: Corpus) -> float:
    """Return the test macro-F1 of a registered model on a corpus, through its own tokenizer and graph."""
    predicted, targets = [], []
    with opened(bundle.onnx_path) as engine:
        for _, texts, label_ids in corpus.read(TEST):
            token_ids = bundle.tokenizer.encode(texts).token_ids
            spoken = np.flatnonzero(pc.list_value_length(token_ids))
            if len(spoken) == 0:
                continue
            probabilities = engine.probabilities(TokenLists.of(token_ids.take(pa.array(spoken))))
            predicted.append(decide(probabilities, bundle.thresholds))
            targets.append(corpus.sets[label_ids[spoken]])
    return macro_f1(np.concatenate(predicted), np.concatenate(targets))


def build(
    workspace: Workspace,
    name: str,
    recipe: Recipe,
    *,
    batch_ids: Iterable[str] = (),
    start: Start = Start(),
    preset: str = "default",
    force: bool = False,
    progress: Progress | None = None,
) -> Publication:
    """Go through all four steps, without an orchestrator."""
    prepared = prepare(workspace, recipe, batch_ids, start)
    trained = fit(workspace, prepared, recipe, progress)
    metrics = assess(prepared, trained, recipe)
    return publish(workspace, name, prepared, trained, recipe, metrics, preset=preset, force=force)
