"""The labelled documents, divided and tokenized, and what a training starts from."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import Recipe
from pipeline.corpus import TRAIN, Corpus, select
from pipeline.encoder import Encoder
from pipeline.teacher import Teacher, check_ids, read_teacher
from pipeline.tokens import TokenCache, TokenSet, build_tokens
from pipeline.vectors import WordVectors, read_vectors
from pipeline.workspace import Workspace


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


FROM_NOTHING = Start()


@dataclass(frozen=True)
class Prepared:
    """The labelled documents, divided and tokenized, and what to start from, if anything."""

    corpus: Corpus
    cache: TokenCache
    vectors: WordVectors | None = None
    encoder: Encoder | None = None
    teacher: Teacher | None = None
    fitted: dict[Any, Any] = field(default_factory=dict)  # linear branches, which trials of a search share

    def read(self, split: int) -> TokenSet:
        """Return the texts of a split; those to train on with the teacher's opinion."""
        texts = self.cache.read(split)
        if self.teacher is None or split != TRAIN:
            return texts
        return replace(texts, teacher=self.teacher.aligned(texts.doc_ids))


def prepare(
    workspace: Workspace,
    recipe: Recipe,
    batch_ids: Iterable[str] = (),
    start: Start = FROM_NOTHING,
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
