"""Pretrained word vectors in the common text format: a word and its numbers on each line.

Files of word2vec and fastText begin with a line of two numbers (words and size), those of GloVe do not; both are
read, plain or compressed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.files import file_digest
from pipeline.ingest.readers.streams import open_text


@dataclass(frozen=True)
class WordVectors:
    """The vectors of those words of a vocabulary that a file contains.

    Attributes:
        vocabulary_indices: int64 [vectors], the index in the vocabulary of each word with a vector.
        values: float32 [vectors, size].
        vocabulary_size: words in the vocabulary.
        source: name of the file.
        digest: of the file.
    """

    vocabulary_indices: np.ndarray
    values: np.ndarray
    vocabulary_size: int
    source: str
    digest: str

    @property
    def share(self) -> float:
        """Share of the vocabulary that has a vector."""
        return len(self.vocabulary_indices) / max(self.vocabulary_size, 1)

    def provenance(self) -> dict[str, Any]:
        """Return what a bundle records of them."""
        return {"file": self.source, "sha256": self.digest, "found": len(self.vocabulary_indices), "share": self.share}

    def scaled(self, spread: float) -> np.ndarray:
        """Return the values scaled so that their standard deviation is `spread`."""
        deviation = float(self.values.std())
        return (self.values * (spread / deviation)).astype(np.float32) if deviation else self.values


def read_vectors(path: Path, vocabulary: Sequence[str], size: int) -> WordVectors:
    """Read the vectors of a vocabulary's words.

    A word that occurs only in another case gets the vector of the first such line.

    Args:
        path: a text file, possibly compressed with gzip or zstd.
        vocabulary: the words to look for.
        size: numbers in each vector.

    Raises:
        InputError: the file cannot be read, a vector has another size, or no word is in the vocabulary.
    """
    indices = {word: index for index, word in enumerate(vocabulary)}
    exact: dict[int, np.ndarray] = {}
    lowercased: dict[int, np.ndarray] = {}
    with open_text(path, "utf-8") as text:
        for line, content in enumerate(text, start=1):
            word, _, numbers = content.rstrip("\r\n ").partition(" ")
            if not numbers or (line == 1 and word.isdecimal() and numbers.isdecimal()):
                continue  # the first line can be a header
            index, vectors = indices.get(word), exact
            if index is None:
                index, vectors = indices.get(word.lower()), lowercased
            if index is not None and index not in vectors:
                vectors[index] = _vector(path, line, numbers, size)
    vectors = {**lowercased, **exact}
    if not vectors:
        raise InputError(f"{path}: none of its words is in the vocabulary; is it for another language?")
    present = sorted(vectors)
    values = np.stack([vectors[index] for index in present])
    return WordVectors(np.array(present, dtype=np.int64), values, len(vocabulary), path.name, file_digest(path))


def _vector(path: Path, line: int, numbers: str, size: int) -> np.ndarray:
    try:
        vector = np.array(numbers.split(), dtype=np.float32)
    except ValueError as error:
        raise InputError(f"{path}, line {line}: not a word and its numbers ({error})") from error
    if len(vector) != size:
        raise InputError(
            f"{path}, line {line}: {len(vector)} numbers, but the model's words have {size}; "
            f"train with --set model.embedding_size={len(vector)}"
        )
    if not np.isfinite(vector).all():
        raise InputError(f"{path}, line {line}: a number that is not finite")
    return vector
