"""What people said of texts wins over the labels that were ingested, and moves nothing else."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_recipe, weather_rows

from pipeline.dataset.corpus import LEFT_OUT, TEST, TRAIN, VALIDATION, Corpus, select
from pipeline.dataset.reviews import ReviewedLabels, read_reviewed_labels, utc_now, write_answers
from pipeline.errors import ReviewError, TrainingDataError
from pipeline.training.prepare import prepare
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]
Said = dict[str, tuple[str, str]]  # doc_id: the label that was given, and the right one


def divide(batches: Sequence[Batch], reviewed: ReviewedLabels | None = None, method: str = "hash") -> Corpus:
    return select(batches, method=method, validation_share=0.1, test_share=0.1, reviewed=reviewed)


def documents(batches: Sequence[Batch]) -> dict[str, dict[str, Any]]:
    tables = [pq.read_table(path, partitioning=None) for batch in batches for path in batch.parts]
    return {row["doc_id"]: row for row in pa.concat_tables(tables).to_pylist()}


def say(
    workspace: Workspace, batches: Sequence[Batch], said: Said, *, new: bool = False, several: bool = False
) -> None:
    there = documents(batches)
    write_answers(
        workspace,
        [
            {
                **{"batch": "any", "doc_id": doc_id, "content_hash": there[doc_id]["content_hash"], "why": "doubtful"},
                **{"label": label, "correct": correct, "several": several, "second": None, "confidence": 0.5},
                **{"status": "review", "model": "weather@1", "asked_at": utc_now(), "new_class": new, "note": ""},
                **{"reviewer": "ada", "reviewed_at": utc_now(), "file_digest": blake2b(doc_id.encode()).hexdigest()},
            }
            for doc_id, (label, correct) in said.items()
        ],
    )


def labels(corpus: Corpus) -> dict[str, tuple[int, str]]:
    """The split and the label of each document that is used."""
    return {
        doc_id: (split, "|".join(np.array(corpus.labels)[corpus.label_sets[label_id]]))
        for split in (TRAIN, VALIDATION, TEST)
        for doc_ids, _, label_ids in corpus.read(split)
        for doc_id, label_id in zip(doc_ids.to_pylist(), label_ids.tolist(), strict=True)
    }


@pytest.mark.parametrize("method", ["hash", "stratified"])
def test_corrected_documents_stay_in_their_split_and_so_do_all_others(
    workspace: Workspace, add_batch: AddBatch, method: str
) -> None:
    batches = [add_batch(weather_rows(200))]
    before = labels(divide(batches, method=method))
    wrong = [next(doc_id for doc_id, (own, _) in before.items() if own == split) for split in (TRAIN, VALIDATION, TEST)]
    swap = {"sun": "rain", "rain": "sun"}
    say(workspace, batches, {doc_id: (before[doc_id][1], swap[before[doc_id][1]]) for doc_id in wrong})
    corpus = divide(batches, read_reviewed_labels(workspace), method)
    after = labels(corpus)
    assert {doc_id for doc_id in before if before[doc_id] != after[doc_id]} == set(wrong)
    assert {doc_id: split for doc_id, (split, _) in after.items()} == {
        doc_id: one for doc_id, (one, _) in before.items()
    }
    assert (corpus.counts["reviewed"], corpus.counts["corrected"]) == (3, 3)


def test_documents_without_a_label_are_trained_on_and_never_tested_on(
    workspace: Workspace, add_batch: AddBatch
) -> None:
    night = [{"id": f"u{n}", "text": f"cloudless {n}", "label": None} for n in range(50)]
    night += [{"id": "twin", "text": "cloudless 3", "label": None}, {"id": "held", "text": "x", "split": "test"}]
    batches = [add_batch(weather_rows()), add_batch(night, "night")]
    say(workspace, batches, {f"u{n}": ("rain", "sun") for n in range(50)} | {"held": ("sun", "sun")})
    corpus = divide(batches, read_reviewed_labels(workspace))
    found = labels(corpus)
    assert {found[f"u{n}"] for n in range(50)} == {(TRAIN, "sun")}
    assert not {"twin", "held"} & found.keys()
    assert corpus.counts["unlabelled"] == 0
    assert corpus.counts["reviewed"] == 50
    assert corpus.trained_on_rows == [120, 50]


def test_an_unlabelled_text_that_is_tested_elsewhere_is_not_trained_on(
    workspace: Workspace, add_batch: AddBatch
) -> None:
    rows = weather_rows(40)
    tested = [{"id": "t", "text": "same words", "label": "sun", "split": "test"}]
    tested += [{"id": "t2", "text": "same words", "label": "sun", "split": "test"}]
    batches = [add_batch([*rows, *tested]), add_batch([{"id": "u", "text": "same words"}], "night")]
    say(workspace, batches, {"u": ("sun", "rain")})
    found = labels(divide(batches, read_reviewed_labels(workspace)))
    assert "u" not in found
    assert found["t"] == found["t2"] == (TEST, "rain")  # what a person said holds for the text


def test_a_review_settles_what_equal_texts_disagree_about(workspace: Workspace, add_batch: AddBatch) -> None:
    votes = [{"id": f"v{n}", "text": "same words", "label": label} for n, label in enumerate(["rain", "sun", "sun"])]
    batches = [add_batch(weather_rows() + votes)]
    say(workspace, batches, {"v1": ("sun", "rain")})
    corpus = divide(batches, read_reviewed_labels(workspace))
    used = [row for row in range(120, 123) if corpus.splits[row] != LEFT_OUT]
    assert [corpus.labels[corpus.label_ids[row]] for row in used] == ["rain"]


def test_a_class_that_nobody_has_any_more_is_gone(workspace: Workspace, add_batch: AddBatch) -> None:
    batches = [add_batch([*weather_rows(), {"id": "a", "text": "snow a", "label": "snow"}, {"id": "b", "text": "b"}])]
    say(workspace, batches, {"a": ("snow", "rain")})
    assert divide(batches, read_reviewed_labels(workspace)).labels == ["rain", "sun"]
    say(workspace, batches, {f"w{n}": ("rain", "sun") for n in range(120)} | {"a": ("snow", "sun")})
    with pytest.raises(TrainingDataError, match=r"one class only \('sun'\)"):
        divide(batches, read_reviewed_labels(workspace))


def test_a_new_class_waits_for_its_second_text(workspace: Workspace, add_batch: AddBatch) -> None:
    batches = [add_batch([*weather_rows(), *({"id": f"u{n}", "text": f"white {n}"} for n in range(2))])]
    say(workspace, batches, {"u0": ("sun", "snow")}, new=True)
    corpus = divide(batches, read_reviewed_labels(workspace))
    assert (corpus.labels, corpus.counts["reviewed"]) == (["rain", "sun"], 0)
    say(workspace, batches, {"u1": ("sun", "snow")})
    corpus = divide(batches, read_reviewed_labels(workspace))
    assert corpus.labels == ["rain", "snow", "sun"]
    assert corpus.counts["reviewed"] == 2


def test_what_was_said_of_another_models_labels_is_left_out(workspace: Workspace, add_batch: AddBatch) -> None:
    batches = [add_batch([*weather_rows(), {"id": "u", "text": "lovely"}])]
    say(workspace, batches, {"u": ("angry", "happy"), "w0": ("angry", "happy")})
    corpus = divide(batches, read_reviewed_labels(workspace))
    assert labels(corpus) == labels(divide(batches))
    assert corpus.labels == ["rain", "sun"]


def test_documents_with_several_labels(workspace: Workspace, add_batch: AddBatch) -> None:
    rows = [{**row, "label": [row["label"], "day"]} for row in weather_rows()]
    batches = [add_batch([*rows, {"id": "u", "text": "nothing"}, {"id": "v", "text": "both"}])]
    said = {"u": ("sun", ""), "v": ("sun", "rain|sun"), "w0": ("day|rain", "rain")}
    say(workspace, batches, said, several=True)
    corpus = divide(batches, read_reviewed_labels(workspace))
    found = labels(corpus)
    assert (found["u"], found["v"]) == ((TRAIN, ""), (TRAIN, "rain|sun"))
    assert found["w0"][1] == "rain"
    assert corpus.labels == ["day", "rain", "sun"]


def test_tokens_are_made_again_after_a_review_even_if_it_confirms(workspace: Workspace, add_batch: AddBatch) -> None:
    batches = [add_batch(weather_rows())]
    before = prepare(workspace, tiny_recipe()).cache
    assert prepare(workspace, tiny_recipe()).cache.fingerprint == before.fingerprint
    say(workspace, batches, {"w0": ("rain", "rain")})
    confirmed = prepare(workspace, tiny_recipe())
    assert confirmed.cache.fingerprint != before.fingerprint
    assert (confirmed.corpus.counts["reviewed"], confirmed.corpus.counts["corrected"]) == (1, 0)
    say(workspace, batches, {"w0": ("rain", "sun")})
    corrected = prepare(workspace, tiny_recipe()).cache
    assert corrected.fingerprint not in (before.fingerprint, confirmed.cache.fingerprint)


def test_a_damaged_file_of_answers_is_named(workspace: Workspace, add_batch: AddBatch) -> None:
    say(workspace, [add_batch(weather_rows())], {"w0": ("rain", "sun")})
    (path,) = workspace.reviews.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ReviewError, match=rf"{path.name} is damaged; restore it"):
        prepare(workspace, tiny_recipe())
