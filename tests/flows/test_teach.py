"""nightlabel teach and train --teacher as a user meets them."""

import json
from pathlib import Path

import pytest
from conftest import weather_rows
from encoder_tools import write_onnx_encoder

from flows.cli import main
from flows.reports.encoder import teacher_report
from pipeline.files import read_json
from pipeline.training.teach.teacher import Teacher

TINY = [
    *("--set", "training.epochs=2", "--set", "model.hidden_size=16", "--set", "model.embedding_size=16"),
    *("--set", "tokenizer.min_count=1"),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NIGHTLABEL_WORKSPACE", raising=False)
    (tmp_path / "weather.jsonl").write_text("".join(json.dumps(row) + "\n" for row in weather_rows()))
    write_onnx_encoder(tmp_path / "encoder")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "pickled" / name).write_bytes((tmp_path / "encoder" / name).read_bytes())
    return tmp_path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    return int(exit_.value.code or 0)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teach", "--encoder", "nowhere"], "nowhere: is not a folder; give the folder of a sentence encoder"),
        (["teach", "--encoder", "weather.jsonl"], "weather.jsonl: is not a folder"),
        (["teach", "--encoder", "."], "config.json: cannot be read (No such file or directory)"),
        (["teach", "--encoder", "pickled"], "pickled/pytorch_model.bin: pickled weights can run code and are not read"),
        (["teach", "--encoder", "encoder", "--set", "model.embedding_size=0"], "setting model.embedding_size = 0"),
        (["train", "--teacher", "tiny"], "--teacher tiny: there is no such file, and no teacher of this name"),
        (["train", "--teacher", "encoder"], "--teacher encoder: no teacher in this folder"),
        (["tune", "--teacher", "tiny"], "--teacher tiny: there is no such file, and no teacher of this name"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2_before_a_server_starts(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(*words) == 2
    (complaint,) = capsys.readouterr().err.strip().splitlines()
    assert complaint.startswith("nightlabel: ")
    assert message in complaint


@pytest.mark.usefixtures("server")
def test_a_teacher_is_made_and_trained_from(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ingest", "weather.jsonl") == 0
    assert run("teach", "--encoder", "encoder", "--name", "tiny", *TINY) == 0
    out = capsys.readouterr().out
    assert "## Teacher tiny" in out
    assert "nightlabel train --teacher tiny" in out
    assert run("train", "--model", "weather", "--teacher", "tiny", *TINY) == 0
    assert "Soft labels of a teacher for" in capsys.readouterr().out
    teacher = Teacher.load(home / "workspace" / "teachers" / "tiny")
    assert "| cross-validated accuracy |" in teacher_report(teacher)
    manifest = read_json(home / "workspace/models/weather/1/manifest.json")
    assert manifest["version"] == 1
    (teacher.path / "word_vectors.txt.gz").write_bytes(b"")
    assert run("train", "--model", "weather", "--teacher", "tiny", *TINY) == 2
    assert "run nightlabel teach again" in capsys.readouterr().err.strip().splitlines()[-1]
