"""Whether labels say when to trust them: calibration, coverage at each promised precision, and what is kept on test.

Run it from the project's root; it prints Markdown rows for each corpus:

    uv run python tests/benchmarks/trust.py                          # all corpora, seed 1
    uv run python tests/benchmarks/trust.py clinc150 clinc150_none sms_spam
    uv run python tests/benchmarks/trust.py banking77 --seed 2 --set training.validation_share=0.2

`clinc150` learns nothing of texts that belong to no class; `clinc150_none` has 100 examples to learn from and 100 to
choose thresholds by. Both are asked about 1,000 further ones.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.config import IngestConfig, load_recipe
from pipeline.dataset.minibatches import TokenLists
from pipeline.ingest import ingest
from pipeline.metrics.selective import REPORTED_PRECISIONS, SelectivePolicy, SelectiveResult
from pipeline.models.engine import temporary_engine
from pipeline.promotion.register import train
from pipeline.promotion.rule import Registration
from pipeline.workspace import Workspace

DATA = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Corpus:
    """Files as (batch, path, split), how they are read, and settings.

    Attributes:
        strangers: a file of texts that belong to none of the classes.
    """

    sources: Sequence[tuple[str, str, str | None]]
    reading: dict[str, Any] = field(default_factory=dict)
    settings: Sequence[str] = ()
    strangers: str = ""


def parquet(name: str, **reading: Any) -> Corpus:
    return Corpus([(split, f"{name}/{split}.parquet", split) for split in ("train", "test")], reading)


CLINC = [(batch, f"clinc150/{batch}.parquet", split) for batch, split in (("train", "train"), ("test", "test"))]
CLINC.append(("val", "clinc150/val.parquet", "validation"))
STRANGERS = [
    ("oos_train", "clinc150/oos_train.parquet", "train"),
    ("oos_val", "clinc150/oos_val.parquet", "validation"),
]
CORPORA = {
    "imdb": parquet("imdb", clean_html=True),
    "ag_news": parquet("ag_news", clean_html=True),
    "banking77": parquet("banking77"),
    "clinc150": Corpus(CLINC, strangers="clinc150/oos_test.parquet"),
    "clinc150_none": Corpus(
        CLINC + STRANGERS, settings=["selective.none_label=oos"], strangers="clinc150/oos_test.parquet"
    ),
    "sms_spam": parquet("sms_spam"),
}
HEADER = [
    *("corpus", "precision promised", "validation texts", "coverage on validation", "coverage on test"),
    *("precision on test", "on test", "texts of no class labelled"),
]


def lines(name: str, options: argparse.Namespace) -> Iterator[str]:
    corpus, started = CORPORA[name], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(options.keep or folder) / name)
        for batch, path, split in corpus.sources:
            ingest(workspace, [str(DATA / path)], IngestConfig(split=split, **corpus.reading), batch_id=batch)
        recipe = load_recipe(
            "default", ["training.baseline=false", *corpus.settings, *options.set, f"training.seed={options.seed}"]
        )
        publication = train(workspace, "trust", recipe)
        yield from _rows(name, corpus, publication)
        yield _calibration_line(name, publication, (time.monotonic() - started) / 60)


def _calibration_line(name: str, publication: Registration, minutes: float) -> str:
    test = publication.bundle.metrics["test"]
    before = test["before_calibration"]
    once = f"{before['calibration_error']:.2%}" if before else "no LSTM"
    return (
        f"{name}: {test['n']:,} test texts, accuracy {test['accuracy']:.2%}, calibration error {once} before, "
        f"{test['calibration_error']:.2%} after; {minutes:.1f} minutes\n"
    )


def _rows(name: str, corpus: Corpus, publication: Registration) -> Iterator[str]:
    bundle = publication.bundle
    assert bundle.predictions is not None
    for target in REPORTED_PRECISIONS:
        policy = bundle.policies()[target]
        shown, tested = (SelectiveResult.of(policy, bundle.predictions[split]) for split in ("validation", "test"))
        strangers = _strangers_labelled(corpus, publication, policy)
        cells = [
            *(name, f"{target:g}", f"{shown.texts:,}", f"{shown.coverage:.1%}", f"{tested.coverage:.1%}"),
            "" if tested.precision is None else f"{tested.precision:.2%}",
            tested.verdict(target) or "nothing promised",
            "" if strangers is None else f"{strangers:.1%}",
        ]
        yield f"| {' | '.join(cells)} |"


def _strangers_labelled(corpus: Corpus, publication: Registration, policy: SelectivePolicy) -> float | None:
    """Return the share of texts that belong to no class which are labelled as one."""
    if not corpus.strangers:
        return None
    bundle = publication.bundle
    texts = pq.read_table(DATA / corpus.strangers, columns=["text"])["text"].combine_chunks()
    token_ids = bundle.tokenizer.encode(texts).token_ids
    with temporary_engine(bundle.onnx_path) as engine:
        probabilities = engine.probabilities(TokenLists.of(token_ids))
    predicted = probabilities.argmax(axis=1)
    known = np.array([label != bundle.selective_config.none_label for label in bundle.labels])
    return float((known[predicted] & (probabilities.max(axis=1) >= policy.thresholds[predicted])).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="*", metavar="CORPUS", help=f"of {', '.join(CORPORA)}; all if none is given")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="section.field=value, repeatable")
    parser.add_argument("--keep", help="folder in which to keep the workspaces")
    options = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    for name in options.corpora or CORPORA:
        for line in lines(name, options):
            print(line, flush=True)


if __name__ == "__main__":
    main()
