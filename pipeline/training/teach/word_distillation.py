"""Word vectors distilled from a sentence encoder, in the way of model2vec.

Each word goes through the encoder alone; the embeddings are centred, reduced by PCA, and weighted down by the frequency
of the word (smooth inverse frequency: Arora et al. 2017).
"""

import gzip
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import TokenizerConfig
from pipeline.dataset.chunks import without_truncation
from pipeline.dataset.corpus import TRAIN, Corpus
from pipeline.dataset.tokenizer import RESERVED, Tokenizer
from pipeline.files import atomic_path

MAX_WORDS = 100_000
MIN_COUNT = 2
# A word of this frequency counts half. Usual is 1e-3, for frequencies in text of any kind; in a corpus of one domain
# frequent words tell the topics apart, and 1e-3 costs a linear model over the vectors 5 to 7 points on Banking77.
SMOOTHING = 1e-2


class Vocabulary(NamedTuple):
    """The most frequent words of some texts.

    Attributes:
        words: by descending frequency.
        frequencies: float64 [words], the share of each word in all words of the texts.
    """

    words: list[str]
    frequencies: NDArray[np.float64]


def count_words(corpus: Corpus, config: TokenizerConfig) -> Vocabulary:
    """Count the words of the training texts as the tokenizer of a model splits them.

    Args:
        corpus: the texts.
        config: how to split.

    Raises:
        TrainingDataError: the texts have no words.
    """
    wanted = {"vocabulary_size": MAX_WORDS + RESERVED, "min_count": MIN_COUNT}
    tokenizer = without_truncation(Tokenizer.fit(corpus.texts(TRAIN), config.model_copy(update=wanted)))
    counts = np.zeros(tokenizer.size, dtype=np.int64)
    for texts in corpus.texts(TRAIN):
        counts += np.bincount(tokenizer.encode(texts).token_ids.values.to_numpy(), minlength=tokenizer.size)
    return Vocabulary(tokenizer.vocabulary.to_pylist(), counts[RESERVED:] / counts.sum())


def distil_word_vectors(
    embeddings: NDArray[np.float32], frequencies: NDArray[np.float64], size: int
) -> NDArray[np.float32]:
    """Return the vectors of words, float32 [words, size].

    Args:
        embeddings: of each word [words, at least size].
        frequencies: [words].
        size: principal components to keep.
    """
    centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    _, components = np.linalg.eigh(centred.T @ centred)  # by ascending variance
    components = components[:, ::-1][:, :size]
    largest = np.abs(components).argmax(axis=0)
    components *= np.sign(components[largest, np.arange(size)])  # the sign of a component is arbitrary
    weights = SMOOTHING / (SMOOTHING + frequencies)
    vectors: NDArray[np.float32] = ((centred @ components) * weights[:, np.newaxis]).astype(np.float32)
    return vectors


def write_word_vectors(path: Path, words: Iterable[str], vectors: NDArray[np.float32]) -> None:
    """Write the common text format, gzipped: a line with the numbers of words and size, then a word on each line."""
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        # Without a name and a time, so that the bytes depend on the vectors alone.
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as zipped,
        io.TextIOWrapper(zipped, encoding="utf-8", newline="\n") as text,
    ):
        text.write(f"{vectors.shape[0]} {vectors.shape[1]}\n")
        for word, vector in zip(words, vectors.tolist(), strict=True):
            text.write(f"{word} {' '.join([f'{number:.4g}' for number in vector])}\n")
