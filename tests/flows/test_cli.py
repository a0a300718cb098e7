"""The command line as a user meets it, through the real flows on a real temporary server."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import weather_rows

from flows.cli import main
from pipeline.files import read_json

TINY = [
    *("--set", "training.epochs=8", "--set", "training.batch_size=16", "--set", "training.learning_rate=0.03"),
    *("--set", "model.hidden_size=16", "--set", "model.embedding_size=16", "--set", "tokenizer.min_count=1"),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NIGHTLABEL_WORKSPACE", raising=False)
    return tmp_path


@pytest.fixture
def weather(home: Path) -> Path:
    return write_rows(home / "weather.jsonl", weather_rows())


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    return int(exit_.value.code or 0)


@pytest.mark.usefixtures("server")
def test_a_night_from_raw_file_to_labels(weather: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ingest", str(weather), "--batch", "history") == 0
    assert "| documents | 120 |" in capsys.readouterr().out
    assert run("train", "--model", "weather", *TINY) == 0
    out = capsys.readouterr().out
    assert "Model weather@1 is champion now" in out
    assert "linear baseline" in out

    night = write_rows(home / "night.jsonl", [{"id": f"n{n}", "text": "wet cloud"} for n in range(20)])
    assert run("nightly", "--source", str(night), "--date", "2026-11-20") == 0
    assert "# Night of 2026-11-20" in capsys.readouterr().out
    labels = home / "workspace/labels/weather"
    assert sorted(path.name for path in labels.iterdir()) == ["batch=2026-11-20", "batch=history"]
    rows = pq.read_table(labels / "batch=2026-11-20/part-00000.parquet", partitioning=None).to_pylist()
    assert {row["label"] for row in rows} == {"rain"}

    assert run("score") == 0
    assert "Nothing to do" in capsys.readouterr().out
    assert run("nightly", "--source", str(night), "--date", "2026-11-20") == 0
    out = capsys.readouterr().out
    assert "Already ingested" in out
    assert "Nothing to label" in out


@pytest.mark.usefixtures("server")
def test_a_night_that_looks_wrong_is_held_until_it_is_published(
    weather: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("ingest", str(weather), "--batch", "history")
    run("train", "--model", "weather", *TINY)
    night = write_rows(home / "night.jsonl", [{"id": f"n{n}", "text": "天 气 很 好 吗"} for n in range(60)])
    assert run("publish", "history") == 2
    assert "batch history is not labelled" in capsys.readouterr().err
    assert run("nightly", "--source", str(night), "--date", "2026-11-20") == 0
    out = capsys.readouterr().out
    assert "Drift checks of history" in out
    assert "Not compared: weather@1 was trained on this batch." in out
    assert "100 % of the words are unknown to the model" in out
    assert "**Held: not published.** Look at it, then `nightlabel publish 2026-11-20`." in out
    manifest = home / "workspace/labels/weather/batch=2026-11-20/manifest.json"
    assert not read_json(manifest)["published"]
    assert run("publish", "2026-11-20", "--reason", "a Chinese shop") == 0
    assert read_json(manifest)["publication"]["reason"] == "a Chinese shop"
    assert run("publish", "2026-11-20") == 2
    assert "the labels of batch 2026-11-20 by weather are published already" in capsys.readouterr().err
    assert run("score", "--batch", "2026-11-20") == 0
    assert "a Chinese shop." in capsys.readouterr().out
    assert run("score", "--batch", "2026-11-20", "--precision", "fp32", "--review-below", "0.6", "--no-hold") == 0
    assert "Held" not in capsys.readouterr().out


@pytest.mark.usefixtures("server")
def test_pretraining_serves_the_trainings_after_it(
    weather: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("ingest", str(weather))
    assert run("pretrain", *TINY) == 0
    out = capsys.readouterr().out
    assert "perplexity on held-out text" in out
    (encoder,) = (home / "workspace/encoders").iterdir()
    assert run("train", "--pretrain", "--model", "weather", *TINY) == 0
    out = capsys.readouterr().out
    assert f"Pretrained encoder {encoder.name}" in out
    assert "| from scratch |" in out
    assert len(list((home / "workspace/encoders").iterdir())) == 1  # it was used again
    assert run("train", "--encoder", encoder.name, *TINY, "--set", "model.hidden_size=7") == 2
    assert "does not match: model.hidden_size is" in capsys.readouterr().err


@pytest.mark.usefixtures("server")
def test_documents_with_several_labels_from_ingest_to_score(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "label": f"{row['label']};day"} for row in weather_rows()]
    path = str(write_rows(home / "rows.jsonl", rows))
    assert run("ingest", path, "--label-separator", "|") == 2
    assert "is it --label-separator ';'?" in capsys.readouterr().err
    assert run("ingest", path, "--label-separator", ";", "--batch", "one") == 0
    assert run("train", "--model", "weather", *TINY) == 0
    out = capsys.readouterr().out
    assert "all labels right" in out
    assert "F1 of a document" in out
    assert run("score", "--batch", "one") == 0
    assert "day, rain" in capsys.readouterr().out


@pytest.mark.usefixtures("server")
def test_models_are_listed_shown_promoted_and_rolled_back(
    weather: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("ingest", str(weather))
    run("train", "--model", "weather", *TINY)
    run("train", "--model", "weather", *TINY)
    capsys.readouterr()
    assert run("models", "list") == 0
    assert "| weather@2 | champion |" in capsys.readouterr().out
    assert run("models", "rollback", "weather") == 0
    assert run("models", "promote", "weather@2") == 0
    assert run("models", "show", "weather@1") == 0
    assert "weather@1" in capsys.readouterr().out
    champion = read_json(home / "workspace/models/weather/champion.json")
    assert [entry["action"] for entry in champion["log"]] == ["promote", "promote", "rollback", "promote"]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ingest", "nowhere.csv"], "nowhere.csv: there is no such file or folder"),
        (["ingest", "weather.jsonl", "--text", "body"], "no column 'body' (there are: id, text, label)"),
        (["ingest", "weather.jsonl", "--format", "xml"], "setting format = 'xml'"),
        (["ingest", "weather.jsonl", "--batch", "../x"], "batch '../x' cannot be used"),
        (["ingest", "weather.jsonl", "--workspace", "weather.jsonl/w"], "cannot write to weather.jsonl/w"),
        (["train"], "no documents yet"),
        (["train", "--preset", "nope"], "no preset 'nope'"),
        (["train", "--set", "training.epochs=x"], "setting training.epochs = 'x'"),
        (["train", "--embeddings", "glove.txt"], "--embeddings glove.txt: there is no such file"),
        (["train", "--teacher", "opinions.csv"], "--teacher opinions.csv: there is no such file"),
        (["train", "--encoder", "cafe"], "no encoder 'cafe' in workspace (there: none yet: nightlabel pretrain)"),
        (["train", "--teacher", "."], "--teacher .: no teacher in this folder: manifest.json is missing"),
        (["pretrain"], "no documents to pretrain on"),
        (["pretrain", "--set", "pretraining.epochs=0"], "setting pretraining.epochs = 0"),
        (["score"], "no model in workspace yet: train one with nightlabel train"),
        (["nightly"], "no model in workspace yet"),
        (["nightly", "--set", "health.psi_hold=0"], "setting drift.psi_hold = 0"),
        (["publish", "2026-11-20"], "no batch '2026-11-20' in workspace (there: none yet)"),
        (["models", "list"], "no model in workspace yet"),
        (["bench", "--model", "tickets"], "no model in workspace yet"),
        (["bench", "--plot", "nowhere/time.png"], "--plot nowhere/time.png: there is no folder nowhere"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(
    weather: Path, home: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(*words) == 2
    captured = capsys.readouterr()
    complaint = captured.err.strip().splitlines()[-1]
    assert complaint.startswith("nightlabel: ")
    assert message in complaint
    assert "Traceback" not in captured.err
    assert not list(home.glob("workspace/*/*"))
    assert weather.exists()


@pytest.mark.usefixtures("server")
def test_labels_that_cannot_train_are_refused_by_name(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"a {n}", "label": "x"} for n in range(9)] + [{"text": "b", "label": "lonely"}]
    run("ingest", str(write_rows(home / "rows.jsonl", rows)))
    assert run("train") == 2
    assert "class 'lonely' has a single example" in capsys.readouterr().err
    assert not (home / "workspace/models").exists()


@pytest.mark.usefixtures("server")
def test_an_unknown_batch_is_refused(weather: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("ingest", str(weather), "--batch", "one")
    run("train", *TINY)
    assert run("score", "--batch", "two") == 2
    assert "no batch 'two' in workspace (there: one)" in capsys.readouterr().err
    assert run("score", "--model", "default@4") == 2
    assert "no model default@4 (there: default@1)" in capsys.readouterr().err


@pytest.mark.usefixtures("server")
def test_a_variant_can_be_chosen_and_the_report_says_which_and_why(
    weather: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("ingest", str(weather), "--batch", "one")
    run("train", "--model", "weather", *TINY)
    capsys.readouterr()
    assert run("score", "--device", "cpu", "--variant", "int8") == 0
    assert "Variant int8: as requested." in capsys.readouterr().out
    manifest = read_json(home / "workspace/labels/weather/batch=one/manifest.json")
    assert manifest["precision"] == "int8"
    assert run("score", "--batch", "one", "--device", "cpu", "--precision", "fp16") == 2
    assert "fp16 runs on cuda only, and this is cpu; use --variant auto" in capsys.readouterr().err
    assert run("score", "--batch", "one", "--device", "cpu") == 0
    assert "Variant " in capsys.readouterr().out


@pytest.mark.usefixtures("server")
def test_bench_prints_one_object_for_scripts_or_a_table_and_draws_a_picture(
    weather: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("ingest", str(weather), "--batch", "one")
    run("train", "--model", "weather", *TINY)
    capsys.readouterr()
    given = ["--device", "cpu", "--rounds", "1", "--batch-tokens", "2048", "--threads", "1", "--variant", "fp32"]
    assert run("bench", *given, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"device", "reading", "tokenizing", "variants", "end_to_end", "recommended"} <= found.keys()
    assert run("bench", *given, "--plot", "time.png") == 0
    out = capsys.readouterr().out
    assert "| the model alone, int8 |" in out
    assert "of the model's own speed is reached end to end" in out
    assert "Recommended here: `nightlabel score --model weather" in out
    assert (home / "time.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("server")
def test_what_is_our_fault_is_status_1(
    weather: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("flows.ingest.ingest_documents", broken)
    assert run("ingest", str(weather)) == 1
    assert "RuntimeError: a defect" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["ingest", "pretrain", "train", "tune", "score", "nightly", "publish", "bench"])
def test_help_shows_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    assert f"nightlabel {verb}" in capsys.readouterr().out


def test_doctor_looks_at_everything(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    out = capsys.readouterr().out
    assert "onnxruntime" in out
    assert "workspace" in out
    assert home.exists()
