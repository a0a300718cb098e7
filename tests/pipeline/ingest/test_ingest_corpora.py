"""Published corpora as they are distributed, with the dirt they have."""

import csv
import math
from pathlib import Path

import pytest
from conftest import REAL_DATA
from ingest_tools import documents, refuse, rejects, take, texts

from pipeline.errors import RejectRateError
from pipeline.workspace import Workspace


def real(name: str) -> Path:
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"needs {name}")
    return path


def test_ag_news_by_column_position(workspace: Workspace) -> None:
    report = take(workspace, real("ag_news/raw/test.csv"), header=False, text=["2", "3"], label="1", split="test")
    assert (report.rows_read, report.rejects) == (7600, 0)
    assert report.labels == {"1": 1900, "2": 1900, "3": 1900, "4": 1900}


def test_sms_messages_with_unbalanced_quotes(workspace: Workspace) -> None:
    path = real("sms_spam/raw/SMSSpamCollection")
    report = take(workspace, path, format="tsv", header=False, text=["2"], label="1")
    assert report.rows_read == len(path.read_bytes().rstrip(b"\n").split(b"\n"))
    assert (report.rejects, sorted(report.labels)) == (0, ["ham", "spam"])
    assert report.duplicates > 300


def test_banking77_with_newlines_inside_quotes(workspace: Workspace) -> None:
    path = real("banking77/raw/train.csv")
    report = take(workspace, path, label="category")
    with path.open(newline="", encoding="utf-8") as file:
        expected = {row["text"] for row in csv.DictReader(file)}
    assert set(texts(workspace)) == expected
    assert (report.rejects, len(report.labels)) == (0, 77)
    assert sum("\n" in text for text in texts(workspace)) >= 10


def test_movie_reviews_in_folders(workspace: Workspace) -> None:
    report = take(workspace, real("imdb/raw/aclImdb"))
    assert (report.documents, report.rejects) == (1600, 0)
    assert workspace.batch("b").manifest["splits"] == {"test": 800, "train": 800}
    assert sorted(report.labels) == ["neg", "pos"]


def test_tweets_with_damaged_bytes(workspace: Workspace) -> None:
    path = real("airline_tweets/raw/Tweets_broken_encoding.csv")
    report = take(workspace, path, label="airline_sentiment")
    assert report.reject_reasons["invalid_encoding"] == 291
    assert sorted(report.labels) == ["negative", "neutral", "positive"]
    assert all("\\x" in row["raw_text"] for row in rejects(workspace) if row["reason"] == "invalid_encoding")


def test_tweet_ids_that_a_spreadsheet_rounded_are_no_ids(workspace: Workspace) -> None:
    path = real("airline_tweets/raw/Tweets_broken_encoding.csv")
    message = refuse(RejectRateError, workspace, path, id="tweet_id", label="airline_sentiment")
    assert "the id column is not unique: choose another --id" in message


@pytest.mark.parametrize(
    ("name", "rows", "script"),
    [("online_shopping_10_cats/test.parquet", 12_679, "\u4e00"), ("nsmc_rebuilt/test.parquet", 50_000, "\uac00")],
)
def test_chinese_and_korean(workspace: Workspace, name: str, rows: int, script: str) -> None:
    report = take(workspace, real(name))
    assert (report.rows_read, report.rejects) == (rows, 0)
    assert math.isclose(report.documents, rows, rel_tol=0.05)
    same_script = sum(
        any(ord(script) <= ord(letter) < ord(script) + 11_172 for letter in text) for text in texts(workspace)
    )
    assert same_script > 0.9 * len(documents(workspace))
