"""No group is in two splits, whatever the method, the size of the groups, and the batches."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import tiny_recipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dataset.chunks import build_chunks
from pipeline.dataset.corpus import LEFT_OUT, TEST, TRAIN, VALIDATION, Corpus, select
from pipeline.dataset.reviews import ReviewedLabels
from pipeline.dataset.token_cache import build_tokens
from pipeline.errors import TrainingDataError
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]
METHODS = ["hash", "stratified"]


def divide(*batches: Batch, method: str = "hash", **options: Any) -> Corpus:
    return select(batches, method=method, validation_share=0.15, test_share=0.15, **options)


def film_rows(films: int, reviews: int = 3, first: int = 0) -> list[dict[str, Any]]:
    """Reviews of films, good and bad ones of each."""
    return [
        {"id": f"{film}-{n}", "text": f"review {n} of {film}", "label": "gb"[(film + n) % 2], "film": f"film {film}"}
        for film in range(first, first + films)
        for n in range(reviews)
    ]


def splits_by(corpus: Corpus, column: str) -> dict[str, set[int]]:
    """The splits in which each value of a column is used."""
    tables = [pq.read_table(path, partitioning=None) for batch in corpus.batches for path in batch.parts]
    values = [value for table in tables for value in table.to_pydict().get(column, [None] * len(table))]
    used: dict[str, set[int]] = defaultdict(set)
    for value, split in zip(values, corpus.splits.tolist(), strict=True):
        if split != LEFT_OUT and value is not None:
            used[value].add(split)
    return used


def divided(corpus: Corpus) -> list[str]:
    """The groups and the texts that are in two splits."""
    by_value = [*splits_by(corpus, "group").items(), *splits_by(corpus, "text").items()]
    return [value for value, splits in by_value if len(splits) > 1]


def test_splits_are_of_whole_groups_and_of_about_the_shares(add_batch: AddBatch) -> None:
    for method in METHODS:
        corpus = divide(add_batch(film_rows(200), group="film"), method=method)
        assert divided(corpus) == []
        assert corpus.counts["groups"] == 200
        shares = np.bincount(corpus.splits) / 600
        np.testing.assert_allclose(shares[[VALIDATION, TEST]], 0.15, atol=0.05 if method == "hash" else 0.01)
        assert corpus.groups is not None
        assert len(np.unique(corpus.groups)) == 200


def test_a_stratified_split_has_about_the_same_share_of_every_class(add_batch: AddBatch) -> None:
    rows = [
        {"text": f"{film} {n}", "label": "common" if film % 5 else "rare", "film": film}
        for film in range(100)
        for n in range(1 + film % 7)
    ]
    corpus = divide(add_batch(rows, group="film"), method="stratified")
    assert divided(corpus) == []
    totals = np.bincount(corpus.label_ids)
    for split in (VALIDATION, TEST):
        np.testing.assert_allclose(np.bincount(corpus.label_ids[corpus.splits == split]) / totals, 0.15, atol=0.06)


def test_a_large_group_is_trained_on_even_if_it_comes_first(add_batch: AddBatch) -> None:
    rows = [*film_rows(1, 300), *film_rows(60, 2, first=1)]
    corpus = divide(add_batch(rows, group="film"), method="stratified")
    assert splits_by(corpus, "group")["film 0"] == {TRAIN}


def test_a_group_never_moves_when_the_corpus_grows(add_batch: AddBatch) -> None:
    small = [add_batch(film_rows(100), "one", group="film")]
    before = splits_by(divide(*small), "group")
    more = [{**row, "id": f"m{row['id']}", "text": f"more {row['text']}"} for row in film_rows(150)]
    after = splits_by(divide(*small, add_batch(more, "two", group="film")), "group")
    assert before.items() <= after.items()
    assert {TEST, VALIDATION, TRAIN} == set.union(*before.values())


def test_a_group_is_one_by_its_value_whatever_its_column_is_called(add_batch: AddBatch) -> None:
    movies = [{**row, "id": f"m{row['id']}", "text": f"m {row['text']}", "movie": row["film"]} for row in film_rows(40)]
    corpus = divide(add_batch(film_rows(40), "one", group="film"), add_batch(movies, "two", group="movie"))
    assert corpus.counts["groups"] == 40
    assert divided(corpus) == []


@pytest.mark.parametrize("method", METHODS)
def test_batches_with_groups_and_without(add_batch: AddBatch, method: str) -> None:
    plain = [{"id": f"p{n}", "text": f"plain {n}", "label": "gb"[n % 2], "group": "mine"} for n in range(200)]
    batches = [add_batch(film_rows(50), "one", group="film"), add_batch(plain, "two")]
    corpus = divide(*batches, method=method)
    assert len(splits_by(corpus, "group")["mine"]) == 3  # a column of the user's: each text is its own group
    assert len({*corpus.groups[-200:]}) == 200  # type: ignore[index]
    assert all(len(splits) == 1 for film, splits in splits_by(corpus, "group").items() if film != "mine")
    assert corpus.counts["groups"] == 50
    if method == "hash":
        alone = divide(batches[1])
        assert alone.groups is None
        assert alone.splits.tolist() == corpus.splits[-200:].tolist()


@pytest.mark.parametrize("first", ["film 1", "film 2"])
def test_an_equal_text_in_two_groups_is_used_once_in_the_split_of_the_first(add_batch: AddBatch, first: str) -> None:
    batch = add_batch(film_rows(60), group="film")
    by_film = splits_by(divide(batch), "group")
    (tested, trained) = (next(film for film, splits in by_film.items() if splits == {split}) for split in (TEST, TRAIN))
    films = [tested, trained] if first == "film 1" else [trained, tested]
    shared = [{"id": f"s{film}", "text": "wonderful", "label": "g", "film": film} for film in films]
    corpus = divide(add_batch([*film_rows(60), *shared], group="film"))
    assert divided(corpus) == []
    assert corpus.counts["equal_texts"] == 1
    assert corpus.splits[-2:].tolist() == [TEST if films[0] == tested else TRAIN, LEFT_OUT]


def test_rows_whose_group_is_in_a_given_split_are_left_out_and_counted(add_batch: AddBatch) -> None:
    rows: list[dict[str, Any]] = [{**row, "split": None} for row in film_rows(60)]
    given: dict[str, str] = {"film 1": "test", "film 2": "validation"}
    for row in rows[3:9]:
        row["split"] = given[row["film"]] if row["id"].endswith("0") else row["split"]
    rows += [{"id": "copy", "text": rows[3]["text"], "label": "g", "film": "film 50", "split": "train"}]
    corpus = divide(add_batch(rows, group="film"))
    assert divided(corpus) == []
    assert (corpus.counts["left_out_for_group"], corpus.counts["left_out_for_test"]) == (4, 1)
    assert (corpus.counts["test"], corpus.counts["validation"], corpus.counts["train"]) == (1, 1, 60 * 3 - 6)
    assert corpus.splits[3:9].tolist() == [TEST, LEFT_OUT, LEFT_OUT, VALIDATION, LEFT_OUT, LEFT_OUT]


def test_a_group_with_rows_given_for_training_is_not_tested_on(add_batch: AddBatch) -> None:
    rows = [{**row, "split": None} for row in film_rows(60)]
    tested = next(
        film for film, splits in splits_by(divide(add_batch(rows, group="film")), "group").items() if splits == {TEST}
    )
    next(row for row in rows if row["film"] == tested)["split"] = "train"
    assert splits_by(divide(add_batch(rows, group="film")), "group")[tested] == {TRAIN}


def test_new_labels_of_groups_that_are_held_out_are_not_trained_on(add_batch: AddBatch) -> None:
    night = [{"id": f"n{row['id']}", "text": f"new {row['text']}", "film": row["film"]} for row in film_rows(60, 1)]
    night += [{"id": "x", "text": "of another film", "film": "film 99"}]
    batches = [add_batch(film_rows(60), "one", group="film"), add_batch(night, "two", group="film")]
    by_film = splits_by(divide(*batches), "group")
    expected = [TRAIN if by_film.get(row["film"], {TRAIN}) == {TRAIN} else LEFT_OUT for row in night]
    assert LEFT_OUT in expected
    documents = pq.read_table(batches[1].parts[0], partitioning=None)
    soft = divide(*batches, soft_labelled=documents["doc_id"].combine_chunks())
    hashes, everyone = documents["content_hash"].combine_chunks(), np.zeros(len(night), bool)
    reviewed = divide(*batches, reviewed=ReviewedLabels(hashes, ["g"] * len(night), everyone, everyone))
    for corpus in (soft, reviewed):
        assert divided(corpus) == []
        assert corpus.splits[180:].tolist() == expected
    assert soft.counts["taught"] == reviewed.counts["reviewed"] == expected.count(TRAIN)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [3, 4, 5, 6, 8, 12, 20])
def test_few_groups_still_train_validate_and_test(add_batch: AddBatch, method: str, count: int) -> None:
    for first in (0, 100, 200):
        corpus = divide(add_batch(film_rows(count, first=first), group="film"), method=method)
        assert divided(corpus) == []
        assert set(corpus.label_ids[corpus.splits == TRAIN]) == {0, 1}
        assert min(corpus.counts[name] for name in ("train", "validation", "test")) > 0


@pytest.mark.parametrize("method", METHODS)
def test_one_group_for_all_texts_is_an_error(add_batch: AddBatch, method: str) -> None:
    with pytest.raises(TrainingDataError) as caught:
        divide(add_batch(film_rows(1, 40), group="film"), method=method)
    assert str(caught.value) == (
        "all labelled texts are of one group 'film 0' in column 'film': nothing can be set aside for validation and "
        "test; label texts of more groups, or ingest with another --group or without it"
    )


def test_one_group_beside_a_given_test_split_leaves_nothing_for_validation(add_batch: AddBatch) -> None:
    rows = [{**row, "split": "test" if row["film"] == "film 1" else "train"} for row in film_rows(2, 40)]
    message = "all training texts are of one group 'film 0' in column 'film': nothing can be set aside for validation;"
    with pytest.raises(TrainingDataError, match=message):
        divide(add_batch(rows, group="film"))


def test_groups_that_cannot_be_divided_are_an_error(add_batch: AddBatch) -> None:
    by_class = [{**row, "film": row["label"]} for row in film_rows(30)]
    for rows, missing in ((film_rows(2), "test"), (by_class, "validation and test")):
        with pytest.raises(TrainingDataError) as caught:
            divide(add_batch(rows, group="film"))
        assert str(caught.value) == (
            f"the labelled texts are of 2 groups in column 'film': no whole group can be set aside for {missing} so "
            "that training keeps every class; label texts of more groups, or ingest with another --group or without it"
        )


def test_a_class_that_is_only_in_held_out_groups_is_named(add_batch: AddBatch) -> None:
    odd = [{"id": f"o{n}", "text": f"odd {n}", "label": "odd", "film": "odd", "split": "test"} for n in range(2)]
    with pytest.raises(
        TrainingDataError, match="'odd' has no example to train on: it occurs only in groups of the test"
    ):
        divide(add_batch([*({**row, "split": None} for row in film_rows(30)), *odd], group="film"))


ROWS = st.lists(
    st.tuples(st.integers(0, 11), st.integers(0, 60), st.sampled_from("gbc"), st.sampled_from([None, None, "train"])),
    min_size=10,
    max_size=60,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, ROWS, st.sampled_from(METHODS), st.sampled_from([None, "test", "validation"]), st.booleans())
def test_nothing_is_ever_in_two_splits(
    add_batch: AddBatch, one: Any, two: Any, method: str, given_split: str | None, grouped: bool
) -> None:
    batches: list[Batch] = []
    for name, rows, with_groups in (("one", one, True), ("two", two, grouped)):
        table = [
            {"id": f"{name}{n}", "text": f"text {text}", "label": label, "film": f"film {film}", "split": split}
            for n, (film, text, label, split) in enumerate(rows)
        ]
        table[0]["split"] = given_split
        batches.append(add_batch(table, name, **({"group": "film"} if with_groups else {})))
    try:
        corpus = divide(*batches, method=method)
    except TrainingDataError:
        return
    assert divided(corpus) == []
    accounted = ("train", "validation", "test", "equal_texts", "left_out_for_test", "left_out_for_group")
    assert sum(corpus.counts[name] for name in accounted) == len(one) + len(two)


def test_tokens_carry_their_groups(workspace: Workspace, add_batch: AddBatch) -> None:
    films = film_rows(40)
    films[0]["text"] = " "  # has no words: not in the cache
    corpus = divide(add_batch(films, group="film"))
    cache = build_tokens(workspace, corpus, tiny_recipe().tokenizer)
    film_of = {row["id"]: row["film"] for row in films}
    seen: dict[int, set[str]] = defaultdict(set)
    for split in (TRAIN, VALIDATION, TEST):
        texts = cache.read(split)
        assert texts.groups is not None
        assert texts.groups.dtype == np.int64
        for doc_id, group in zip(texts.doc_ids.to_pylist(), texts.groups.tolist(), strict=True):
            seen[group].add(film_of[doc_id])
    assert sorted(film for films in seen.values() for film in films) == sorted({*film_of.values()})


def test_tokens_without_groups_and_those_from_before_there_were_groups(
    workspace: Workspace, add_batch: AddBatch
) -> None:
    cache = build_tokens(workspace, divide(add_batch(film_rows(40))), tiny_recipe().tokenizer)
    assert cache.read(TRAIN).groups is None
    path = cache.path / "train.parquet"
    pq.write_table(pq.read_table(path).drop_columns("group"), path)
    texts = cache.read(TRAIN)
    assert texts.groups is None
    assert len(texts) == len(texts.tokens) > 0


def test_pretraining_leaves_out_the_groups_of_the_test_split(workspace: Workspace, add_batch: AddBatch) -> None:
    night = [{"id": f"n{n}", "text": f"unlabelled {n}", "film": f"film {n % 60}"} for n in range(240)]
    batches = [add_batch(film_rows(60), "one", group="film"), add_batch(night, "two", group="film")]
    recipe = tiny_recipe()
    shares = {"validation_share": recipe.training.validation_share, "test_share": recipe.training.test_share}
    tested = [
        film
        for film, splits in splits_by(select(batches, method="hash", **shares), "group").items()
        if splits == {TEST}
    ]
    assert build_chunks(workspace, batches, recipe).manifest["left_out_for_test"] == len(tested) * (3 + 4)
