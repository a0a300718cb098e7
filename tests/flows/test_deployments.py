"""The flows, deployed on a real server and run by a real worker, as they are in production."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import weather_rows
from encoder_tools import write_onnx_encoder
from server import PREFECT_FILE, Office

FLOWS = {"ingest", "pretrain", "teach", "train", "tune", "score", "nightly"}
TINY = ["training.epochs=1", "model.hidden_size=8", "model.embedding_size=8", "tokenizer.min_count=1"]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(office: Office) -> dict[str, dict[str, Any]]:
    """One run of each flow, in the order of a first day and its night, and one that cannot work."""
    _write(office.folder / "weather.jsonl", weather_rows())
    news = [{"id": f"n{row['id']}", "text": f"{row['text']} again"} for row in weather_rows(20)]
    _write(office.folder / "incoming" / "2026-11-20" / "news.jsonl", news)
    write_onnx_encoder(office.folder / "encoder")
    missing = office.start("ingest", sources=["nowhere/nothing.csv"])
    return {
        "ingest": office.run("ingest", sources=["weather.jsonl"], batch="labelled"),
        "missing": office.ended(missing),
        "pretrain": office.run("pretrain", settings=TINY),
        "teach": office.run("teach", encoder="encoder", settings=TINY),
        "train": office.run("train", model="weather", settings=TINY),
        "tune": office.run("tune", name="quick", settings=TINY, trials=2),
        "score": office.run("score", batches=["labelled"]),
        "nightly": office.run("nightly", sources=["incoming/{date}/*.jsonl"], date="2026-11-20"),
    }


def test_all_deployments_register(office: Office) -> None:
    assert {deployment["name"] for deployment in office.find("deployments")} == FLOWS


def test_every_night_has_one_run_at_a_time_at_two_in_a_named_time_zone(office: Office) -> None:
    nightly = office.deployment("nightly")
    (schedule,) = nightly["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["cron"] == "0 2 * * *"
    assert "/" in schedule["schedule"]["timezone"]
    assert nightly["global_concurrency_limit"]["limit"] == 1


def test_the_worker_completes_each_flow_and_its_name_says_what_it_did(runs: dict[str, dict[str, Any]]) -> None:
    assert {name: runs[name]["name"] for name in FLOWS} == {
        "ingest": "ingest labelled: weather.jsonl",
        "pretrain": "pretrain with preset default",
        "teach": "teach by encoder",
        "train": "train weather from preset default",
        "tune": "tune quick from preset default",
        "score": "score labelled with the champion",
        "nightly": "nightly 2026-11-20: *.jsonl",
    }


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(("batch", "documents"), [("labelled", 120), ("2026-11-20", 20)])
def test_the_labels_lie_in_the_folder_that_was_deployed_from_and_add_up(
    office: Office, batch: str, documents: int
) -> None:
    labels = office.folder / "workspace" / "labels" / "weather" / f"batch={batch}"
    manifest = json.loads((labels / "manifest.json").read_text(encoding="utf-8"))
    rows = sum(pq.read_metadata(labels / part["file"]).num_rows for part in manifest["parts"])
    counts = manifest["counts"]
    assert documents == rows == counts["documents"] == counts["scored"] + counts["review"] + counts["empty"]


def test_each_flow_leaves_its_report_as_an_artifact(office: Office, runs: dict[str, dict[str, Any]]) -> None:
    mine = [run["id"] for run in runs.values()]
    found = office.find("artifacts", flow_runs={"id": {"any_": mine}})
    keys = {artifact["key"]: artifact for artifact in found if artifact["key"]}
    assert keys.keys() == {"ingest", "encoder", "teacher", "model", "tuning", "labels", "night"}
    assert keys["night"]["flow_run_id"] == runs["nightly"]["id"]
    assert "# Night of 2026-11-20" in keys["night"]["data"]
    assert "data:image/png;base64," in keys["model"]["data"]
    assert "data:image/png;base64," in keys["tuning"]["data"]
    assert "data:image/png;base64," in keys["encoder"]["data"]


def test_what_the_library_says_is_in_the_run_s_log(office: Office, runs: dict[str, dict[str, Any]]) -> None:
    assert any("training the linear baseline" in line for line in office.log(runs["train"]))


def test_a_missing_file_fails_the_run_and_is_named_without_a_traceback(
    office: Office, runs: dict[str, dict[str, Any]]
) -> None:
    run = runs["missing"]
    assert run["state_type"] == "FAILED"
    assert "nowhere/nothing.csv: there is no such file" in run["state"]["message"]
    assert not any("Traceback" in line for line in office.log(run))


@pytest.mark.parametrize(
    ("flow", "parameters", "named"),
    [
        ("score", {"config": {"review_below": 7}}, "config.review_below"),
        ("score", {"config": {"device": "tpu"}}, "config.device"),
        ("ingest", {"sources": []}, "sources"),
        ("train", {"preset": "unheard-of"}, "preset"),
        ("tune", {"trials": 0}, "trials"),
    ],
)
def test_a_wrong_parameter_is_refused_when_the_run_is_created(
    office: Office, flow: str, parameters: dict[str, Any], named: str
) -> None:
    answer = office.create(flow, **parameters)
    assert answer.is_client_error
    assert named in answer.text


def test_a_schedule_that_was_paused_stays_paused_when_deployed_again(office: Office) -> None:
    nightly = office.deployment("nightly")
    (schedule,) = nightly["schedules"]
    path = f"/deployments/{nightly['id']}/schedules/{schedule['id']}"
    office.ask("PATCH", path, {"active": False}).raise_for_status()
    office.set_up()
    assert [schedule["active"] for schedule in office.deployment("nightly")["schedules"]] == [False]


def test_the_weekly_training_is_off_until_switched_on_and_stays_on_then(office: Office) -> None:
    train = office.deployment("train")
    (schedule,) = train["schedules"]
    assert not schedule["active"]
    path = f"/deployments/{train['id']}/schedules/{schedule['id']}"
    office.ask("PATCH", path, {"active": True}).raise_for_status()
    office.set_up()
    assert [schedule["active"] for schedule in office.deployment("train")["schedules"]] == [True]


def test_an_automation_that_was_switched_off_stays_off(office: Office) -> None:
    (automation,) = [one for one in office.find("automations") if "announced" in one["name"]]
    path = f"/automations/{automation['id']}"
    office.ask("PATCH", path, {"enabled": False}).raise_for_status()
    office.set_up()
    (same,) = [one for one in office.find("automations") if "announced" in one["name"]]
    assert (same["id"], same["enabled"]) == (automation["id"], False)
    office.ask("PATCH", path, {"enabled": True}).raise_for_status()


def test_a_time_zone_that_is_unknown_is_named(office: Office, tmp_path: Path) -> None:
    theirs = tmp_path / "prefect.yaml"
    theirs.write_text(
        PREFECT_FILE.read_text(encoding="utf-8").replace("Europe/Berlin", "Mars/Phobos"), encoding="utf-8"
    )
    ended = office.nightlabel("setup", "--prefect-file", str(theirs))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert 'Invalid timezone: "Mars/Phobos"' in line
