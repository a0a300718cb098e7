"""Versions that replace each other: compared and promoted by command, and changed while a night is labelled."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import tiny_recipe, weather_rows

from flows import score as score_flow
from flows.cli import main
from flows.commands.registry import version_report
from flows.nightly import nightly
from flows.reports.model import model_report
from pipeline.config import IngestConfig, Recipe, ScoringConfig, apply_overrides
from pipeline.files import read_json
from pipeline.ingest import ingest
from pipeline.models.registry import Registry
from pipeline.promotion.register import train
from pipeline.promotion.rule import Registration
from pipeline.scoring.score import score_part
from pipeline.workspace import Workspace

ON_CPU = ScoringConfig(device="cpu", precision="fp32", threads=1)
PARTS = 6


@pytest.fixture
def place(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Two versions, of which the second is worse, and a night of several parts."""
    monkeypatch.setattr("pipeline.ingest.parts.PART_ROWS", 20)
    monkeypatch.setattr("pipeline.ingest.readers.base.CHUNK_ROWS", 20)
    add(workspace, tmp_path, "history", weather_rows())
    recipe = tiny_recipe(epochs=3, baseline=False)
    train(workspace, "weather", recipe)
    train(workspace, "weather", spoilt(recipe))
    night = [{"id": row["id"], "text": row["text"]} for row in weather_rows(1_000 + 20 * PARTS)[1_000:]]
    add(workspace, tmp_path, "night", night)
    return workspace


def spoilt(recipe: Recipe) -> Recipe:
    return apply_overrides(recipe, ["training.epochs=1", "training.learning_rate=1e-9", "model.wide_buckets=0"])


def add(workspace: Workspace, folder: Path, batch_id: str, rows: list[dict[str, Any]]) -> None:
    source = folder / f"{batch_id}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ingest(workspace, [str(source)], IngestConfig(), batch_id=batch_id)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    return int(exit_.value.code or 0)


def models_in(workspace: Workspace, batch: str) -> set[str]:
    manifest = read_json(workspace.labels_dir("weather", batch) / "manifest.json")
    paths = [workspace.labels_dir("weather", batch) / part["file"] for part in manifest["parts"]]
    assert len(paths) == PARTS
    rows = {model for path in paths for model in pq.read_table(path, partitioning=None)["model"].to_pylist()}
    return rows | {manifest["model"]}


def changing_champion(monkeypatch: pytest.MonkeyPatch, workspace: Workspace, version: int) -> None:
    """Have another version become champion while the third part is labelled."""
    seen: list[str] = []

    def score_and_change(*arguments: Any) -> Any:
        seen.append(arguments[2]["file"])
        if len(seen) == 3:
            Registry(workspace).promote("weather", version, "in the midst of a night")
        return score_part(*arguments)

    monkeypatch.setattr("flows.score.score_part", score_and_change)


@pytest.mark.usefixtures("server")
def test_a_champion_that_changes_in_the_midst_of_a_night_labels_all_of_its_batch(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changing_champion(monkeypatch, place, 2)
    (report,) = score_flow.score(["night"], "weather", ON_CPU, workspace=str(place.root))
    assert report.model == "weather@2"
    assert report.rows == 20 * PARTS
    assert len(report.scored_parts) == PARTS
    assert models_in(place, "night") == {"weather@2"}
    (line,) = [one.message for one in caplog.records if "is champion now" in one.message]
    assert line.startswith("weather@2 is champion now and labels the batch anew, after ")
    assert line.endswith(f" of {PARTS} parts of batch night by weather@1")


@pytest.mark.usefixtures("server")
def test_a_batch_that_was_done_stays_and_the_next_has_the_new_champion(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(place, tmp_path, "earlier", [{"id": "one", "text": "a bright day"}])
    seen: list[str] = []

    def score_and_change(*arguments: Any) -> Any:
        seen.append(arguments[1].id)
        if seen == ["earlier"]:
            Registry(place).promote("weather", 2, "while the only part is labelled")
        return score_part(*arguments)

    monkeypatch.setattr("flows.score.score_part", score_and_change)
    reports = score_flow.score(["earlier", "night"], None, ON_CPU, workspace=str(place.root))
    assert [report.model for report in reports] == ["weather@1", "weather@2"]
    assert models_in(place, "night") == {"weather@2"}


@pytest.mark.usefixtures("server")
def test_a_night_goes_on_with_the_champion_of_the_hour_and_reports_it(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing_champion(monkeypatch, place, 2)
    report = nightly(model="weather", score_config=ON_CPU, workspace=str(place.root))
    assert models_in(place, "history") == models_in(place, "night") == {"weather@2"}
    assert "weather@2" in report
    assert "weather@1" not in report


@pytest.mark.usefixtures("server")
def test_a_version_that_is_named_labels_whatever_becomes_champion(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing_champion(monkeypatch, place, 2)
    (report,) = score_flow.score(["night"], "weather@1", ON_CPU, workspace=str(place.root))
    assert report.model == "weather@1"
    assert models_in(place, "night") == {"weather@1"}
    assert Registry(place).champion("weather") == 2


def test_a_worse_version_is_promoted_by_force_only_and_with_a_reason(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["models", "promote", "weather@2", "--workspace", str(place.root)]
    assert run(*command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("nightlabel: weather@2 is not promoted: macro-F1 ")
    assert line.endswith('nightlabel models promote weather@2 --force --reason "..."')
    assert run(*command, "--force") == 2
    assert "nightlabel: --force without a reason" in capsys.readouterr().err
    assert run("train", "--force", "--workspace", str(place.root)) == 2
    assert "nightlabel: --force without a reason" in capsys.readouterr().err
    assert Registry(place).champion("weather") == 1
    assert run(*command, "--force", "--reason", "the other one hates rain") == 0
    assert "weather@2 is champion now: forced over weather@1: the other one hates rain" in capsys.readouterr().out
    entry = read_json(place.model_dir("weather") / "champion.json")["log"][-1]
    assert (entry["action"], entry["version"], bool(entry["by"])) == ("force", 2, True)

    assert run(*command) == 0
    assert "weather@2 is champion already." in capsys.readouterr().out
    assert run("models", "promote", "weather@1", "--reason", "better", "--workspace", str(place.root)) == 0
    assert "weather@1 is champion now: better; macro-F1" in capsys.readouterr().out
    assert run("models", "rollback", "weather", "--workspace", str(place.root)) == 0
    assert Registry(place).champion("weather") == 2


def test_other_classes_are_promoted_by_force_only(
    place: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(place, tmp_path, "snow", [{"text": f"snow fell {n}", "label": "snow"} for n in range(20)])
    train(place, "weather", tiny_recipe(epochs=1, baseline=False))
    command = ["models", "promote", "weather@3", "--workspace", str(place.root)]
    assert run(*command) == 2
    assert "its classes are not those of weather@1 (adds snow)" in capsys.readouterr().err
    assert run(*command, "--force", "--reason", "winter comes") == 0


def test_a_damaged_champion_can_be_replaced(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    (place.model_dir("weather") / "1" / "model.onnx").unlink()
    assert run("models", "promote", "weather@2", "--workspace", str(place.root)) == 0
    assert "the champion cannot be loaded" in capsys.readouterr().out


def test_two_versions_are_shown_beside_each_other(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--workspace", str(place.root)]
    assert run("models", "compare", "weather", "weather@2", *root) == 0
    out = capsys.readouterr().out
    assert "## weather@2 compared with weather@1" in out
    assert "weather@2 does **not** pass: macro-F1" in out
    assert "A version replaces the champion if its macro-F1" in out
    assert "| probability that it is worse | 100.0 % |" in out
    assert "there is no labelled night that neither version was trained on" in out
    assert run("models", "compare", "weather@2", "weather@1", *root) == 0
    assert "weather@1 passes" in capsys.readouterr().out
    assert run("models", "compare", "weather@1", "weather@1", *root) == 2
    assert "compare two different versions" in capsys.readouterr().err


@pytest.mark.usefixtures("server")
def test_the_report_of_a_version_shows_what_would_change_last_night(place: Workspace) -> None:
    score_flow.score(["night"], "weather", ON_CPU, workspace=str(place.root))
    worse = train(place, "weather", spoilt(tiny_recipe(epochs=3, baseline=False, seed=3)))
    report = model_report(worse, pictures=False)
    assert "### Compared with weather@1" in report
    assert " of the labels of night change**, " in report
    assert "| true class | predicted instead | champion | challenger | change |" in report
    assert "day 1" in report.split("labels of night change")[1]
    kept = version_report(str(place.root), worse.bundle.title)
    assert "labels of night change" in kept
    assert "day 1" not in kept.split("labels of night change")[1]
    shown = model_report(Registration(worse.bundle, False, worse.reason, worse.comparison), pictures=True)
    assert "![comparison](data:image/png;base64," in shown
