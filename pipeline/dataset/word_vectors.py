"""Word vectors from elsewhere, in the common text format: a word and its numbers on each line.

Files of word2vec and fastText begin with a line of two numbers (words and size), those of GloVe do not; both are
read, plain or compressed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.files import file_digest
from pipeline.ingest.readers.streams import open_text


@dataclass(frozen=True)
class WordVectors:
    """Vectors for the words of a vocabulary that a file has.

    Attributes:
        vocabulary_indices: int64 [found], which words of the vocabulary were found, by their places in it.
        values: float32 [found, size].
        words: how many words the vocabulary has.
        source: the file's name.
        digest: of the file.
    """

    vocabulary_indices: np.ndarray
    values: np.ndarray
    vocabulary_size: int
    source: str
    digest: str

    @property
    def share(self) -> float:
        """Share of the vocabulary that was found."""
        return len(self.vocabulary_indices) / max(self.vocabulary_size, 1)

    def provenance(self) -> dict[str, Any]:
        """Return what a bundle keeps of them."""
        return {"file": self.source, "sha256": self.digest, "found": len(self.vocabulary_indices), "share": self.share}

    def scaled(self, spread: float) -> np.ndarray:
        """Return the values, moved and stretched as a whole so that their standard deviation is `spread`."""
        deviation = float(self.values.std())
        return (self.values * (spread / deviation)).astype(np.float32) if deviation else self.values


def read_vectors(path: Path, vocabulary: Sequence[str], size: int) -> WordVectors:
    """Read the vectors of a vocabulary's words.

    A word is taken as it is written; where only another case of it is there, the first of these.

    Args:
        path: a text file, perhaps with .gz or .zst at the end of its name.
        vocabulary: the words to look for.
        size: numbers each vector must have.

    Raises:
        InputError: it cannot be read, a line has another size, or no word of it is in the vocabulary.
    """
    places = {word: number for number, word in enumerate(vocabulary)}
    exact: dict[int, np.ndarray] = {}
    in_other_case: dict[int, np.ndarray] = {}
    for line, word, numbers in _lines(path):
        place = places.get(word)
        kind = exact
        if place is None:
            place, kind = places.get(word.lower()), in_other_case
        if place is not None and place not in kind:
            kind[place] = _vector(path, line, numbers, size)
    vectors = {**in_other_case, **exact}
    if not vectors:
        raise InputError(f"{path}: not one of its words is in the vocabulary; is it for another language?")
    found = sorted(vectors)
    values = np.stack([vectors[place] for place in found])
    return WordVectors(np.array(found, dtype=np.int64), values, len(vocabulary), path.name, file_digest(path))


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, word and numbers of each line that has any."""
    with open_text(path, "utf-8") as text:
        for line, content in enumerate(text, start=1):
            word, _, numbers = content.rstrip("\r\n ").partition(" ")
            header = line == 1 and word.isdecimal() and numbers.isdecimal()
            if numbers and not header:
                yield line, word, numbers


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
