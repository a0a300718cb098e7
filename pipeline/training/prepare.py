"""The labelled documents, divided and tokenized, and what a training starts from."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import Recipe, SelectiveConfig
from pipeline.dataset.corpus import TRAIN, VALIDATION, Corpus, select
from pipeline.dataset.reviews import read_reviewed_labels
from pipeline.dataset.soft_labels import SoftLabels, check_soft_label_ids, read_soft_labels
from pipeline.dataset.token_cache import TokenCache, TokenSet, build_tokens
from pipeline.dataset.word_vectors import WordVectors, read_vectors
from pipeline.errors import ConfigError
from pipeline.metrics.selective import check_none_provable, check_provable
from pipeline.training.pretrain.encoder import Encoder
from pipeline.workspace import Workspace

LISTED = 8  # labels in an error


@dataclass(frozen=True)
class WarmStart:
    """What a training can begin with beside the labelled documents; nothing by default.

    Attributes:
        embeddings: a file of word vectors.
        encoder: what a pretraining left.
        teacher: a file of class probabilities from another model.
    """

    embeddings: str | None = None
    encoder: Encoder | None = None
    teacher: str | None = None


COLD_START = WarmStart()


@dataclass(frozen=True)
class PreparedData:
    """The labelled documents, divided and tokenized, and what to start from, if anything."""

    corpus: Corpus
    cache: TokenCache
    word_vectors: WordVectors | None = None
    encoder: Encoder | None = None
    soft_labels: SoftLabels | None = None
    fitted: dict[Any, Any] = field(default_factory=dict)  # linear branches, which trials of a search share

    def read(self, split: int) -> TokenSet:
        """Return the texts of a split; those to train on with the teacher's opinion."""
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
    """Divide the labelled documents and tokenize them.

    Args:
        workspace: where the documents lie.
        recipe: how to divide and tokenize.
        batch_ids: batches to learn from; all if none are named.
        start: what to begin with.

    Raises:
        TrainingDataError: the documents cannot train a classifier.
        ReviewError: what people said of labels cannot be read.
        BatchError: a named batch does not exist.
        ConfigError: there are too few validation texts for the promised precision.
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
        reviewed=read_reviewed_labels(workspace),
    )
    corpus, teacher = divide(), None
    if start.teacher is not None:
        teacher = read_soft_labels(Path(start.teacher), corpus.labels, multi_label=corpus.multi_label)
        check_soft_label_ids(teacher, corpus.all_doc_ids())
        corpus = divide(soft_labelled=teacher.doc_ids)
    _check_promise(recipe.selective, corpus)
    tokenizer = start.encoder.tokenizer(recipe) if start.encoder else None
    cache = build_tokens(workspace, corpus, recipe.tokenizer, tokenizer)
    vectors = None
    if start.embeddings is not None:
        words = cache.tokenizer.vocabulary.to_pylist()
        vectors = read_vectors(Path(start.embeddings), words, recipe.model.embedding_size)
    return PreparedData(corpus, cache, vectors, start.encoder, teacher)


def _check_promise(config: SelectiveConfig, corpus: Corpus) -> None:
    check_provable(config.target_precision, corpus.counts["validation"])
    name = config.none_label
    if not name:
        return
    if name not in corpus.labels:
        more = ", ..." if len(corpus.labels) > LISTED else ""
        there = f"{', '.join(corpus.labels[:LISTED])}{more}"
        raise ConfigError(f"selective.none_label: no document has the label {name!r}; there are: {there}")
    if corpus.multi_label:
        raise ConfigError("selective.none_label: where documents have several labels, those of no class have none")
    texts = (corpus.splits == VALIDATION) & (corpus.label_ids == corpus.labels.index(name))
    check_none_provable(config.none_labelled, int(texts.sum()), name)
