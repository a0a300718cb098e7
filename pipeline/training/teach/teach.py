"""Make a teacher from a sentence encoder: embed the texts, fit a classifier over them, and distil word vectors.

Texts of the validation and test split are neither embedded nor fitted on.
"""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.dataset.corpus import TRAIN, Corpus, read_columns, select
from pipeline.dataset.reviews import read_reviewed_labels
from pipeline.errors import AccountingError, ConfigError, TrainingDataError
from pipeline.files import atomic_path, value_digest, write_manifest, write_table
from pipeline.schemas import TEACHER_TEXTS, soft_labels_schema
from pipeline.training.loop import choose_training_device
from pipeline.training.resumable import Progress, part_of
from pipeline.training.teach.cross_fit import CrossFit, cross_fit
from pipeline.training.teach.embeddings import EmbeddingCache, EmbeddingProgress
from pipeline.training.teach.encoder_folder import EncoderFolder, check_packages
from pipeline.training.teach.sentence_encoder import SentenceEncoder
from pipeline.training.teach.teacher import SOFT_LABELS, TEXTS, WORD_VECTORS, Teacher
from pipeline.training.teach.word_distillation import Vocabulary, count_words, distil_word_vectors, write_word_vectors
from pipeline.workspace import Batch, Workspace, check_name

DOCUMENTS_SHARE, FITTED_SHARE = 0.85, 0.9  # of the work, about, that is done after embedding and after fitting
SPLIT_SETTINGS = ("split", "validation_share", "test_share")


class Part(NamedTuple):
    """The training texts of a documents part.

    Attributes:
        path: the Parquet file.
        digest: its SHA-256.
        rows: int64 [texts], row numbers in the file, ascending.
        first: the row of all batches with which the file begins.
    """

    path: Path
    digest: str
    rows: NDArray[np.int64]
    first: int


@dataclass(frozen=True)
class TrainingTexts:
    """What a teacher is made from: the training texts, labelled or not, and the ids of the documents.

    Attributes:
        corpus: its training split has the unlabelled texts too.
        documents: `doc_id` and `content_hash` of every document.
        has_own_id: bool [documents], false where another text has the same id.
        parts: of the documents, those without training texts included.
    """

    corpus: Corpus
    documents: pa.Table
    has_own_id: NDArray[np.bool_]
    parts: Sequence[Part]

    def labelled_rows(self, part: Part) -> NDArray[np.int64]:
        """Return the rows of a part that have a label, counted in the part."""
        return part.rows[self.corpus.label_ids[part.first + part.rows] >= 0]


def teacher_name(folder: EncoderFolder) -> str:
    """Return the default name of an encoder's teacher: the name of the folder, as a name in a workspace."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).lstrip(".-_")[:100] or "teacher"


def teach(
    workspace: Workspace,
    encoder: Path,
    recipe: Recipe,
    *,
    name: str | None = None,
    batch_ids: Iterable[str] = (),
    progress: Progress | None = None,
) -> Teacher:
    """Make a teacher from a sentence encoder; a killed run goes on with the texts that are not yet embedded.

    Args:
        workspace: where the documents lie and the teacher goes.
        encoder: the folder of the encoder.
        recipe: how to split and tokenize, the size of the word vectors, and the device.
        name: of the teacher; an earlier one of that name is replaced. None: the name of the encoder's folder.
        batch_ids: batches to teach; all if none are named.
        progress: called every few seconds.

    Raises:
        ConfigError: packages are missing, or the encoder's embeddings are smaller than the word vectors.
        InputError: the encoder cannot be read.
        TrainingDataError: the documents cannot train a classifier.
        BatchError: a named batch does not exist.
        DeviceError: the requested device is not there.
    """
    check_packages()
    folder = EncoderFolder.open(encoder)
    name = check_name("teacher", name or teacher_name(folder))
    batches = [workspace.batch(batch_id) for batch_id in batch_ids] or workspace.batches()
    texts = _select_texts(workspace, batches, recipe)
    model = _load_encoder(folder, recipe)
    cache, clock = EmbeddingCache(workspace.ensure_writable(), model), _Stopwatch()
    _embed_documents(cache, texts.parts, part_of(progress, 0.0, DOCUMENTS_SHARE))
    clock.stop("embedding")
    fitted = _fit(texts, cache, recipe.training.seed)
    clock.stop("fitting")
    if progress:
        line = f"fitted to {len(fitted.usable):,} texts: cross-validated accuracy {fitted.accuracy:.1%}"
        progress(FITTED_SHARE, line)
    vocabulary = count_words(texts.corpus, recipe.tokenizer)
    vectors = _embed_words(cache, vocabulary, recipe.model.embedding_size, part_of(progress, FITTED_SHARE, 1.0))
    clock.stop("words")
    with workspace.staging() as staging:
        target = staging / "teacher"
        target.mkdir()
        counts = _write_soft_labels(target, texts, cache, fitted) | {"words": len(vocabulary.words)}
        write_word_vectors(target / WORD_VECTORS, vocabulary.words, vectors)
        facts = _provenance(texts.corpus, recipe, fitted)
        source = {**folder.provenance(), "size": model.size, "device": model.device.type}
        write_manifest(target, name=name, encoder=source, **facts, counts=counts, seconds=clock.seconds)
        return Teacher.load(workspace.commit_teacher(name, target))


def _load_encoder(folder: EncoderFolder, recipe: Recipe) -> SentenceEncoder:
    """Load an encoder onto the device of a recipe, and check that word vectors can be made from it.

    Raises:
        ConfigError: its embeddings are smaller than the word vectors.
    """
    model = SentenceEncoder(folder, choose_training_device(recipe.training.device))
    size = recipe.model.embedding_size
    if model.size < size:
        raise ConfigError(
            f"{folder.path}: its embeddings have {model.size} numbers, word vectors {size}; "
            f"use --set model.embedding_size={model.size} in teach and in train"
        )
    return model


def _provenance(corpus: Corpus, recipe: Recipe, fitted: CrossFit) -> dict[str, Any]:
    """Return what a teacher's manifest records of its documents, settings and scores."""
    return {
        "classes": corpus.labels,
        "multi_label": corpus.multi_label,
        "batches": [{"batch": batch.id, "fingerprint": batch.manifest["fingerprint"]} for batch in corpus.batches],
        "settings": {
            **{field: getattr(recipe.training, field) for field in SPLIT_SETTINGS},
            "embedding_size": recipe.model.embedding_size,
            "tokenizer": recipe.tokenizer.model_dump(mode="json"),
            "c": fitted.c,
        },
        "accuracy": round(fitted.accuracy, 4),
        "macro_f1": round(fitted.macro_f1, 4),
    }


class _Stopwatch:
    """The seconds of each step, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    def stop(self, step: str) -> None:
        """End a step and begin the next one."""
        now = time.monotonic()
        self.seconds[step], self._started = round(now - self._started, 1), now


def _select_texts(workspace: Workspace, batches: Sequence[Batch], recipe: Recipe) -> TrainingTexts:
    """Split the documents as a training does that has soft labels for all of them."""
    documents = read_columns(batches, ["doc_id", "content_hash"])
    if not len(documents):
        raise TrainingDataError("no documents to teach: start with nightlabel ingest FILE --label COLUMN")
    documents = documents.combine_chunks()
    corpus = select(
        batches,
        method=recipe.training.split,
        validation_share=recipe.training.validation_share,
        test_share=recipe.training.test_share,
        soft_labelled=documents["doc_id"].chunk(0),
        reviewed=read_reviewed_labels(workspace),
    )
    ids, hashes = (column.chunk(0).dictionary_encode().indices.to_numpy() for column in documents.columns)
    pairs = np.unique(np.stack([ids, hashes]), axis=1)
    has_own_id = (np.bincount(pairs[0]) == 1)[ids]
    return TrainingTexts(corpus, documents, has_own_id, list(_parts(batches, corpus)))


def _parts(batches: Sequence[Batch], corpus: Corpus) -> Iterator[Part]:
    """Yield the parts of some batches, with the rows of their training texts."""
    first = 0
    for batch in batches:
        for part in batch.manifest["parts"]:
            rows = np.flatnonzero(corpus.splits[first : first + part["rows"]] == TRAIN)
            yield Part(batch.path / part["file"], part["sha256"], rows, first)
            first += part["rows"]


def _embed_documents(cache: EmbeddingCache, parts: Sequence[Part], progress: Progress | None) -> None:
    """Embed the training texts that are not in the cache."""
    missing = [cache.missing(part.digest, part.rows) for part in parts]
    meter = EmbeddingProgress(sum(map(len, missing)), "texts", progress)
    for part, rows in zip(parts, missing, strict=True):
        if len(rows):
            texts = pq.read_table(part.path, columns=["text"], partitioning=None)["text"].combine_chunks()
            cache.add(part.digest, rows, texts.take(pa.array(rows)), meter)


def _fit(texts: TrainingTexts, cache: EmbeddingCache, seed: int) -> CrossFit:
    """Cross-fit a classifier over the embeddings of the labelled texts."""
    corpus = texts.corpus
    features = np.concatenate([cache.read(part.digest, texts.labelled_rows(part)) for part in texts.parts])
    label_ids = corpus.label_ids[corpus.splits == TRAIN]
    targets = corpus.label_sets[label_ids[label_ids >= 0]]
    return cross_fit(features, targets, multi_label=corpus.multi_label, seed=seed)


def _embed_words(
    cache: EmbeddingCache, vocabulary: Vocabulary, size: int, progress: Progress | None
) -> NDArray[np.float32]:
    """Return the vectors of the words, float32 [words, size]."""
    digest, rows = value_digest(vocabulary.words), np.arange(len(vocabulary.words))
    missing = cache.missing(digest, rows)
    meter = EmbeddingProgress(len(missing), "words", progress)
    cache.add(digest, missing, pa.array(vocabulary.words).take(pa.array(missing)), meter)
    return distil_word_vectors(cache.read(digest, rows), vocabulary.frequencies, size)


def _write_soft_labels(folder: Path, texts: TrainingTexts, cache: EmbeddingCache, fitted: CrossFit) -> dict[str, int]:
    """Write the soft labels, and the texts that have some or are fitted on; return their counts."""
    corpus, schema = texts.corpus, soft_labels_schema(texts.corpus.labels)
    rows = np.flatnonzero(corpus.splits == TRAIN)
    has_label = corpus.label_ids[rows] >= 0
    usable = texts.has_own_id[rows].copy()
    usable[has_label] &= fitted.usable
    written = done = 0
    with (
        atomic_path(folder / SOFT_LABELS) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for part in texts.parts:
            in_part = slice(done, done + len(part.rows))
            done += len(part.rows)
            labelled = has_label[in_part]
            before = np.count_nonzero(has_label[: in_part.start])
            probabilities = np.empty((len(part.rows), len(corpus.labels)), dtype=np.float32)
            probabilities[labelled] = fitted.probabilities[before : before + np.count_nonzero(labelled)]
            probabilities[~labelled] = fitted.classifier.predict(cache.read(part.digest, part.rows[~labelled]))
            keep = usable[in_part]
            doc_ids = texts.documents["doc_id"].chunk(0).take(pa.array(part.first + part.rows[keep]))
            writer.write_table(pa.table([doc_ids, *map(pa.array, probabilities[keep].T)], schema=schema))
            written += len(doc_ids)
    table = texts.documents.take(pa.array(rows)).append_column("fitted", pa.array(has_label))
    write_table(folder / TEXTS, table.cast(TEACHER_TEXTS))
    counts = {
        "documents": len(texts.documents),
        "fitted": int(np.count_nonzero(has_label)),
        "soft_labels": written,
        "of_labelled": int(np.count_nonzero(has_label & usable)),
        "of_unlabelled": int(np.count_nonzero(~has_label & usable)),
        "left_out": int(np.count_nonzero(~usable)),  # no example in the other folds, or an id of several texts
    }
    if written != counts["of_labelled"] + counts["of_unlabelled"] or written + counts["left_out"] != len(rows):
        raise AccountingError(f"{written} soft labels do not add up: {counts}, {len(rows)} training texts")
    return counts
