"""The loop with people: rows given out, corrected in a spreadsheet, taken back, and learnt."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import tiny_recipe, weather_rows
from review_tools import NIGHT, Cells, Office, open_office, other

from flows.reports.model import model_report
from pipeline.dataset.corpus import TRAIN
from pipeline.dataset.reviews import read_answers
from pipeline.errors import ReviewError
from pipeline.nights.hold import earlier_nights
from pipeline.promotion.test_set import changed_batch_notes
from pipeline.review.export import COLUMNS, export_review
from pipeline.schemas import REVIEW_ANSWERS
from pipeline.training.prepare import prepare

BATCH = "2026-11-20"


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_office(tmp_path_factory.mktemp("office")).root


@pytest.fixture
def office(furnished: Path, tmp_path: Path) -> Office:
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    return Office(tmp_path)


def labels_learnt(office: Office) -> dict[str, str]:
    corpus = prepare(office.workspace, tiny_recipe()).corpus
    return {
        doc_id: corpus.labels[label_id]
        for doc_ids, _, label_ids in corpus.read(TRAIN)
        for doc_id, label_id in zip(doc_ids.to_pylist(), label_ids.tolist(), strict=True)
    }


def test_a_table_holds_a_sample_of_the_sure_and_the_least_sure_rows(office: Office) -> None:
    exported = office.export(rows=40)
    rows = office.rows()
    assert office.table.read_bytes().startswith(b"\xef\xbb\xbf")
    assert b"\r\n" in office.table.read_bytes()
    assert tuple(rows[0]) == COLUMNS
    assert exported.reasons == {"doubtful": 20, "sample": 20}
    assert [row["why"] for row in rows] == ["sample"] * 20 + ["doubtful"] * 20
    assert {row["correct_label"] for row in rows} == {""}
    assert {row["batch"] for row in rows} == {f"'{BATCH}"}  # a date, which a spreadsheet would write in its own way
    doubtful = [float(row["confidence"]) for row in rows[20:]]
    assert doubtful == sorted(doubtful)
    assert max(doubtful) < min(float(row["confidence"]) for row in rows[:20]) + 0.5
    assert all(row["second"] == other(row["label"]) for row in rows)
    office.export(rows=40)
    assert office.rows() == rows


def test_the_newest_night_is_asked_about_before_what_was_learnt(office: Office) -> None:
    office.label("history")
    assert office.export().batches == [BATCH]
    exported = office.export("history")
    assert exported.trained_batches == ["history"]
    assert "sample" not in exported.reasons
    assert office.export("history", BATCH).reasons["sample"] > 0


def test_equal_texts_are_asked_about_once(office: Office) -> None:
    office.ingest("twins", [{"id": f"t{n}", "text": "one foggy morning"} for n in range(9)])
    office.label("twins")
    assert office.export("twins").rows == 1


def test_empty_texts_are_nothing_to_review(office: Office) -> None:
    office.ingest("silence", [{"id": f"s{n}", "text": " "} for n in range(3)] + [{"id": "s3", "text": "wet"}])
    office.label("silence")
    assert office.export("silence").rows == 1
    office.fill_in(lambda *_: "ok")
    office.take_in()
    with pytest.raises(ReviewError, match="nothing is left to review in silence"):
        office.export("silence")
    assert office.export("silence", BATCH, rows=1000).rows == len(NIGHT) - 1


def test_a_file_that_is_there_is_kept(office: Office) -> None:
    office.export()
    with pytest.raises(ReviewError, match="is there already"):
        export_review(office.workspace, office.table)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        (["2026-11-21"], {}, "no batch '2026-11-21'"),
        (["history"], {}, "batch history has no labels by weather: nightlabel score --batch history"),
        ([BATCH], {"model": "wether"}, "no model 'wether'"),
        ([BATCH], {"rows": 0}, "--rows 0: at least 1"),
    ],
)
def test_what_cannot_be_given_out_is_told(
    office: Office, batches: list[str], options: dict[str, object], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        office.export(*batches, **options)
    assert not office.table.exists()


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("utf-8-sig", ","), ("cp1252", ";"), ("utf-16", "\t"), ("utf-8", ";")]
)
def test_what_people_correct_is_learnt_whatever_the_spreadsheet_saved(
    office: Office, encoding: str, delimiter: str
) -> None:
    office.export(rows=40)
    rows = office.fill_in(
        lambda number, row: {0: "ok", 1: other(row["label"])}.get(number % 4, "") if number < 20 else "",
        encoding=encoding,
        delimiter=delimiter,
    )
    imported = office.take_in()
    assert (imported.rows, imported.imported, imported.not_reviewed) == (40, 10, 30)
    assert (imported.confirmed["sample"], imported.corrected["sample"]) == (5, 5)
    publication = office.train()
    learnt = labels_learnt(office)
    asked = {row["doc_id"].lstrip("'"): row for row in rows}
    for doc_id, row in asked.items():
        if row["correct_label"]:
            expected = row["label"] if row["correct_label"] == "ok" else row["correct_label"]
            assert learnt[doc_id] == expected
        else:
            assert doc_id not in learnt
    assert "10 labels from people, 5 of them corrections." in model_report(publication, pictures=False)
    assert publication.bundle.manifest["reviews"] == {"reviewed": 10, "corrected": 5}


def test_a_night_with_a_handful_of_reviewed_rows_stays_a_night(office: Office) -> None:
    office.export(rows=40)
    office.fill_in(lambda number, _: "ok" if number < 20 else "")
    office.take_in()
    bundle = office.train().bundle
    assert [(one["batch"], one["learnt"]) for one in bundle.manifest["batches"]] == [(BATCH, 20), ("history", 120)]
    assert not bundle.trained_on(office.workspace.batch(BATCH))
    assert bundle.trained_on(office.workspace.batch("history"))
    assert len(earlier_nights(office.workspace, bundle, "tonight", 7)) == 1
    assert changed_batch_notes(office.workspace, bundle) == []  # what it learnt from is there as it was


def test_a_night_of_which_a_fifth_is_learnt_is_none_any_more(office: Office) -> None:
    office.export(rows=100)
    office.fill_in(lambda *_: "ok")
    imported = office.take_in()
    assert imported.imported >= 0.2 * len(NIGHT)
    bundle = office.train().bundle
    assert bundle.trained_on(office.workspace.batch(BATCH))
    assert earlier_nights(office.workspace, bundle, "tonight", 7) == []


def test_the_same_file_twice_changes_nothing(office: Office) -> None:
    office.export(rows=40)
    office.fill_in(lambda *_: "ok")
    office.take_in()
    files = sorted(office.workspace.reviews.iterdir())
    again = office.take_in()
    assert (again.imported, again.unchanged, again.rows) == (0, 40, 40)
    assert sorted(office.workspace.reviews.iterdir()) == files


def test_a_later_review_counts_and_both_are_kept(office: Office) -> None:
    office.export(rows=40)
    rows = office.fill_in(lambda number, _: "ok" if number == 0 else "")
    first = office.table.read_bytes()
    office.take_in("ada")
    office.fill_in(lambda number, row: other(row["label"]) if number == 0 else "")
    assert office.take_in("ben").imported == 1
    office.table.write_bytes(first)
    assert office.take_in("ada").unchanged == 1  # known from before: it does not come back
    answers = read_answers(office.workspace)
    assert answers.schema.equals(REVIEW_ANSWERS)
    assert answers["reviewer"].to_pylist() == ["ada", "ben"]
    assert answers["correct"].to_pylist() == [rows[0]["label"], other(rows[0]["label"])]
    assert labels_learnt(office)[rows[0]["doc_id"].lstrip("'")] == other(rows[0]["label"])


def test_what_was_reviewed_is_not_asked_again(office: Office) -> None:
    office.export(rows=40)
    office.fill_in(lambda *_: "ok")
    first = {row["doc_id"] for row in office.rows()}
    office.take_in()
    office.export(rows=40)
    second = {row["doc_id"]: row for row in office.rows()}
    assert not [row for doc_id, row in second.items() if doc_id in first and row["why"] == "doubtful"]
    sampled = {row["doc_id"] for row in second.values() if row["why"] == "sample"}
    assert len(sampled - first) > len(sampled) / 2


def broken(**cells: str) -> Callable[[list[Cells]], list[Cells]]:
    """Return what changes the first row of a table, and answers the second."""

    def change(rows: list[Cells]) -> list[Cells]:
        return [{**rows[0], "correct_label": "ok", **cells}, {**rows[1], "correct_label": "ok"}, *rows[2:]]

    return change


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"doc_id": "x9"}, r"row 2: doc_id 'x9' of batch 2026-11-20 was not given out"),
        ({"doc_id": ""}, r"row 2: doc_id is empty"),
        ({"batch": "20.11.2026"}, r"row 2: batch '20.11.2026' is how a spreadsheet writes '2026-11-20'"),
        ({"batch": "night"}, r"row 2: batch 'night' was not given out"),
        ({"correct_label": "rian"}, r"row 2: label 'rian' is not known: did you mean 'rain'\?"),
        ({"correct_label": "hail"}, r"row 2: label 'hail' is not known: .* --new-labels"),
        ({"correct_label": "sun|rain"}, r"row 2: label 'sun\|rain' is not known"),
        ({"label": "fog"}, r"row 2: label was '\w+' when exported and is 'fog' now"),
    ],
)
def test_a_row_that_does_not_fit_refuses_the_file(office: Office, cells: Cells, message: str) -> None:
    office.export(rows=40)
    office.save(broken(**cells)(office.rows()))
    with pytest.raises(ReviewError, match=message) as refused:
        office.take_in()
    assert "1 of 40 rows do not fit, so nothing was imported" in str(refused.value)
    assert len(read_answers(office.workspace)) == 0


def test_ids_that_a_spreadsheet_would_change_are_guarded_and_recognised_when_changed(office: Office) -> None:
    office.export(rows=100)
    rows = office.rows()
    (number,) = [number for number, row in enumerate(rows) if row["doc_id"] == "'07"]
    rows[number]["correct_label"] = "ok"
    office.save(rows)
    assert office.take_in().imported == 1
    office.save([{**row, "doc_id": row["doc_id"].lstrip("'0"), "note": "saved again"} for row in rows])
    with pytest.raises(ReviewError, match=rf"row {number + 2}: doc_id '7' is how a spreadsheet writes '07'"):
        office.take_in()
    office.save([{**row, "doc_id": row["doc_id"].lstrip("'"), "note": "apostrophe lost"} for row in rows])
    assert office.take_in().imported == 1


def test_bad_rows_can_be_left_out_and_are_written_beside_the_file(office: Office) -> None:
    office.export(rows=40)
    rows = office.rows()
    rows[0]["correct_label"], rows[1]["correct_label"], rows[2]["correct_label"] = "Sun", "hial", "ok"
    office.save(rows, delimiter=";")
    imported = office.take_in(skip_bad=True)
    assert (imported.rows, imported.imported, imported.not_reviewed, len(imported.row_errors)) == (40, 2, 37, 1)
    assert imported.rejected == office.root / "review.csv.rejected.csv"
    office.table = imported.rejected
    text = office.table.read_text(encoding="utf-8-sig")
    assert "row 3: label 'hial' is not known" in text
    office.table.write_text(text.replace("hial", "rain", 1), encoding="utf-8")
    assert office.take_in().imported == 1


def test_two_answers_for_one_row_must_agree(office: Office) -> None:
    office.export(rows=40)
    rows = office.rows()
    rows[0]["correct_label"] = "ok"
    office.save([*rows, rows[0]])
    assert (found := office.take_in()).imported == 1
    assert (found.unchanged, found.rows) == (1, 41)
    office.save([*rows, {**rows[0], "correct_label": other(rows[0]["label"])}])
    with pytest.raises(ReviewError, match=r"(?s)row 2: .* another answer further down.*row 42: .* in row 2"):
        office.take_in()


def test_an_untouched_table_says_what_to_do(office: Office) -> None:
    with pytest.raises(ReviewError, match="nothing was exported for review"):
        office.save([dict.fromkeys(COLUMNS, "x")])
        office.take_in()
    office.export(rows=40)
    with pytest.raises(ReviewError, match="nothing is reviewed in 40 rows: write ok or the right label"):
        office.take_in()


def test_a_new_class_is_learnt_once_it_has_two_texts(office: Office) -> None:
    office.export(rows=40)
    office.fill_in(lambda number, _: "Nebel" if number == 0 else "")
    assert office.take_in(new_labels=True).new_classes == ["Nebel"]
    assert "Nebel" not in labels_learnt(office).values()
    office.fill_in(lambda number, _: "nebel" if number < 3 else "")
    assert office.take_in().corrected["sample"] == 2
    assert list(labels_learnt(office).values()).count("Nebel") == 3
    assert office.train().bundle.labels == ["Nebel", "rain", "sun"]


def test_a_new_class_is_not_taken_from_a_file_that_may_be_misread(office: Office) -> None:
    office.export(rows=40)
    office.fill_in(lambda number, _: "Hagelstöße" if number == 0 else "", encoding="cp1252")
    with pytest.raises(ReviewError, match="not UTF-8, so it may be misread"):
        office.take_in(new_labels=True)


def test_answers_are_text_by_text_whatever_the_batch(office: Office) -> None:
    """The same words in tomorrow's night have the label that a person gave them."""
    office.export(rows=40)
    rows = office.fill_in(lambda number, row: other(row["label"]) if number == 0 else "")
    office.take_in()
    office.ingest("tomorrow", [{"id": "again", "text": rows[0]["text"]}])
    shutil.rmtree(office.workspace.documents_dir(BATCH))
    assert labels_learnt(office)["again"] == other(rows[0]["label"])


def test_documents_with_several_labels_go_round(tmp_path: Path) -> None:
    office = Office(tmp_path)
    rows = [
        {**row, "label": [row["label"], "day"] if n % 3 else [row["label"]]} for n, row in enumerate(weather_rows())
    ]
    office.ingest("history", [*rows, *({"id": f"x{n}", "text": f"nothing {n}", "label": []} for n in range(20))])
    office.train()
    office.ingest(BATCH, NIGHT)
    office.label(BATCH)
    office.export(rows=40)
    said = {0: "sun|rain", 1: "(none)", 2: "ok", 3: " rain | sun "}
    rows = office.fill_in(lambda number, _: said.get(number, ""))
    assert office.take_in().imported == 4
    corpus = prepare(office.workspace, tiny_recipe()).corpus
    learnt = {
        doc_id: sorted(label for label, has in zip(corpus.labels, corpus.label_sets[label_id], strict=True) if has)
        for doc_ids, _, label_ids in corpus.read(TRAIN)
        for doc_id, label_id in zip(doc_ids.to_pylist(), label_ids.tolist(), strict=True)
    }
    ids = [row["doc_id"].lstrip("'") for row in rows[:4]]
    as_given = [] if rows[2]["label"] == "(none)" else sorted(rows[2]["label"].split("|"))
    assert [learnt[doc_id] for doc_id in ids] == [["rain", "sun"], [], as_given, ["rain", "sun"]]
