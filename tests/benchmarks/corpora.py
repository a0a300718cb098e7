"""From raw file to labelled Parquet on real corpora: how good the labels are, and how long it takes.

Run it from the project's root, with nothing else running; it prints one Markdown row for each run:

    uv run python tests/benchmarks/corpora.py                 # all corpora with the default preset
    uv run python tests/benchmarks/corpora.py ag_news imdb:imdb-lstm100
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import IngestConfig, ScoringConfig, load_recipe
from pipeline.ingest import ingest
from pipeline.nights.finish import score_batch
from pipeline.promotion.register import train
from pipeline.scoring.scorer import Scorer
from pipeline.workspace import Workspace

DATA = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Corpus:
    """Where a corpus lies, as (batch, path, split), and how its raw files are read."""

    sources: Sequence[tuple[str, str, str | None]]
    reading: dict[str, Any] = field(default_factory=dict)


def parquet(name: str) -> Corpus:
    return Corpus([("train", f"{name}/train.parquet", "train"), ("test", f"{name}/test.parquet", "test")])


CORPORA = {
    "ag_news": Corpus(
        [("train", "ag_news/raw/train_partial.csv", "train"), ("test", "ag_news/raw/test.csv", "test")],
        {"header": False, "text": ["2", "3"], "label": "1", "clean_html": True},
    ),
    "sms_spam": parquet("sms_spam"),
    "sms_spam_raw": Corpus(
        [("all", "sms_spam/raw/SMSSpamCollection", None)],
        {"format": "tsv", "header": False, "label": "1", "text": ["2"]},
    ),
    "banking77": Corpus(
        [("train", "banking77/raw/train.csv", "train"), ("test", "banking77/raw/test.csv", "test")],
        {"label": "category"},
    ),
    "aclImdb": Corpus([("all", "imdb/raw/aclImdb", None)], {"clean_html": True}),
    "airline_broken": Corpus(
        [("all", "airline_tweets/raw/Tweets_broken_encoding.csv", None)], {"label": "airline_sentiment"}
    ),
    "online_shopping_10_cats": parquet("online_shopping_10_cats"),
    "nsmc_rebuilt": parquet("nsmc_rebuilt"),
    "20news_stripped": Corpus(
        [
            ("train", "20news_bydate/train_stripped.parquet", "train"),
            ("test", "20news_bydate/test_stripped.parquet", "test"),
        ]
    ),
    "imdb": Corpus(
        [("train", "imdb/train.parquet", "train"), ("test", "imdb/test.parquet", "test")], {"clean_html": True}
    ),
}


def run(name: str, preset: str, settings: list[str]) -> str:
    """Take one corpus through ingest, train, export and score; return a Markdown row."""
    corpus = CORPORA[name]
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(folder)
        seconds = [time.perf_counter()]
        reports = [
            ingest(workspace, [str(DATA / path)], IngestConfig(split=split, **corpus.reading), batch_id=batch)
            for batch, path, split in corpus.sources
        ]
        seconds.append(time.perf_counter())
        publication = train(
            workspace, name, load_recipe(preset, settings), preset=preset, progress=lambda _, line: print(f"  {line}")
        )
        seconds.append(time.perf_counter())
        scorer = Scorer(publication.bundle, ScoringConfig())
        labels = [score_batch(workspace, batch, scorer) for batch in workspace.batches()]
        seconds.append(time.perf_counter())
        metrics = publication.bundle.metrics  # read before the folder goes
    test, baseline = metrics["test"], metrics.get("baseline") or {}
    spent = [later - earlier for earlier, later in itertools.pairwise(seconds)]
    cells = [
        name,
        preset + "".join(f" {setting}" for setting in settings),
        f"{sum(report.rows_read for report in reports):,}",
        f"{sum(report.duplicates for report in reports):,}",
        f"{sum(report.rejects for report in reports):,}",
        f"{test['n']:,}",
        percent(test["accuracy"]),
        percent(test["macro_f1"]),
        percent(baseline.get("accuracy")),
        percent(baseline.get("macro_f1")),
        *(f"{value:.1f}" for value in spent),
        f"{sum(report.rows for report in labels) / spent[-1]:,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


HEADER = (
    "| corpus | preset | rows | duplicates | rejects | test texts | accuracy | macro-F1 | linear accuracy "
    "| linear macro-F1 | ingest s | train s | score s | scored rows/s |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="*", metavar="CORPUS[:PRESET]", default=list(CORPORA))
    parser.add_argument("--set", action="append", default=[], help="section.field=value")
    options = parser.parse_args()
    rows = []
    for spec in options.corpora:
        name, _, preset = spec.partition(":")
        print(f"{name}:", flush=True)
        rows.append(run(name, preset or "default", options.set))
        print(rows[-1], flush=True)
    print("\n".join(["", HEADER, "|" + " --- |" * (HEADER.count("|") - 1), *rows]))


if __name__ == "__main__":
    main()
