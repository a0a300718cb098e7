"""Prepare a training: split the labelled documents, tokenize them, and read what a warm start needs."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config import Recipe, SelectiveConfig
from pipeline.dataset.corpus import TRAIN, VALIDATION, Corpus, select
from pipeline.dataset.reviews import read_reviewed_labels
from pipeline.dataset.soft_labels import SoftLabels, check_soft_label_ids, read_soft_labels
from pipeline.dataset.token_cache import TokenCache, build_tokens
from pipeline.dataset.token_set import TokenSet
from pipeline.dataset.word_vectors import WordVectors, read_vectors
from pipeline.errors import ConfigError
from pipeline.metrics.selective import check_none_provable, check_provable
from pipeline.training.pretrain.encoder import Encoder
from pipeline.training.teach.teacher import document_vectors, find_teacher
from pipeline.workspace import Workspace

LISTED = 8  # labels in an error


@dataclass(frozen=True)
class WarmStart:
    """What a training can start from, beside the labelled documents; nothing by default.

    Attributes:
        embeddings: path of a file of word vectors.
        encoder: a pretrained encoder.
        teacher: path of a file of soft labels (class probabilities from another model), or the name or folder of a
            teacher, which has word vectors too.
    """

    embeddings: str | None = None
    encoder: Encoder | None = None
    teacher: str | None = None


COLD_START = WarmStart()


@dataclass(frozen=True)
class PreparedData:
    """The labelled documents, split and tokenized, and the warm start, if any."""

    corpus: Corpus
    cache: TokenCache
    word_vectors: WordVectors | None = None
    encoder: Encoder | None = None
    soft_labels: SoftLabels | None = None
    teacher_vectors: WordVectors | None = None
    fitted: dict[Any, Any] = field(default_factory=dict)  # linear branches by settings, shared by trials

    @property
    def document_vectors(self) -> Tensor | None:
        """Document vectors of the words [vocabulary, size], of the teacher or else of the encoder; None without."""
        if self.teacher_vectors is not None:
            return document_vectors(self.teacher_vectors)
        return self.encoder.document_vectors if self.encoder else None

    def read(self, split: int) -> TokenSet:
        """Return the texts of a split; training texts with their soft labels."""
        texts = self.cache.read(split)
        if self.soft_labels is None or split != TRAIN:
            return texts
        return replace(texts, soft_labels=self.soft_labels.aligned(texts.doc_ids))


def prepare(
    workspace: Workspace,
    recipe: Recipe,
    batch_ids: Iterable[str] = (),
    start: WarmStart = COLD_START,
) -> PreparedData:
    """Split the labelled documents and tokenize them.

    Args:
        workspace: where the documents lie.
        recipe: how to split and tokenize.
        batch_ids: batches to train on; all if none are named.
        start: what to start from.

    Raises:
        TrainingDataError: the documents cannot train a classifier.
        ReviewError: the answers of a review cannot be read.
        BatchError: a named batch does not exist.
        ConfigError: there are too few validation texts for the target precision.
        InputError: word vectors or soft labels cannot be read, or do not match.
        ModelError: a file of the teacher has changed.
    """
    batches = [workspace.batch(batch_id) for batch_id in batch_ids] or workspace.batches()
    training = recipe.training
    split = partial(
        select,
        batches,
        method=training.split,
        validation_share=training.validation_share,
        test_share=training.test_share,
        reviewed=read_reviewed_labels(workspace),
    )
    corpus, soft_labels, word_vectors, teacher_vectors = split(), None, None, None
    teacher = find_teacher(workspace, start.teacher) if start.teacher is not None else None
    if teacher is not None:
        soft_labels = teacher.soft_labels(corpus)
    elif start.teacher is not None:
        soft_labels = read_soft_labels(Path(start.teacher), corpus.labels, multi_label=corpus.multi_label)
        check_soft_label_ids(soft_labels, corpus.all_doc_ids())
    if soft_labels is not None:
        corpus = split(soft_labelled=soft_labels.doc_ids)
    _check_selective(recipe.selective, corpus)
    tokenizer = start.encoder.tokenizer(recipe, corpus.texts(TRAIN)) if start.encoder else None
    cache = build_tokens(workspace, corpus, recipe.tokenizer, tokenizer)
    words, size = cache.tokenizer.vocabulary.to_pylist(), recipe.model.embedding_size
    if teacher is not None:
        teacher_vectors = teacher.word_vectors(words, size)
    if start.embeddings is not None:
        word_vectors = read_vectors(Path(start.embeddings), words, size)
    elif start.encoder is None:
        word_vectors = teacher_vectors
    return PreparedData(corpus, cache, word_vectors, start.encoder, soft_labels, teacher_vectors)


def _check_selective(config: SelectiveConfig, corpus: Corpus) -> None:
    check_provable(config.target_precision, corpus.counts["validation"])
    name = config.none_label
    if not name:
        return
    if name not in corpus.labels:
        listed = ", ".join([*corpus.labels[:LISTED], *(["..."] if len(corpus.labels) > LISTED else [])])
        raise ConfigError(f"selective.none_label: no document has the label {name!r}; there are: {listed}")
    if corpus.multi_label:
        raise ConfigError(
            "selective.none_label: documents have several labels each, so those of no class have none; leave it empty"
        )
    texts = (corpus.splits == VALIDATION) & (corpus.label_ids == corpus.labels.index(name))
    check_none_provable(config.none_labelled, int(texts.sum()), name)
