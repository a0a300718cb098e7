"""`nightlabel tune` as a user meets it, through the real flow on a real temporary server."""

import json
import re
from pathlib import Path

import pytest
from conftest import weather_rows
from prefect.utilities.callables import parameter_schema

from flows import train as train_flow
from flows import tune as tune_flow
from flows.cli import main
from flows.reports.tuning import tuning_report
from pipeline.config import preset_names
from pipeline.training.tune.search import search
from pipeline.training.tune.search_space import make_search_plan
from pipeline.workspace import Workspace

SMALL = [
    *("--set", "training.epochs=3", "--set", "training.batch_size=16", "--set", "model.embedding_size=8"),
    *("--set", "model.hidden_size=8", "--set", "model.wide_buckets=101", "--set", "tokenizer.min_count=1"),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NIGHTLABEL_WORKSPACE", raising=False)
    rows = weather_rows()
    for row in rows[::9]:
        row["label"] = "rain"
    (tmp_path / "weather.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    return int(exit_.value.code or 0)


@pytest.mark.usefixtures("server")
def test_a_search_reports_what_it_gained_and_its_preset_trains(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("ingest", "weather.jsonl", "--batch", "history")
    capsys.readouterr()
    command = ["tune", "--name", "quick", "--trials", "3", "--batch", "history", *SMALL]
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert "## Search quick: validation macro-F1 0." in out
    assert re.search(r"\d trials complete, \d pruned, 0 failed; .* minutes in all, 3 trials in this run", out)
    assert "starting settings" in out
    assert "| trial | macro-F1 |" in out
    assert "`nightlabel train --preset workspace/presets/quick.toml --batch history`" in out
    assert (home / "workspace/tuning/quick/trials.png").read_bytes().startswith(b"\x89PNG")

    assert run(*command) == 0
    again = capsys.readouterr().out
    assert "Nothing to do: the budget of this search is used up." in again
    assert out.split("### The best")[1] == again.split("### The best")[1]
    assert run("train", "--preset", "workspace/presets/quick.toml", "--batch", "history") == 0
    assert "is champion now" in capsys.readouterr().out


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "0"], "--trials 0: a search needs at least one"),
        (["--minutes", "-1"], "--minutes -1: a search needs some time"),
        (["--only", "training.epochs"], "--only 'training.epochs': not a setting that can be searched"),
        (["--only", "model.pooling", "--set", "model.pooling=max"], "because --set fixes it"),
        (["--set", "training.epochs=x"], "setting training.epochs = 'x'"),
        (["--name", "a/b"], "search 'a/b' cannot be used"),
        (["--preset", "mine.toml"], "preset mine.toml: there is no such file"),
        (["--embeddings", "glove.txt"], "--embeddings glove.txt: there is no such file"),
        ([], "no documents yet"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run("tune", *words) == 2
    captured = capsys.readouterr()
    complaint = captured.err.strip().splitlines()[-1]
    assert complaint.startswith("nightlabel: ")
    assert message in complaint
    assert "Traceback" not in captured.err
    assert not list(home.glob("workspace/*/*"))


@pytest.mark.usefixtures("server")
def test_a_search_of_that_name_on_other_documents_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("ingest", "weather.jsonl", "--batch", "one")
    assert run("tune", "--trials", "1", *SMALL) == 0
    (home / "more.jsonl").write_text(json.dumps({"text": "warm and wet", "label": "sun"}) + "\n")
    run("ingest", "more.jsonl", "--batch", "two")
    assert run("tune", "--trials", "1", *SMALL) == 2
    assert "the search 'tuned' was begun with other documents: choose another --name" in capsys.readouterr().err


@pytest.mark.usefixtures("server")
def test_the_report_for_the_ui_holds_the_picture_and_what_mattered(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("ingest", "weather.jsonl")
    capsys.readouterr()
    rates = ["training.learning_rate", "training.word_dropout"]
    settings = [*SMALL[1::2], "model.wide_buckets=0", "training.batch_size=4"]  # the LSTM alone, so that scores differ
    found = search(Workspace(home / "workspace"), make_search_plan(settings=settings, only=rates, trials=12))
    report = tuning_report(found, pictures=True)
    assert "![trials](data:image/png;base64," in report
    assert len(report) < 300_000
    assert "The most important settings" in report
    assert "data:image" not in tuning_report(found, pictures=False)


@pytest.mark.parametrize("flow", [train_flow.train, tune_flow.tune])
def test_the_form_names_the_presets_and_takes_the_path_of_one(flow: object) -> None:
    field = parameter_schema(flow).model_dump()["properties"]["preset"]  # type: ignore[arg-type]
    for name in preset_names():
        assert name in field["description"]
        assert re.search(field["pattern"], name)
    assert re.search(field["pattern"], "workspace/presets/tuned.toml")
    assert not re.search(field["pattern"], "unheard-of")


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tune", "--help") == 0
    assert "nightlabel tune --trials 40" in capsys.readouterr().out
