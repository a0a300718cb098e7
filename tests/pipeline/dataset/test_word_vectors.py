import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_recipe, weather_rows

from flows.reports.model import model_report
from pipeline.dataset.tokenizer import RESERVED
from pipeline.dataset.word_vectors import read_vectors
from pipeline.errors import InputError
from pipeline.promotion.register import train
from pipeline.training.model import EMBEDDING_STD
from pipeline.training.prepare import WarmStart, prepare
from pipeline.training.selection import fit
from pipeline.workspace import Batch, Workspace

LINES = "rain 1 2 3\nSun 4 5 6\nsun 7 8 9\nTHE 0.5 0 -1e-1\nThe 9 9 9\nunasked 1 1\n"
VOCABULARY = ["the", "sun", "rain", "umbrella"]


@pytest.mark.parametrize("header", ["", "6 3\n"])
@pytest.mark.parametrize("compressed", [False, True])
def test_words_are_found_as_written_or_else_in_another_case(tmp_path: Path, header: str, compressed: bool) -> None:
    path = tmp_path / ("vectors.txt.gz" if compressed else "vectors.txt")
    content = (header + LINES).encode()
    path.write_bytes(gzip.compress(content) if compressed else content)
    vectors = read_vectors(path, VOCABULARY, 3)
    assert vectors.vocabulary_indices.tolist() == [0, 1, 2]
    np.testing.assert_allclose(vectors.values, [[0.5, 0, -0.1], [7, 8, 9], [1, 2, 3]])
    assert (vectors.share, vectors.source) == (0.75, path.name)
    assert vectors.scaled(0.1).std() == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rain 1 2\n", "line 1: 2 numbers, but the model's words have 3; train with --set model.embedding_size=2"),
        ("x 1 2 3\nrain 1 two 3\n", "line 2: not a word and its numbers"),
        ("rain 1 nan 3\n", "line 1: a number that is not finite"),
        ("pluie 1 2 3\n", "none of its words is in the vocabulary"),
        ("", "none of its words"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        read_vectors(path, VOCABULARY, 3)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        read_vectors(tmp_path / "nowhere.txt", VOCABULARY, 3)


def test_training_starts_from_the_vectors_and_the_bundle_says_so(
    workspace: Workspace, add_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    add_batch(weather_rows())
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"{word} {' '.join([str(n)] * 16)}\n" for n, word in enumerate(["wet", "Sun", "warm"])))
    recipe = tiny_recipe(epochs=1)
    prepared = prepare(workspace, recipe, start=WarmStart(embeddings=str(path)))
    assert prepared.word_vectors is not None
    words = prepared.cache.tokenizer.vocabulary.to_pylist()
    assert [words[number] for number in prepared.word_vectors.vocabulary_indices] == [
        word for word in words if word in ("wet", "warm")
    ]
    slow = tiny_recipe(epochs=1, learning_rate=1e-9, weight_decay=0.0)
    trained = fit(workspace, prepared, slow)
    rows = trained.model.embedding.weight.detach().numpy()[prepared.word_vectors.vocabulary_indices + RESERVED]
    np.testing.assert_allclose(rows, prepared.word_vectors.scaled(EMBEDDING_STD), atol=1e-6)
    publication = train(workspace, "weather", recipe, start=WarmStart(embeddings=str(path)))
    provenance = publication.bundle.metrics["word_vectors"]
    assert (provenance["file"], provenance["found"]) == ("vectors.txt", 2)
    assert "Word vectors of vectors.txt" in model_report(publication, pictures=False)
