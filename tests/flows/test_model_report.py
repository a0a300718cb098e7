"""The report of a training says how the texts were split."""

from collections.abc import Callable

from conftest import tiny_recipe, weather_rows

from flows.reports.model import model_report
from pipeline.promotion.register import train
from pipeline.workspace import Batch, Workspace


def test_the_report_says_that_groups_were_kept_whole(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    rows = [{**row, "week": number // 3, "split": None} for number, row in enumerate(weather_rows())]
    for number in (0, 3, 6, 9):
        rows[number]["split"] = "test"
    add_batch(rows, group="week")
    registration = train(workspace, "weather", tiny_recipe(baseline=False))
    text = model_report(registration, pictures=False)
    assert "Split by group `week`: 40 groups, each in one split." in text
    assert "0 left out because they are, and 8 because texts of their group are, in the given test" in text
    assert registration.bundle.manifest["batches"][0]["group"] == "week"
    rows[1]["split"] = "validation"
    add_batch(rows, group="week")
    text = model_report(train(workspace, "weather", tiny_recipe(baseline=False)), pictures=False)
    assert "40 groups, 1 of them in both the given validation and test split." in text


def test_without_groups_it_does_not_mention_them(workspace: Workspace, add_batch: Callable[..., Batch]) -> None:
    add_batch(weather_rows())
    text = model_report(train(workspace, "weather", tiny_recipe(baseline=False)), pictures=False)
    assert "0 left out because they are in the given test or validation split. " in text
    assert "group" not in text
