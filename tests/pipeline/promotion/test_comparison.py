"""Better, or not promoted: two versions on the same texts, and the rule that decides."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import one_hot, tiny_recipe, weather_rows
from numpy.typing import NDArray
from scipy.stats import binomtest

from pipeline.config import Recipe, ScoringConfig, apply_overrides
from pipeline.errors import ConfigError
from pipeline.files import read_json
from pipeline.metrics.classification import macro_f1
from pipeline.metrics.significance import paired_differences, sign_test_p_values
from pipeline.models.registry import Registry
from pipeline.nights.finish import score_batch
from pipeline.promotion import churn
from pipeline.promotion.comparison import (
    MISSED,
    WRONGLY,
    Comparison,
    compare_bundles,
    confusions,
    evaluate_paired,
    read_comparison,
)
from pipeline.promotion.plots import class_changes
from pipeline.promotion.register import train
from pipeline.promotion.rule import Decision, Registration, gate
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]
Answers = NDArray[np.bool_]
MARGINS = {"margin": 0.005, "class_margin": 0.05}


def answers(n: int, classes: int, accuracy: float, seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the true class of each document, and what a model of this accuracy says."""
    random = np.random.default_rng(seed)
    truth = random.integers(classes, size=n)
    given = np.where(random.random(n) < accuracy, truth, random.integers(classes, size=n))
    return truth, given


def several_answers(n: int, classes: int, seed: int) -> tuple[Answers, Answers, Answers]:
    random = np.random.default_rng(seed)
    truth = random.random((n, classes)) < 0.3
    before, after = (truth ^ (random.random((n, classes)) < share) for share in (0.1, 0.15))
    return truth, before, after


def compared(truth: Answers, before: Answers, after: Answers) -> Comparison:
    labels = [f"class {number}" for number in range(truth.shape[1])]
    tested = evaluate_paired(truth, before, after, labels)
    return Comparison(
        "m@1", "m@2", missing_classes=[], added_classes=[], same_task_type=True, proven=True, tested=tested
    )


def decided(truth: Answers, before: Answers, after: Answers) -> Decision:
    return gate(compared(truth, before, after), **MARGINS)


@pytest.mark.parametrize("several", [False, True])
def test_the_bootstrap_is_that_of_documents_drawn_one_by_one(several: bool) -> None:
    truth, before, after = several_answers(150, 5, seed=1)
    if not several:
        (true, one), (_, other) = answers(150, 5, 0.8), answers(150, 5, 0.7)
        truth, before, after = (one_hot(ids, 5) for ids in (true, one, other))
    found = paired_differences(truth, before, after, resamples=4_000)

    random = np.random.default_rng(7)
    draws = [random.integers(len(truth), size=len(truth)) for _ in range(4_000)]
    plain = np.array([macro_f1(after[rows], truth[rows]) - macro_f1(before[rows], truth[rows]) for rows in draws])
    spread = plain.std()
    assert found.macro_f1.value == pytest.approx(macro_f1(after, truth) - macro_f1(before, truth))
    low, least, high = np.quantile(plain, [0.025, 0.05, 0.975])
    assert found.macro_f1.low == pytest.approx(low, abs=0.15 * spread)
    assert found.lower_bound == pytest.approx(least, abs=0.15 * spread)
    assert found.macro_f1.high == pytest.approx(high, abs=0.15 * spread)
    assert found.probability_worse == pytest.approx((plain < 0).mean(), abs=0.03)
    assert sum(one.value for one in found.classes) / 5 == pytest.approx(found.macro_f1.value)


def test_the_bootstrap_is_the_same_each_time_and_in_any_number_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    given = several_answers(60, 3, seed=2)
    whole = paired_differences(*given, resamples=500)
    monkeypatch.setattr("pipeline.metrics.significance.MAX_CELLS", 1_000)
    assert paired_differences(*given, resamples=500) == whole
    assert paired_differences(*given, resamples=500, seed=1) != whole


def test_twenty_five_thousand_documents_of_150_classes_are_compared_exactly() -> None:
    (true, one), (_, other) = answers(25_000, 150, 0.9), answers(25_000, 150, 0.9, seed=0)
    truth, before, after = (one_hot(ids, 150) for ids in (true, one, other))
    assert (
        paired_differences(truth, before, after).macro_f1.low
        == 0.0
        == paired_differences(truth, before, after).lower_bound
    )
    later = after.copy()
    later[:2_000] = np.roll(later[:2_000], 1, axis=1)
    found = paired_differences(truth, before, later)
    assert found.macro_f1.high < -0.05
    assert found.probability_worse == 1.0


def test_the_chance_of_a_class_is_that_of_the_sign_test_times_the_classes_that_can_fail() -> None:
    truth = one_hot([0] * 40 + [1] * 40, 2)
    before, after = truth.copy(), truth.copy()
    after[:9] = [False, True]  # nine texts of the first class are taken for the second
    before[50:52] = [True, False]  # and two of the second are right only now
    expected = binomtest(9, 11, alternative="greater").pvalue
    assert sign_test_p_values(truth, before, after) == pytest.approx([2 * expected] * 2)


def test_a_class_of_four_texts_never_looks_worse_than_chance_makes_it() -> None:
    truth = one_hot([0] * 4 + [1] * 96, 2)
    after = truth.copy()
    after[:4] = False
    assert sign_test_p_values(truth, truth, after)[0] > 0.05


def test_equal_versions_of_many_classes_are_rarely_refused_for_one_of_them() -> None:
    refused = 0
    for seed in range(40):
        truth, one = answers(1_500, 75, 0.85, seed)
        random = np.random.default_rng(100 + seed)
        other = np.where(random.random(1_500) < 0.85, truth, random.integers(75, size=1_500))
        chances = sign_test_p_values(*(one_hot(ids, 75) for ids in (truth, one, other)))
        refused += bool((chances < 0.05).any())
    assert refused <= 5  # 2 are to be expected, at most


def test_a_version_that_is_ahead_is_promoted_also_where_little_can_be_proven() -> None:
    truth, one = answers(200, 4, 0.80)
    other = np.where((one != truth) & (np.arange(200) % 5 == 0), truth, one)
    found = compared(*(one_hot(ids, 4) for ids in (truth, one, other)))
    decision = gate(found, **MARGINS)
    assert decision.promoted
    assert "on the same 200 test texts" in decision.reason


def test_the_same_answers_pass_and_a_worse_version_does_not() -> None:
    truth, one = answers(200, 4, 0.85)
    same = [one_hot(ids, 4) for ids in (truth, one, one)]
    assert decided(*same).promoted
    worse = one.copy()
    worse[:40] = (truth[:40] + 1) % 4
    refusal = decided(one_hot(truth, 4), one_hot(one, 4), one_hot(worse, 4))
    assert not refusal.promoted
    assert "which is worse beyond chance" in refusal.reason


def test_a_version_a_little_behind_passes_only_where_the_test_split_can_show_that_it_is_little() -> None:
    verdicts = {}
    for n in (200, 40_000):
        truth, one = answers(n, 4, 0.95)
        other = one.copy()
        other[: n // 200] = (truth[: n // 200] + 1) % 4  # half a percent of the texts
        back = np.flatnonzero(one != truth)[: n // 200 - n // 1_000]
        other[back] = truth[back]
        verdicts[n] = decided(*(one_hot(ids, 4) for ids in (truth, one, other)))
    assert not verdicts[200].promoted
    assert "not shown to be less than 0.5 points worse" in verdicts[200].reason
    assert verdicts[40_000].promoted
    assert "shown to be less than 0.5 points worse" in verdicts[40_000].reason


def test_one_class_that_is_lost_keeps_a_version_from_promotion_although_it_is_better_overall() -> None:
    truth, one = answers(2_000, 10, 0.8)
    places = np.arange(2_000)
    lost = (truth == 3) & (places % 3 > 0)
    other = np.where(lost, (truth + 1 + places % 9) % 10, np.where(places % 2 == 0, truth, one))
    found = compared(*(one_hot(ids, 10) for ids in (truth, one, other)))
    assert found.tested is not None
    decision = gate(found, **MARGINS)
    assert found.tested.difference.value > 0
    assert not decision.promoted
    assert "one class is worse in F1 beyond chance: class 3 from" in decision.reason
    assert gate(found, margin=0.005, class_margin=0.5).promoted


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"missing_classes": ["a"], "added_classes": ["b", "c"]},
            "its classes are not those of m@1 (lacks a, adds b, c)",
        ),
        ({"same_task_type": False}, "one gives a single label, the other several"),
        ({"proven": False}, "its ONNX export was not verified against PyTorch"),
        ({"tested": None}, "no test texts to compare it with m@1 on"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_one_line(change: dict[str, Any], reason: str) -> None:
    truth = one_hot([0, 1] * 20, 2)
    decision = gate(replace(compared(truth, truth, truth), **change), **MARGINS)
    assert not decision.promoted
    assert reason in decision.reason
    assert "\n" not in decision.reason


def test_confusions_name_what_was_given_instead() -> None:
    truth = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=bool)
    given = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=bool)
    assert confusions(truth, given).tolist() == [[0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]
    changes = evaluate_paired(truth, given, truth, ["a", "b", "c"]).changed_confusions
    assert {(one.truth, one.predicted, one.before, one.after) for one in changes} == {
        ("a", "b", 1, 0),
        ("a", MISSED, 1, 0),
        ("b", MISSED, 1, 0),
        (WRONGLY, "c", 1, 0),
    }


SPOKEN = {"sun": ["bright", "warm", "beach", "shine"], "rain": ["wet", "cloud", "umbrella", "drops"]}


def noisy_weather(count: int, *, wrong: float, split: str, seed: int) -> list[dict[str, Any]]:
    """Weather of which a share has the wrong label, and every fourth text no word that decides."""
    chance, labels = random.Random(seed), sorted(SPOKEN)
    rows = []
    for number in range(count):
        label = labels[number % 2]
        word = chance.choice(SPOKEN[label]) if number % 4 else "mixed"
        other = labels[1 - number % 2]
        given = other if chance.random() < wrong else label
        text = f"day {chance.randrange(999)} was {word} and long {seed} {number}"
        rows.append({"id": f"{split}{seed}-{number}", "text": text, "label": given, "split": split})
    return rows


@pytest.fixture
def corpora(add_batch: AddBatch) -> None:
    """Rows to learn from, with the right and with wrong labels, and the same test rows for both."""
    add_batch(noisy_weather(240, wrong=0.02, split="train", seed=1), "right")
    add_batch(noisy_weather(240, wrong=0.98, split="train", seed=2), "wrong")
    add_batch(noisy_weather(200, wrong=0.02, split="test", seed=3), "test")


def quick(**training: Any) -> Recipe:
    return tiny_recipe(**{"epochs": 4, "baseline": False, **training})


def learnt_from(workspace: Workspace, batch: str, recipe: Recipe | None = None, **force: Any) -> Registration:
    return train(workspace, "weather", recipe or quick(), batch_ids=[batch, "test"], **force)


@pytest.mark.usefixtures("corpora")
def test_a_worse_version_is_refused_a_better_one_promoted_and_both_say_why(workspace: Workspace) -> None:
    first = learnt_from(workspace, "wrong")
    assert (first.promoted, first.comparison) == (True, None)
    better = learnt_from(workspace, "right")
    assert better.promoted
    assert better.comparison is not None
    assert better.comparison.tested is not None
    assert better.comparison.tested.n == 200
    assert better.comparison.tested.difference.low > 0.3
    worse = learnt_from(workspace, "wrong", quick(seed=9))
    assert not worse.promoted
    assert "beyond chance" in worse.reason
    assert Registry(workspace).find("weather").version == 2

    kept = worse.bundle.manifest["promotion"]
    assert (kept["promoted"], kept["forced"], kept["reason"]) == (False, False, worse.reason)
    assert kept["figures"]["champion"] == "weather@2"
    assert kept["figures"]["macro_f1"]["champion"] == pytest.approx(better.bundle.metrics["test"]["macro_f1"])
    assert kept["figures"]["macro_f1"]["challenger"] == pytest.approx(worse.bundle.metrics["test"]["macro_f1"])
    assert kept["figures"]["probability_worse"] == 1.0
    assert read_comparison(worse.bundle) == worse.comparison
    assert (worse.bundle.path / "figures" / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("corpora")
def test_an_equal_version_is_decided_by_the_rule(workspace: Workspace) -> None:
    learnt_from(workspace, "right")
    again = learnt_from(workspace, "right")  # the same settings, data and seed: the same weights
    assert again.promoted
    assert again.comparison is not None
    assert again.comparison.tested is not None
    assert again.comparison.tested.difference.low == again.comparison.tested.difference.high == 0.0
    other = learnt_from(workspace, "right", quick(seed=4))
    assert other.comparison is not None
    tested = other.comparison.tested
    assert tested is not None
    assert other.promoted == (tested.after >= tested.before or tested.lower_bound > -0.005)


@pytest.mark.usefixtures("corpora")
def test_the_margins_are_settings_of_the_recipe(workspace: Workspace) -> None:
    learnt_from(workspace, "right")
    spoilt = apply_overrides(quick(epochs=1, learning_rate=1e-9), ["model.wide_buckets=0"])
    assert not learnt_from(workspace, "right", spoilt).promoted
    lenient = apply_overrides(spoilt, ["promotion.margin=1", "promotion.class_margin=1"])
    assert learnt_from(workspace, "right", lenient).promoted
    with pytest.raises(ConfigError, match=r"promotion\.margin"):
        apply_overrides(quick(), ["promotion.margin=-1"])


@pytest.mark.usefixtures("corpora")
def test_by_force_needs_a_reason_which_is_kept_beside_what_spoke_against_it(workspace: Workspace) -> None:
    learnt_from(workspace, "right")
    with pytest.raises(ConfigError, match="--force without a reason"):
        learnt_from(workspace, "wrong", force=True)
    assert Registry(workspace).versions("weather") == [1]
    forced = learnt_from(workspace, "wrong", force=True, reason="sun and rain were swapped")
    assert forced.promoted
    kept = forced.bundle.manifest["promotion"]
    assert kept["forced"]
    assert kept["reason"].startswith("forced over weather@1: sun and rain were swapped; macro-F1")
    entry = read_json(workspace.model_dir("weather") / "champion.json")["log"][-1]
    assert (entry["action"], entry["reason"], bool(entry["by"])) == ("force", kept["reason"], True)


@pytest.mark.usefixtures("corpora")
def test_what_passes_is_not_called_forced(workspace: Workspace) -> None:
    learnt_from(workspace, "wrong")
    assert not learnt_from(workspace, "right", force=True, reason="to be safe").bundle.manifest["promotion"]["forced"]


def test_test_texts_that_the_champion_learnt_from_are_left_out(workspace: Workspace, add_batch: AddBatch) -> None:
    add_batch(weather_rows(400))
    small = train(workspace, "weather", quick(test_share=0.05, validation_share=0.1))
    large = train(workspace, "weather", quick(test_share=0.4, validation_share=0.1))
    found, tested = large.comparison, large.bundle.metrics["counts"]["test"]
    assert found is not None
    assert found.tested is not None
    assert found.left_out > 100
    assert found.tested.n == tested - found.left_out == small.bundle.metrics["counts"]["test"]
    back = compare_bundles(workspace, large.bundle, small.bundle)  # the small test split is within the large one
    assert (back.left_out, back.tested.n if back.tested else 0) == (0, found.tested.n)


def test_batches_that_are_gone_or_changed_are_told_of(workspace: Workspace, add_batch: AddBatch) -> None:
    add_batch(weather_rows(120), "one")
    one = train(workspace, "weather", quick())
    add_batch([*weather_rows(160)], "one")
    two = train(workspace, "weather", quick(seed=2))
    assert two.comparison is not None
    assert two.comparison.notes == [
        "weather@1 was trained on batches that have changed or are gone since (one): "
        "test texts that it knows from them cannot all be recognised."
    ]
    assert one.promoted


def test_a_text_without_a_word_is_left_out_for_both(workspace: Workspace, add_batch: AddBatch) -> None:
    add_batch([*weather_rows(100, split="train")], "one")
    empty = [{"id": f"e{n}", "text": " " * (n + 1), "label": "sun", "split": "test"} for n in range(3)]
    tests = [{**row, "id": f"t{row['id']}", "text": f"{row['text']} again"} for row in weather_rows(40, split="test")]
    add_batch([*tests, *empty], "two")
    train(workspace, "weather", quick())
    found = train(workspace, "weather", quick()).comparison
    assert found is not None
    assert found.tested is not None
    assert found.tested.n == 40
    assert found.unreadable == 3


@pytest.mark.usefixtures("corpora")
def test_the_churn_of_last_night_is_shown_but_their_texts_are_not_kept(
    workspace: Workspace, add_batch: AddBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = learnt_from(workspace, "right")
    rows = [{"id": f"n{n}", "text": f"a {word} day"} for n, word in enumerate(SPOKEN["sun"] + SPOKEN["rain"])] * 1
    for day in ("2026-11-19", "2026-11-20"):
        batch = add_batch([*rows, {"id": "nothing", "text": " "}], day)
        score_batch(workspace, batch, Scorer(first.bundle, ScoringConfig(device="cpu")))
    monkeypatch.setattr(churn, "EXAMPLES", 3)
    worse = learnt_from(workspace, "wrong").comparison
    assert worse is not None
    found = worse.churn
    assert found is not None
    assert (found.batch, found.rows, found.documents) == ("2026-11-20", 9, 9)
    assert found.changed == 8
    assert {(one.before, one.after, one.rows) for one in found.most_frequent} == {
        ("sun", "rain", 4),
        ("rain", "sun", 4),
    }
    sure = [min(one.confidence_before, one.confidence_after) for one in found.examples]
    assert len(sure) == 3
    assert sure == sorted(sure, reverse=True)
    assert all(one.text for one in found.examples)
    bundle = Registry(workspace).load("weather", 2)
    stored = read_json(bundle.path / "comparison.json")
    assert {"lost", "new", "same_kind", "flips"} <= set(stored)  # the keys of bundles since the first
    assert {"moved", "at_least"} <= set(stored["tested"])
    assert {"change", "chance"} <= set(stored["tested"]["classes"][0])
    assert {"doc_id", "before", "after", "sure_before", "sure_after"} == set(stored["flips"]["examples"][0])
    kept = read_comparison(bundle)
    assert kept is not None
    assert kept.churn is not None
    assert [one.doc_id for one in kept.churn.examples] == [one.doc_id for one in found.examples]


@pytest.mark.usefixtures("corpora")
def test_a_night_that_one_of_them_learnt_from_shows_no_churn(workspace: Workspace) -> None:
    first = learnt_from(workspace, "right")
    score_batch(workspace, workspace.batch("right"), Scorer(first.bundle, ScoringConfig(device="cpu")))
    second = learnt_from(workspace, "wrong")
    assert second.comparison is not None
    assert second.comparison.churn is None


def test_a_sample_is_spread_evenly_over_all_parts(add_batch: AddBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ingest.parts.PART_ROWS", 40)
    monkeypatch.setattr("pipeline.ingest.readers.base.CHUNK_ROWS", 40)
    batch = add_batch([{"id": str(n), "text": f"text {n}"} for n in range(100)], "night")
    assert len(batch.parts) == 3
    doc_ids, texts = churn.sample(batch, 10)
    assert doc_ids.to_pylist() == [str(n) for n in range(0, 100, 10)]
    assert texts[3].as_py() == "text 30"
    assert len(churn.sample(batch)[0]) == 100


def test_documents_with_several_labels_are_compared(workspace: Workspace, add_batch: AddBatch) -> None:
    words = {"sun": "bright", "rain": "wet", "wind": "gusty"}
    rows = []
    for number in range(240):
        labels = [label for place, label in enumerate(words) if number >> place & 1]
        text = f"day {number} was {' '.join(words[one] for one in labels)} and long {number * 7 % 13}"
        rows.append({"id": f"m{number}", "text": text, "label": labels})
    add_batch(rows)
    recipe = quick(epochs=12, split="stratified")
    train(workspace, "weather", recipe)
    worse = train(
        workspace,
        "weather",
        apply_overrides(quick(epochs=1, learning_rate=1e-9, split="stratified"), ["model.wide_buckets=0"]),
    )
    assert not worse.promoted
    assert worse.comparison is not None
    assert worse.comparison.tested is not None
    assert worse.comparison.tested.after == pytest.approx(worse.bundle.metrics["test"]["macro_f1"])
    assert train(workspace, "weather", recipe).promoted


def test_the_picture_takes_many_classes_and_names_that_no_font_has() -> None:
    truth, one = answers(2_000, 60, 0.8)
    _, other = answers(2_000, 60, 0.85)
    found = compared(*(one_hot(ids, 60) for ids in (truth, one, other)))
    assert found.tested is not None
    classes = [replace(row, label=f"$ 天气 {row.label}" * 3) for row in found.tested.classes]
    png = class_changes(replace(found, tested=replace(found.tested, classes=classes)))
    assert png.startswith(b"\x89PNG")
    assert len(png) < 200_000
