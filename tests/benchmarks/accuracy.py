"""How good the labels are on real corpora, beside the strongest linear model and fastText: the mean of several seeds.

Run it from the project's root, with nothing else running; it prints one Markdown row for each corpus:

    uv run --group peers python tests/benchmarks/accuracy.py         # all, three seeds each, with fastText
    uv run python tests/benchmarks/accuracy.py imdb500 --seeds 1
    uv run python tests/benchmarks/accuracy.py sms_spam --set training.epochs=10 --validation

`--validation` shows the validation split instead of the test split, which is for choosing settings by.
"""

import argparse
import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import IngestConfig, load_recipe
from pipeline.dataset.corpus import TEST, TRAIN, VALIDATION
from pipeline.ingest import ingest
from pipeline.metrics.classification import macro_f1
from pipeline.training.evaluate import assess, labelled_texts
from pipeline.training.linear.baseline import LabelledTexts, linear_baseline
from pipeline.training.prepare import PreparedData, WarmStart, prepare
from pipeline.training.pretrain.encoder import pretrain_encoder
from pipeline.training.selection import fit
from pipeline.workspace import Workspace

DATA = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Corpus:
    """Files as (batch, path, split), how they are read, and what is measured.

    Attributes:
        labelled: learn from the labels of this many training texts only; 0 for all.
        measure: "accuracy", "macro_f1", or "f1 of CLASS".
        pretrain: whether the model starts from a pretrained encoder.
        settings: changes to the default preset.
    """

    sources: Sequence[tuple[str, str, str | None]]
    reading: dict[str, Any] = field(default_factory=dict)
    labelled: int = 0
    measure: str = "accuracy"
    pretrain: bool = False
    settings: Sequence[str] = ()


def parquet(name: str, ending: str = "", **others: Any) -> Corpus:
    files = [(split, f"{name}/{split}{ending}.parquet", split) for split in ("train", "test")]
    return Corpus(files, **others)


IMDB = [*parquet("imdb").sources, ("more", "imdb/unsup.parquet", None)]
CORPORA = {
    "imdb": Corpus(IMDB, {"clean_html": True}, pretrain=True),
    "imdb500": Corpus(IMDB, {"clean_html": True}, labelled=500, pretrain=True),
    "ag_news": parquet("ag_news", reading={"clean_html": True}),
    "20news": parquet("20news_bydate", "_stripped"),
    "banking77": parquet("banking77"),
    "sms_spam": parquet("sms_spam", measure="macro_f1"),
    "online_shopping": parquet("online_shopping_10_cats"),
    "nsmc": parquet("nsmc_rebuilt"),
    "airline": parquet("airline_tweets", measure="macro_f1"),
    "goemotions_multi": parquet("goemotions", "_multi", reading={"label_separator": "|"}, measure="macro_f1"),
}


def fill(workspace: Workspace, corpus: Corpus, seed: int) -> tuple[list[str], list[str]]:
    """Ingest a corpus; return the batches whose text is read, and those whose labels are learnt from and tested on.

    A few labels are a batch of their own, so that each seed has others while all share one encoder.
    """
    for batch, name, split in corpus.sources:
        ingest(workspace, [str(DATA / name)], IngestConfig(split=split, **corpus.reading), batch_id=batch)
    every = [batch for batch, _, _ in corpus.sources]
    if not corpus.labelled:
        return every, every
    table = pq.read_table(DATA / corpus.sources[0][1])
    few = np.random.default_rng(seed).permutation(len(table))[: corpus.labelled]
    path = workspace.root / f"few{seed}.parquet"
    pq.write_table(table.take(few), path)
    ingest(workspace, [str(path)], IngestConfig(split="train", **corpus.reading), batch_id=path.stem)
    return every, [path.stem, "test"]


def score_of(metrics: dict[str, Any], measure: str) -> float:
    if measure.startswith("f1 of "):
        return next(row["f1"] for row in metrics["per_class"] if row["label"] == measure.removeprefix("f1 of "))
    return float(metrics[measure])


def peer_scores(prepared: PreparedData, measure: str) -> dict[str, float]:
    """Return the test scores of the strongest linear model, chosen on validation, and of fastText, if it is installed.

    Both learn from train and validation texts alike; with several labels, validation gives each class its threshold.
    """
    train, validation, test = (labelled_texts(prepared, split) for split in (TRAIN, VALIDATION, TEST))
    labels, multi_label = prepared.corpus.labels, prepared.corpus.multi_label
    predicted, chosen = strongest_linear(train, validation, test, multi_label)
    scores = {chosen: _plain_score(predicted, test.targets, labels, measure)}
    if importlib.util.find_spec("fasttext") and not multi_label:
        predicted = fasttext_labels(train, validation, test)
        scores["fastText"] = _plain_score(predicted, test.targets, labels, measure)
    return scores


def strongest_linear(
    train: LabelledTexts, validation: LabelledTexts, test: LabelledTexts, multi_label: bool
) -> tuple[NDArray[np.bool_], str]:
    """Return the predicted classes [test texts, classes] and the name of the baseline, without a time budget."""
    found: list[NDArray[np.bool_]] = []
    result = linear_baseline(
        train, validation, test, multi_label=multi_label, budget_seconds=math.inf, on_predicted=found.append
    )
    return found[0], str(result["name"])


def fasttext_labels(train: LabelledTexts, validation: LabelledTexts, test: LabelledTexts) -> NDArray[np.bool_]:
    """Train fastText (Joulin et al. 2016) on word pairs, with or without character n-grams, as validation prefers."""
    trials = [
        {"minn": smallest, "maxn": largest, "lr": rate} for smallest, largest in ((0, 0), (3, 5)) for rate in (0.1, 0.5)
    ]
    scores = [(fasttext_predictions(train, validation, trial) == validation.targets).mean() for trial in trials]
    return fasttext_predictions(train.joined(validation), test, trials[int(np.argmax(scores))])


def fasttext_predictions(train: LabelledTexts, test: LabelledTexts, settings: dict[str, Any]) -> NDArray[np.bool_]:
    import fasttext

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        lines = zip(train.targets.argmax(axis=1), train.words, strict=True)
        path.write_text("\n".join(f"__label__{label} {text}" for label, text in lines), encoding="utf-8")
        common = {"wordNgrams": 2, "epoch": 25, "dim": 100, "thread": 2, "verbose": 0}
        model = fasttext.train_supervised(str(path), **common, **settings)
    answers = model.predict(list(test.words))[0]
    label_ids = [int(answer[0].removeprefix("__label__")) if len(answer) else 0 for answer in answers]
    return np.eye(train.targets.shape[1], dtype=bool)[label_ids]


def _plain_score(predicted: NDArray[np.bool_], truth: NDArray[np.bool_], labels: list[str], measure: str) -> float:
    if measure == "accuracy":
        return float((predicted == truth).all(axis=1).mean())
    if measure == "macro_f1":
        return macro_f1(predicted, truth)
    own = labels.index(measure.removeprefix("f1 of "))
    return macro_f1(predicted[:, [own]], truth[:, [own]])


@dataclass
class Run:
    """What one seed came to; minutes are of this machine."""

    score: float
    linear: dict[str, float]
    minutes: float
    pretraining_minutes: float
    perplexity: float | None
    candidates: list[dict[str, Any]]
    parts: list[dict[str, Any]]


def runs(name: str, options: argparse.Namespace) -> Iterator[Run]:
    corpus = CORPORA[name]
    linear: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, options.seeds + 1):
            workspace = Workspace(Path(options.keep or folder) / corpus.sources[0][1].split("/")[0])
            every, learnt = fill(workspace, corpus, seed)
            recipe = load_recipe(
                "default", [*corpus.settings, *options.set, f"training.seed={seed}", "training.baseline=false"]
            )
            started = time.monotonic()
            pretrains = (corpus.pretrain or options.pretrain) and not options.scratch
            encoder = pretrain_encoder(workspace, recipe, every, say) if pretrains else None
            between = time.monotonic()
            prepared = prepare(workspace, recipe, learnt, WarmStart(encoder=encoder))
            trained = fit(workspace, prepared, recipe, say)
            metrics = assess(prepared, trained, recipe)
            ended = time.monotonic()
            if not options.validation and (corpus.labelled or not linear):  # the texts of all seeds are the same
                linear = peer_scores(prepared, corpus.measure)
            yield Run(
                score_of(metrics["validation" if options.validation else "test"], corpus.measure),
                linear,
                (ended - between) / 60,
                (encoder.settings["seconds"] if encoder else between - started) / 60,
                encoder.settings["perplexity"] if encoder else None,
                metrics["candidates"],
                metrics["parts"],
            )


def say(_: float, line: str) -> None:
    if "done" in line:
        print(f"  {line}", flush=True)


def row(name: str, found: list[Run], options: argparse.Namespace) -> str:
    scores = [run.score for run in found]
    linear = {key: statistics.mean(run.linear.get(key, math.nan) for run in found) for key in found[0].linear}
    best = next(iter(linear), "")
    mean = statistics.mean(scores)
    cells = [
        name + "".join(f" {setting}" for setting in options.set),
        CORPORA[name].measure.replace("_", "-"),
        f"{mean:.2%}",
        " ".join(f"{100 * score:.2f}" for score in scores),
        f"{linear[best]:.2%} ({best})" if best else "",
        f"{100 * (mean - linear[best]):+.1f}" if best else "",
        f"{linear['fastText']:.2%}" if "fastText" in linear else "",
        f"{statistics.mean(run.minutes for run in found):.1f}",
        f"{found[0].pretraining_minutes:.0f} (perplexity {found[0].perplexity:.0f})" if found[0].perplexity else "",
    ]
    return "| " + " | ".join(cells) + " |"


COLUMNS = "corpus, measure, mean, each seed, strongest linear, lead, fastText, minutes a seed, pretraining minutes"
HEADER = f"| {COLUMNS.replace(', ', ' | ')} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="*", metavar="CORPUS", default=list(CORPORA), help=", ".join(CORPORA))
    parser.add_argument("--set", action="append", default=[], help="section.field=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--validation", action="store_true", help="show the validation split")
    parser.add_argument("--pretrain", action="store_true", help="pretrain on every corpus")
    parser.add_argument("--scratch", action="store_true", help="pretrain on none")
    parser.add_argument("--keep", type=Path, help="folder for the workspaces, to use their encoders again")
    options = parser.parse_args()
    print(HEADER + "\n|" + " --- |" * (HEADER.count("|") - 1), flush=True)
    for name in options.corpora:
        found = []
        for run in runs(name, options):
            found.append(run)
            for candidate in run.candidates:
                print(f"  {candidate['name']}: validation {candidate['best_macro_f1']:.4f}", flush=True)
            for part in run.parts:
                print(f"  {part['name']}: {part['macro_f1']:.4f} alone, weight {part['weight']:.2f}", flush=True)
        print(row(name, found, options), flush=True)


if __name__ == "__main__":
    main()
