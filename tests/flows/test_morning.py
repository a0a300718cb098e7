"""The morning's report and the nights that write it: what a person reads at 08:00, also when things failed."""

import base64
import datetime
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import tiny_recipe, weather_rows
from prefect.client.schemas.objects import State
from prefect.settings import get_current_settings
from server import SECONDS

from flows.nightly import nightly
from flows.reports.morning import Failure, NightResult, night_report, outcome
from pipeline.config import DriftConfig, IngestConfig, ScoringConfig
from pipeline.errors import InputError, ModelError
from pipeline.files import read_json, write_json
from pipeline.ingest import ingest
from pipeline.models.registry import Registry
from pipeline.nights.finish import score_batch
from pipeline.nights.publish import publish
from pipeline.nights.summary import labelled_night
from pipeline.promotion.register import train
from pipeline.scoring.labels import unlabelled
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Workspace

Rows = Sequence[dict[str, Any]]
DAY = datetime.date(2026, 11, 20)
TWO = datetime.datetime(2026, 11, 20, 2, 0, tzinfo=datetime.UTC)
CHINESE = [{"id": f"s{n}", "text": "天 气 很 好 吗"} for n in range(60)]
PICTURE = re.compile(r"!\[([^\]]+)\]\(data:image/png;base64,([^)]+)\)")
HISTORY = weather_rows()


def texts(count: int, start: int = 1000) -> Rows:
    """Weather of days that the model has not seen."""
    return [{"id": row["id"], "text": row["text"]} for row in weather_rows(start + count)[start:]]


class Station:
    """A workspace with a model of the weather, a history, and a way to have nights without Prefect."""

    def __init__(self, root: Path) -> None:
        self.inbox = root
        self.workspace = Workspace(root / "workspace")

    def write(self, name: str, rows: Rows) -> str:
        path = self.inbox / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    def ingest(self, name: str, rows: Rows, **config: Any) -> None:
        ingest(self.workspace, [self.write(name, rows)], IngestConfig(**config), batch_id=name)

    def morning(self, **more: Any) -> NightResult:
        """Label what has no labels, and return what the morning knows of it."""
        bundle = Registry(self.workspace).find()
        batches = unlabelled(self.workspace, bundle.name)
        with Scorer(bundle, ScoringConfig(device="cpu", precision="fp32", threads=1)) as scorer:
            for batch in batches:
                score_batch(self.workspace, batch, scorer, DriftConfig())
        night = labelled_night(self.workspace, bundle.name, batches)
        ended = TWO + datetime.timedelta(minutes=4)
        facts = {"read": None, "unlabelled_batches": batches, "bundle": bundle, "night": night, "failures": [], **more}
        return NightResult(day=DAY, started=TWO, ended=ended, workspace=self.workspace, **facts)

    def again(self, morning: NightResult) -> NightResult:
        """Return a morning as it is after its manifests were changed."""
        batches = morning.unlabelled_batches
        return self.morning(unlabelled_batches=batches, night=labelled_night(self.workspace, "weather", batches))

    def night(self, name: str, rows: Rows, **config: Any) -> NightResult:
        self.ingest(name, rows, **config)
        return self.morning()

    def change(self, name: str, **facts: Any) -> None:
        path = self.workspace.labels_dir("weather", name) / "manifest.json"
        write_json(path, {**read_json(path), **facts})


@pytest.fixture(scope="module")
def trained_station(tmp_path_factory: pytest.TempPathFactory) -> Path:
    station = Station(tmp_path_factory.mktemp("station"))
    station.ingest("history", HISTORY)
    train(station.workspace, "weather", tiny_recipe(baseline=False))
    station.morning()
    return station.inbox


@pytest.fixture
def station(trained_station: Path, tmp_path: Path) -> Station:
    shutil.copytree(trained_station, tmp_path, dirs_exist_ok=True)
    return Station(tmp_path)


def report(morning: NightResult) -> str:
    return night_report(morning, pictures=False)


def answer(morning: NightResult, question: str) -> str:
    (line,) = [line for line in report(morning).splitlines() if line.startswith(f"- **{question}**")]
    return line.removeprefix(f"- **{question}** ")


def section(text: str, name: str) -> str:
    return text.partition(f"## {name}\n")[2].partition("\n## ")[0]


def test_the_first_screen_answers_the_questions_of_a_morning(station: Station) -> None:
    morning = station.night("2026-11-20", [*texts(40), {"id": "e", "text": " "}])
    counts = read_json(station.workspace.labels_dir("weather", "2026-11-20") / "manifest.json")["counts"]
    first = report(morning).splitlines()[:10]
    assert first[0] == "# Night of 2026-11-20"
    assert "Yes, from 02:00 to 02:04: weather@1 on the CPU" in answer(morning, "Did it run?")
    assert answer(morning, "Is every row accounted for?") == (
        "Yes, every row is accounted for: 41 rows read = 41 documents + 0 duplicates + 0 refused; "
        f"41 documents = {counts['scored']} scored + {counts['review']} for review + 1 empty."
    )
    assert "the first night of this model" in answer(morning, "What changed?")
    assert [line.split("**")[1] for line in first[2:7]] == [
        "Did it run?",
        "Is every row accounted for?",
        "Are the labels right?",
        "What changed?",
        "What to do?",
    ]
    assert outcome(morning) == [
        f"41 rows: {counts['scored']} labelled, {counts['review']} for review, {counts['empty']} empty"
    ]


def test_the_estimated_accuracy_is_the_mean_confidence_with_the_error_of_the_model_s_own_test(station: Station) -> None:
    morning = station.night("2026-11-20", texts(40))
    assert morning.night
    assert morning.night.profile
    assert morning.bundle
    share = 100 * morning.night.profile.mean_confidence
    error = 100 * morning.bundle.metrics["test"]["calibration_error"]
    assert answer(morning, "Are the labels right?") == (
        f"About {share:.0f} % of the labels are right, if confidence is as well calibrated tonight as on the test "
        f"texts, where it was off by {error:.1f} points."
    )


def test_of_texts_of_another_kind_no_accuracy_is_claimed(station: Station) -> None:
    morning = station.night("2026-11-20", CHINESE)
    told = answer(morning, "Are the labels right?")
    assert told.startswith("Of batch 2026-11-20 nothing can be said: its texts are of another kind")
    assert "About" not in told
    both = station.night("again", texts(40))
    station.change("2026-11-20", created="2026-11-19T02:00:00+00:00")
    assert "About" in answer(both, "Are the labels right?")


def test_rows_that_do_not_add_up_are_never_called_accounted_for(station: Station) -> None:
    station.ingest("2026-11-20", texts(40))
    path = station.workspace.documents_dir("2026-11-20") / "manifest.json"
    manifest = read_json(path)
    write_json(path, {**manifest, "counts": {**manifest["counts"], "rows_read": 41}})
    text = report(station.morning())
    assert "**No**: the rows of 2026-11-20 do not add up" in text
    assert "every row is accounted for:" not in text


def test_what_to_do_lists_held_nights_findings_refused_rows_and_reviews(station: Station) -> None:
    station.night("2026-11-18", CHINESE)
    rows = [*texts(60), {"id": "w1000", "text": "another text of the same id"}]
    morning = station.night("2026-11-20", rows, id="id")
    station.change("2026-11-20", findings=[{"sentence": "Look at this.", "severity": "warn", "measure": "rows"}])
    morning = station.again(morning)
    tasks = section(report(morning), "What to do").strip().splitlines()
    assert "2026-11-18 is held, not published. " in tasks[0]
    assert tasks[0].endswith("`nightlabel publish 2026-11-18`")
    assert tasks[1] == "2. 2026-11-20: Look at this."
    refused = station.workspace.rejects_dir("2026-11-20")
    assert tasks[2] == f"3. 2026-11-20: 1 refused (1 id_conflict), kept in `{refused}`."
    reviewed = morning.night.counts["review"] if morning.night else 0
    assert len(tasks) == (4 if reviewed else 3)
    assert answer(morning, "What to do?") == f"{len(tasks)} things, below."
    publish(station.workspace, "2026-11-18")
    assert "publish" not in report(station.morning())


def test_a_night_without_anything_to_do_says_nothing(station: Station) -> None:
    sure = [{"id": f"a{n}", "text": row["text"]} for n, row in enumerate(HISTORY)]
    morning = station.night("2026-11-20", sure)
    assert morning.night
    assert morning.night.counts["review"] == 0
    assert not morning.night.manifest["findings"]
    assert answer(morning, "What to do?") == "Nothing."
    assert section(report(morning), "What to do").strip() == "Nothing."


def test_what_changed_names_the_label_that_moved_and_the_version(station: Station) -> None:
    station.night("2026-11-19", texts(100))
    train(station.workspace, "weather", tiny_recipe(baseline=False, epochs=9))
    Registry(station.workspace).promote("weather", 2, "for this test")
    morning = station.night("2026-11-20", [row for row in texts(200, 2000) if int(row["id"][1:]) % 2])
    told = answer(morning, "What changed?")
    assert told.startswith("Since 2026-11-19: 100 rows after 100; ")
    assert "sun 100.0 % after 50.0 %" in told
    assert "weather@2 since tonight, weather@1 before" in told
    changes = section(report(morning), "What changed")
    assert "| label sun | 50.0 % | 100.0 % | changed |" in changes
    assert "| model | weather@1 | weather@2 | changed |" in changes


def test_an_ordinary_night_is_as_the_one_before(station: Station) -> None:
    station.night("2026-11-19", texts(100))
    morning = station.night("2026-11-20", texts(90, 2000))
    told = answer(morning, "What changed?")
    assert told.startswith("Since 2026-11-19: 90 rows after 100; the mix of labels as before")
    assert "| changed |" not in report(morning)


def test_pictures_are_small_have_a_text_and_are_left_out_for_a_terminal(station: Station) -> None:
    morning = station.night("2026-11-20", texts(40))
    pictures = PICTURE.findall(night_report(morning, pictures=True))
    assert [text.split(":")[0] for text, _ in pictures] == [
        "Histograms of confidence, length and unknown words",
        "The mix of labels",
    ]
    assert "sun 50.0 %" in pictures[1][0]
    for _, data in pictures:
        assert base64.b64decode(data).startswith(b"\x89PNG")
        assert len(data) < 300_000
    assert "data:image" not in report(morning)
    assert PICTURE.sub("", night_report(morning, pictures=True)).replace("\n\n\n\n", "\n\n") == report(morning)


def test_the_strangest_rows_are_shown_as_they_are_and_never_as_markup(station: Station) -> None:
    odd = "![x](http://example.invalid/x.png) [now](javascript:alert) `rm` *all* <b>bold</b> | pipe"
    morning = station.night("2026-11-20", [*texts(40), {"id": "odd", "text": odd}])
    lines = section(report(morning), "Outliers").strip().splitlines()
    assert len(lines) == 2 + 2 + 10
    (row,) = [line for line in lines if line.startswith("| odd |")]
    assert row.endswith(
        r"| !\[x\](http://example.invalid/x.png) \[now\](javascript:alert) \`rm\` \*all\* &lt;b>bold&lt;/b> \| pipe |"
    )
    assert "all words unknown" in row


def test_several_batches_stand_in_one_report_each_with_its_health(station: Station) -> None:
    station.ingest("2026-11-18", texts(40))
    station.ingest("2026-11-19", CHINESE)
    morning = station.morning()
    text = report(morning)
    rows = section(text, "Rows").strip().splitlines()
    assert rows[2].startswith("| 2026-11-18 | 40 | 0 | 0 | 40 | ")
    assert rows[3].endswith("| **held** |")
    assert "100 rows read = 100 documents" in text
    assert "### Drift checks of 2026-11-18" in text
    assert "### Drift checks of 2026-11-19" in text
    assert "% of the labels of 2026-11-18 are right" in text
    assert "Of batch 2026-11-19 nothing can be said" in text
    assert "| 2026-11-19 | s0 |" in section(text, "Outliers")


def test_documents_with_several_labels_say_what_confidence_is_of(tmp_path: Path) -> None:
    station = Station(tmp_path)
    rows = [{**row, "label": f"{row['label']}|day" if number % 3 else "day"} for number, row in enumerate(HISTORY)]
    station.ingest("history", rows, label="label", label_separator="|")
    train(station.workspace, "weather", tiny_recipe(baseline=False))
    station.morning()
    morning = station.night("2026-11-20", texts(40))
    assert "of the likeliest labels are right" in answer(morning, "Are the labels right?")
    assert "confidence is the probability of the likeliest, or where none was given" in report(morning)


def test_labels_from_before_health_and_strangeness_were_kept_have_a_report_too(station: Station) -> None:
    morning = station.night("2026-11-20", texts(40))
    path = station.workspace.labels_dir("weather", "2026-11-20") / "manifest.json"
    old = {key: value for key, value in read_json(path).items() if key not in ("health", "checks", "findings", "notes")}
    write_json(path, old)
    again = station.again(morning)
    text = night_report(again, pictures=True)
    assert "nothing can be said: some of it was labelled before data profiles were stored" in text
    assert "Unknown: the batch was labelled before drift checks were stored." in text
    assert [told.split(":")[0] for told, _ in PICTURE.findall(text)] == ["The mix of labels"]


def test_a_failure_stands_on_top_and_first_in_what_to_do(station: Station) -> None:
    station.ingest("2026-11-20", texts(40))
    morning = station.morning(failures=[Failure("ingest", InputError("a.csv: has no rows"))])
    lines = report(morning).splitlines()
    assert lines[2] == "**The ingest failed: a.csv: has no rows**"
    assert answer(morning, "Did it run?").startswith("Not all of it: the ingest failed, from 02:00")
    assert section("\n".join(lines), "What to do").strip().startswith("1. Mend what made the ingest fail")


def night_run(station: Station, sources: list[str] | None = None, day: datetime.date = DAY) -> State[str]:
    config = ScoringConfig(device="cpu", threads=1)
    state: State[str] = nightly(
        sources or [], day, score_config=config, workspace=str(station.workspace.root), return_state=True
    )
    return state


def reports(station: Station) -> list[str]:
    return sorted(path.name for path in (station.workspace.root / "reports").glob("*"))


def shown(which: str) -> str:
    """Return the text of an artifact, as the UI gets it."""
    answered = httpx.get(f"{get_current_settings().api.url}/artifacts/{which}", timeout=SECONDS)
    return str(answered.raise_for_status().json()["data"])


@pytest.mark.usefixtures("server")
def test_a_night_leaves_its_report_as_file_and_artifact_and_the_run_says_how_it_went(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    source = station.write("night", texts(40))
    state = night_run(station, [source])
    assert re.fullmatch(
        r"40 rows: \d+ labelled, \d+ for review, 0 empty; report reports/2026-11-20.md", state.message or ""
    )
    kept = (station.workspace.root / "reports/2026-11-20.md").read_text(encoding="utf-8")
    assert len(PICTURE.findall(kept)) == 2
    said = [record.getMessage() for record in caplog.records]
    assert f"the report of the night: {station.workspace.root}/reports/2026-11-20.md" in said
    (link,) = [line for line in said if line.startswith("the report in the UI: http://127.0.0.1:")]
    assert shown(link.rpartition("/artifacts/artifact/")[2]) + "\n" == kept
    text = state.result()
    assert text.startswith("# Night of 2026-11-20")
    assert "data:image" not in text

    # The same night once more, and two that come late: there is nothing to do, and nothing is overwritten.
    for late in range(3):
        again = night_run(station, [source] if late == 0 else [], DAY + datetime.timedelta(days=late))
        assert again.is_completed()
        assert again.message == "nothing to do: all 2 batches are labelled"
        assert "Nothing to label: every batch has its labels." in again.result()
    assert reports(station) == ["2026-11-20.md"]
    assert (station.workspace.root / "reports/2026-11-20.md").read_text(encoding="utf-8") == kept
    assert shown("night/latest") + "\n" == kept

    more = night_run(station, [station.write("more", texts(30, 3000))])
    assert (more.message or "").endswith("; report reports/2026-11-20-2.md")
    assert reports(station) == ["2026-11-20-2.md", "2026-11-20.md"]


@pytest.mark.usefixtures("server")
def test_a_night_after_days_without_a_worker_labels_all_that_waits(station: Station) -> None:
    for day in ("2026-11-18", "2026-11-19", "2026-11-20"):
        station.ingest(day, texts(30))
    first, *others = [night_run(station, day=DAY + datetime.timedelta(days=late)) for late in range(3)]
    assert (first.message or "").startswith("90 rows: ")
    assert [night.message for night in others] == ["nothing to do: all 4 batches are labelled"] * 2
    assert reports(station) == ["2026-11-20.md"]


@pytest.mark.usefixtures("server")
def test_what_is_there_is_labelled_though_the_ingest_fails_and_then_the_run_fails_with_its_error(
    station: Station,
) -> None:
    station.ingest("waiting", texts(30))
    state = night_run(station, ["nowhere/{date}/*.csv"])
    assert state.is_failed()
    assert "the ingest failed: nowhere/2026-11-20/*.csv: " in (state.message or "")
    assert "; 30 rows: " in (state.message or "")
    assert unlabelled(station.workspace, "weather") == []
    kept = (station.workspace.root / "reports/2026-11-20.md").read_text(encoding="utf-8")
    assert kept.splitlines()[2].startswith("**The ingest failed: nowhere/2026-11-20/*.csv: ")
    assert "1. Mend what made the ingest fail" in kept
    with pytest.raises(InputError, match=r"^nowhere/2026-11-20/\*\.csv: ") as caught:
        state.result()
    assert "\n" not in str(caught.value)

    # With nothing to label besides, the error is as loud.
    with pytest.raises(InputError, match=r"^nowhere/gone\.csv: there is no such file"):
        nightly(["nowhere/gone.csv"], DAY, workspace=str(station.workspace.root))
    assert reports(station) == ["2026-11-20-2.md", "2026-11-20.md"]


@pytest.mark.usefixtures("server")
def test_where_nothing_can_be_labelled_what_was_read_is_reported_and_the_first_error_is_told(
    station: Station, tmp_path: Path
) -> None:
    shutil.rmtree(station.workspace.models)
    state = night_run(station, [station.write("night", texts(30))])
    assert state.is_failed()
    kept = (station.workspace.root / "reports/2026-11-20.md").read_text(encoding="utf-8")
    assert "**The labelling failed: no model in " in kept
    assert "| 2026-11-20 | 30 | 0 | 0 | 30 |  |  |  | not labelled |" in kept
    with pytest.raises(ModelError, match=r"no model in .* yet: train one with nightlabel train"):
        state.result()

    empty = Workspace(tmp_path / "empty")
    with pytest.raises(InputError, match="there is no such file"):
        nightly(["nowhere/gone.csv"], DAY, workspace=str(empty.root))
    assert not empty.root.exists()
