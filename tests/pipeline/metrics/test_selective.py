"""A promised precision: proven on validation, kept on new texts, refused where nothing can prove it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import one_hot, tiny_recipe, weather_rows

from flows.reports.selective import policy_section, policy_sentence
from pipeline.config import Recipe, ScoringConfig, SelectiveConfig
from pipeline.errors import ConfigError
from pipeline.metrics.intervals import clopper_pearson_lower, clopper_pearson_upper
from pipeline.metrics.predictions import Predictions, read_predictions, write_predictions
from pipeline.metrics.selective import (
    ABSTAIN,
    REPORTED_PRECISIONS,
    SelectivePolicy,
    SelectiveResult,
    check_provable,
    fit_policies,
    fit_policy,
    min_sample_size,
    review_thresholds,
    violated_classes,
)
from pipeline.nights.coverage import night_coverage
from pipeline.nights.finish import score_batch
from pipeline.nights.summary import LabelledNight, labelled_night
from pipeline.promotion.register import train
from pipeline.promotion.rule import Registration
from pipeline.scoring.labels import part_fingerprint
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]


def claims_of(confidence: np.ndarray, correct: np.ndarray, predicted: np.ndarray | None = None) -> Predictions:
    classes = np.zeros(len(confidence), np.int32) if predicted is None else predicted.astype(np.int32)
    truth = np.where(correct, classes, (classes + 1) % (classes.max(initial=0) + 2)).astype(np.int32)
    return Predictions(classes, truth, confidence.astype(np.float32), correct.astype(bool))


def drawn(random: np.random.Generator, texts: int, honesty: float = 1.0) -> tuple[Predictions, np.ndarray]:
    """Return claims and how likely each was to be right; with honesty below 1 the model is too sure."""
    sureness = np.abs(random.normal(2.0, 2.0, texts))
    confidence, truth = 1 / (1 + np.exp(-sureness)), 1 / (1 + np.exp(-sureness * honesty))
    return claims_of(confidence, random.random(texts) < truth), truth


@pytest.mark.parametrize("honesty", [1.0, 0.8])
@pytest.mark.parametrize("target", [0.9, 0.95])
def test_a_promise_is_wrong_about_no_more_than_one_time_in_twenty(target: float, honesty: float) -> None:
    random = np.random.default_rng(0)
    made = broken = 0
    for _ in range(300):
        predictions, truth = drawn(random, 2000, honesty)
        promise = fit_policy(predictions, target, 2)
        labelled = promise.labelled(predictions)
        made += bool(labelled.any())
        broken += bool(labelled.any() and truth[labelled].mean() < target)
    assert made > 100
    assert broken <= 0.05 * 300


def test_the_more_is_promised_the_less_is_labelled() -> None:
    predictions, _ = drawn(np.random.default_rng(1), 30_000)
    policies = fit_policies(predictions, SelectiveConfig(), ["a", "b"])
    shares = [policies[target].labelled(predictions).mean() for target in REPORTED_PRECISIONS]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[-1] < shares[0] < 1
    assert all(
        clopper_pearson_lower(o.right, o.labelled) >= t
        for t, p in policies.items()
        if (o := SelectiveResult.of(p, predictions)).labelled
    )


def test_a_model_that_is_always_right_labels_everything() -> None:
    predictions = claims_of(np.full(400, 0.99), np.ones(400))
    assert fit_policy(predictions, 0.99, 2).labelled(predictions).all()


@pytest.mark.parametrize("target", REPORTED_PRECISIONS)
def test_fewest_texts_are_just_enough(target: float) -> None:
    enough = min_sample_size(target)
    assert clopper_pearson_lower(enough, enough) >= target > clopper_pearson_lower(enough - 1, enough - 1)


def test_too_few_validation_texts_are_refused_with_what_would_do() -> None:
    with pytest.raises(ConfigError, match=r"0\.99 cannot be shown on 80 validation texts: it takes 299.*ask for 0\.95"):
        check_provable(0.99, 80)
    check_provable(0.0, 0)


def test_a_training_that_cannot_keep_its_promise_is_refused_before_it_begins(
    workspace: Workspace, add_batch: AddBatch
) -> None:
    add_batch(weather_rows(100))
    with pytest.raises(ConfigError, match="cannot be shown on"):
        train(workspace, "weather", promising(0.99))
    assert not workspace.models.exists()


def test_a_class_without_validation_texts_goes_to_review() -> None:
    predictions = claims_of(np.full(400, 0.99), np.ones(400))
    promise = fit_policy(predictions, 0.95, 3)
    assert promise.thresholds[0] <= 0.99
    assert promise.abstained_classes == [1, 2]


def test_a_class_that_no_threshold_helps_goes_to_review_and_the_others_do_not() -> None:
    random = np.random.default_rng(2)
    predicted = np.repeat([0, 1], 500)
    predictions = claims_of(np.full(1000, 0.97), np.where(predicted == 0, True, random.random(1000) < 0.6), predicted)
    promise = fit_policy(predictions, 0.95, 2, per="class")
    assert promise.abstained_classes == [1]
    assert promise.labelled(predictions)[predicted == 0].all()
    assert fit_policy(predictions, 0.95, 2, per="all").abstained_classes == [0, 1]


def test_of_a_promise_for_each_class_those_that_break_it_are_named() -> None:
    random = np.random.default_rng(5)
    predicted = np.repeat([0, 1], 400)
    shown = claims_of(np.full(800, 0.97), random.random(800) < 0.99, predicted)
    tested = claims_of(np.full(800, 0.97), random.random(800) < np.where(predicted == 0, 0.99, 0.8), predicted)
    promise = fit_policy(shown, 0.95, 2, per="class")
    assert list(violated_classes(promise, tested)) == [1]
    assert violated_classes(promise, shown) == {}


def test_few_texts_of_no_class_are_labelled_as_one() -> None:
    random = np.random.default_rng(3)
    known = one_hot(np.repeat([0, 1], 500), 3)
    strangers = one_hot(np.full(200, 2), 3)
    targets = np.concatenate([known, strangers])
    scores = targets * 3.0 + random.normal(0, 1.0, targets.shape)
    scores[len(known) :] = random.normal(0, 1.5, strangers.shape)  # a stranger looks like anything
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    predictions = Predictions.of(probabilities, targets)
    stranger = predictions.truth == 2
    free = fit_policy(predictions, 0.8, 3)
    guarded = fit_policy(predictions, 0.8, 3, none_class=2, none_labelled=0.1)
    wrongly = stranger & (predictions.predicted != 2)
    assert (free.labelled(predictions) & wrongly).sum() / 200 > 0.1
    share = (guarded.labelled(predictions) & wrongly).sum()
    assert clopper_pearson_upper(int(share), 200) <= 0.1
    assert guarded.labelled(predictions)[~stranger].mean() > 0.3
    assert guarded.thresholds[2] == free.thresholds[2]


def test_a_violated_target_is_told_from_noise() -> None:
    assert SelectiveResult(100, 100, 96).verdict(0.95) == "met"
    assert SelectiveResult(100, 100, 93).verdict(0.95) == "within noise"
    assert SelectiveResult(1000, 1000, 900).verdict(0.95) == "violated"
    assert SelectiveResult(1000, 0, 0).verdict(0.95) == ""


def test_a_target_that_the_test_split_violates_is_reported_as_violated() -> None:
    shown, tested = claims_of(np.full(400, 0.99), np.ones(400)), claims_of(np.full(400, 0.99), np.arange(400) % 5 > 0)
    promise = fit_policy(shown, 0.95, 1)
    said = policy_sentence(promise, {"validation": shown, "test": tested})
    assert "On the test split it is **violated**, beyond chance: 80.0 % of 400 labelled texts are right" in said
    kept = policy_sentence(promise, {"validation": shown, "test": shown})
    assert "violated" not in kept
    assert "it is met: 100.0 % of 400" in kept


def test_claims_come_back_as_they_were_written(tmp_path: Path) -> None:
    predictions, _ = drawn(np.random.default_rng(4), 50)
    write_predictions(
        tmp_path / "claims.parquet", {"validation": predictions, "test": predictions.subset(predictions.correct)}
    )
    found = read_predictions(tmp_path / "claims.parquet")
    assert found["validation"].confidence.tobytes() == predictions.confidence.tobytes()
    assert found["test"].correct.all()
    assert len(found["test"]) == predictions.correct.sum()


def test_of_several_labels_a_claim_is_about_the_likeliest_or_that_it_is_none() -> None:
    probabilities = np.array([[0.9, 0.6], [0.2, 0.1], [0.3, 0.2]])
    targets = np.array([[True, False], [False, False], [True, False]])
    predictions = Predictions.of(probabilities, targets, np.array([0.5, 0.5]))
    assert predictions.confidence.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert predictions.correct.tolist() == [True, True, False]


def test_where_a_row_goes_to_review() -> None:
    promise = SelectivePolicy(0.95, "class", np.array([0.7, ABSTAIN], np.float32))
    assert review_thresholds(None, None, 2).tolist() == [0.5, 0.5]
    assert review_thresholds(None, 0.25, 2).tolist() == [0.25, 0.25]
    assert review_thresholds(promise, None, 2).tolist() == promise.thresholds.tolist()
    assert review_thresholds(promise, 0.8, 2).tolist() == pytest.approx([0.8, np.inf])


def promising(target: float, **promise: Any) -> Recipe:
    recipe = tiny_recipe(validation_share=0.3)
    return recipe.model_copy(update={"selective": SelectiveConfig(target_precision=target, **promise)})


@pytest.fixture
def doubtful(workspace: Workspace, add_batch: AddBatch) -> Registration:
    """A model that promises nine in ten, of texts a seventh of which are labelled wrongly."""
    rows = weather_rows(600)
    for row in rows[::7]:
        row["label"] = "rain" if row["label"] == "sun" else "sun"
        row["text"] += " perhaps" * (int(row["id"][1:]) % 2)
    add_batch(rows)
    return train(workspace, "weather", promising(0.9))


def test_labels_keep_to_the_promise_of_the_model_or_to_another(
    workspace: Workspace, add_batch: AddBatch, doubtful: Registration
) -> None:
    night = add_batch([{**row, "label": None} for row in weather_rows(700)[600:]], "night")
    bundle = doubtful.bundle

    def review(**config: Any) -> dict[str, int]:
        with Scorer(bundle, ScoringConfig(device="cpu", precision="fp32", **config)) as scorer:
            report = score_batch(workspace, night, scorer)
        rows = pq.read_table(report.path / "part-00000.parquet", partitioning=None).to_pylist()
        for row in rows:
            below = row["confidence"] < scorer.review_below[bundle.labels.index(row["label"])]
            assert row["status"] == ("review" if below else "scored")
        return report.counts

    own = bundle.policy()
    assert own is not None
    assert own.target == 0.9
    assert review() == review(target_precision=0.9)
    labelled = labelled_night(workspace, "weather", [night])
    assert labelled is not None
    assert labelled.manifest["promise"]["target"] == 0.9
    shares = night_coverage(labelled, bundle, bundle.policies())
    for target in REPORTED_PRECISIONS[:2]:
        assert shares[target] == review(target_precision=target)["scored"] / 100
    with Scorer(bundle, ScoringConfig(device="cpu", precision="fp32")) as scorer:
        score_batch(workspace, workspace.batch("one"), scorer)
    learnt = labelled_night(workspace, "weather", [workspace.batch("one")])
    assert learnt is not None
    assert night_coverage(learnt, bundle, bundle.policies()) == {}  # it is surer of what it learnt from
    assert night_coverage(LabelledNight([*learnt.batches, *labelled.batches]), bundle, bundle.policies()) == shares
    again = train(workspace, "weather", promising(0.9), batch_ids=["one"]).bundle
    foreseen = again.metrics["last_night"]
    assert (foreseen["batch"], foreseen["rows"]) == ("night", 100)
    assert foreseen["shares"] == {f"{target:g}": share for target, share in shares.items()}  # it is the same again
    assert "Expected coverage of last night, night: " in policy_section(again)
    assert bundle.metrics["last_night"] is None
    assert review(target_precision=0.98)["review"] >= review()["review"]
    assert review(target_precision=0.0)["review"] == 0
    assert review(target_precision=0.0, review_below=1.0)["scored"] == 0


def test_the_report_says_what_is_promised_and_what_it_costs(doubtful: Registration) -> None:
    text = policy_section(doubtful.bundle)
    for target in REPORTED_PRECISIONS:
        assert f"| {target:g} |" in text
    promise = doubtful.bundle.policy()
    assert promise is not None
    if promise.abstained_classes:
        assert "is not reached" in text
    else:
        assert "Target: 0.9" in text
    assert (doubtful.bundle.path / "figures" / "precision_and_coverage.png").stat().st_size > 5000


def test_an_unknown_label_for_texts_of_no_class_is_named(workspace: Workspace, add_batch: AddBatch) -> None:
    add_batch(weather_rows(300))
    with pytest.raises(ConfigError, match=r"no document has the label 'fog'; there are: rain, sun"):
        train(workspace, "weather", promising(0.9, none_label="fog"))


def test_whatever_sends_other_rows_to_review_labels_a_part_again(doubtful: Registration) -> None:
    bundle, part = doubtful.bundle, {"sha256": "00"}

    def mark(promise: SelectivePolicy | None, **config: Any) -> str:
        return part_fingerprint(bundle, ScoringConfig(**config), "fp32", part, promise)

    own = bundle.policy()
    other = SelectivePolicy(0.9, "all", np.array([0.7, 0.7], np.float32))
    marks = [mark(None), mark(None, review_below=0.6), mark(own), mark(own, review_below=0.5), mark(other)]
    assert len(set(marks)) == len(marks)
    assert mark(None) == mark(None, review_below=0.5)
    assert mark(None, evidence=True) == mark(None, evidence=True, review_below=0.5)
    assert mark(None, evidence=True) != mark(None)
