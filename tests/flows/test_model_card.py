"""The model card says in plain words what a version is, from its own figures."""

from flows.reports.model_card import model_card
from pipeline.promotion.rule import Registration


def test_a_card_says_what_a_version_learnt_from_what_it_is_good_at_how_sure_and_how_fast(trained: Registration) -> None:
    card, metrics = model_card(trained.bundle), trained.bundle.metrics
    assert card.startswith("# Model weather@1\n")
    assert "one of 2 labels (rain, sun)" in card
    assert f"{metrics['counts']['train']:,} labelled texts to train on" in card
    assert f"Of {metrics['test']['n']:,} test texts the label is right for" in card
    assert "A linear model reaches" in card
    assert f"off by {100 * metrics['test']['calibration_error']:.1f} points" in card
    assert f"About {metrics['speed']['texts_per_second']:,} texts/s" in card
    assert metrics["speed"]["texts_per_second"] > 0
    assert "no examples of texts that belong to none of its labels" in card
    assert "first version" in card
