"""Rows given out and taken back on the command line, and what the morning's report says of them."""

import shutil
from pathlib import Path

import pytest
from review_tools import NIGHT, Office, open_office, other

from flows.cli import main
from flows.reports.morning_sections import trust_section
from flows.reports.review import precision_violation
from pipeline.files import read_json, write_json
from pipeline.models.registry import Registry
from pipeline.nights.summary import LabelledNight, labelled_night
from pipeline.review.precision import PrecisionEstimate, reviewed_precision

BATCH = "2026-11-20"


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_office(tmp_path_factory.mktemp("office")).root


@pytest.fixture
def office(furnished: Path, tmp_path: Path) -> Office:
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    return Office(tmp_path)


def run(office: Office, *words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["review", *words, "--workspace", str(office.workspace.root)])
    return int(exit_.value.code or 0)


def the_night(office: Office) -> LabelledNight:
    night = labelled_night(office.workspace, "weather", [office.workspace.batch(BATCH)])
    assert night is not None
    return night


def promise(office: Office, target: float) -> None:
    path = office.workspace.labels_dir("weather", BATCH) / "manifest.json"
    write_json(path, {**read_json(path), "promise": {"target": target}})


def section(office: Office) -> str:
    bundle = Registry(office.workspace).find()
    return "\n\n".join(trust_section(office.workspace, the_night(office), bundle, False))


def test_a_table_goes_out_and_comes_back(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(office, "export", "--rows", "40", "--out", str(office.table), "--delimiter", "semicolon") == 0
    out = capsys.readouterr().out
    assert f"40 rows to review, of {BATCH} by weather@1" in out
    assert "| sample | 20 | a random sample of its confident labels |" in out
    assert "In the column `correct_label` write `ok` where the label is right" in out
    assert f"Next: nightlabel review import {office.table}" in out
    assert run(office, "export", "--out", str(office.table)) == 2
    assert "is there already" in capsys.readouterr().err

    text = office.table.read_text(encoding="utf-8-sig")
    lines = text.splitlines(keepends=True)
    lines[1] = lines[1].rstrip("\r\n")[: -len(";")] + "ok;\r\n"
    office.table.write_text("".join(lines), encoding="utf-16")
    assert run(office, "import", str(office.table), "--by", "Ada") == 0
    out = capsys.readouterr().out
    assert "Read as UTF-16, with semicolons." in out
    for line in (
        "| imported | 1 |",
        "| not reviewed | 39 |",
        "| **rows read** | 40 |",
        "| sample | 1 | 1 | 0 | 100.0 % |",
    ):
        assert line in out
    assert "Next: nightlabel train" in out
    assert run(office, "import", str(office.table)) == 0
    out = capsys.readouterr().out
    assert "| unchanged (known before, or there twice) | 1 |" in out
    assert "Nothing is new." in out


def test_rows_that_do_not_fit_are_listed_and_nothing_is_taken(
    office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    office.export(rows=40)
    office.fill_in(lambda number, _: "ok" if number < 3 else "wet" if number < 15 else "")
    assert run(office, "import", str(office.table)) == 2
    error = capsys.readouterr().err
    assert (
        "12 of 40 rows do not fit, so nothing was imported; correct them, or import the others with --skip-bad" in error
    )
    assert "row 5: label 'wet' is not known" in error
    assert "and 2 more" in error
    assert run(office, "import", str(office.table), "--skip-bad") == 0
    out = capsys.readouterr().out
    for line in ("| imported | 3 |", "| rejected | 12 |", "| **rows read** | 40 |"):
        assert line in out
    assert "correct them, and import that file" in out


def test_the_interval_is_the_exact_one() -> None:
    low, high = PrecisionEstimate(57, 60, 1).interval
    assert (round(low, 4), round(high, 4)) == (0.8608, 0.9896)
    assert PrecisionEstimate(60, 60, 1).interval[1] == 1.0
    assert not PrecisionEstimate(57, 60, 1).violates(0.98)
    assert PrecisionEstimate(57, 60, 1).violates(0.99)


def test_the_morning_says_what_people_found(office: Office) -> None:
    assert "### Reviewed" not in section(office)
    office.export(rows=40)
    office.fill_in(lambda number, row: other(row["label"]) if number in (0, 20, 21) else "ok")
    office.take_in()
    said = section(office)
    assert "### Reviewed" in said
    assert "- by weather@1: 19 of 20 in 1 night, 95.0 % (95 % interval 75.1 % to 99.9 %)." in said
    assert "newest nights" not in said  # the same rows
    promise(office, 0.95)
    assert "95.0 % (95 % interval 75.1 % to 99.9 %), target 95.0 %." in section(office)
    assert "violated" not in section(office)


def test_a_promise_that_people_find_broken_is_the_first_thing_to_do(office: Office) -> None:
    office.export(rows=40)
    office.fill_in(lambda number, row: other(row["label"]) if number < 10 else "ok")
    office.take_in()
    promise(office, 0.95)
    expected = (
        "The target precision of 95.0 % is violated: people confirmed 10 of 20 in 1 night, 50.0 % (95 % interval "
        "27.2 % to 72.8 %). Train again with their corrections, or lower the target."
    )
    assert expected in section(office)
    assert precision_violation(office.workspace, the_night(office), Registry(office.workspace).find()) == [expected]


def test_only_published_nights_and_labels_of_this_version_count(office: Office) -> None:
    office.export(rows=40)
    office.fill_in(lambda *_: "ok")
    office.take_in()
    second = office.train().bundle
    office.ingest("2026-11-21", [{**row, "text": f"and {row['text']}"} for row in NIGHT])
    Registry(office.workspace).promote("weather", second.version, "test")
    office.label("2026-11-21")
    found = reviewed_precision(office.workspace, second, None)
    assert found.version is None
    assert found.recent == PrecisionEstimate(20, 20, 1)
    path = office.workspace.labels_dir("weather", BATCH) / "manifest.json"
    write_json(path, {**read_json(path), "published": False})
    assert reviewed_precision(office.workspace, second, None).recent is None


def test_rows_for_review_say_how_to_give_them_out(office: Office) -> None:
    from flows.reports.morning_answers import review_task

    labels = the_night(office).batches[0]
    assert f"`nightlabel review export --batch {BATCH}`" in review_task(office.workspace, labels)
