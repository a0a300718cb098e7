"""Whether suspicious training labels are wrong ones: labels are swapped at random, and looked for.

Run it from the project's root; it prints a Markdown row for each corpus:

    uv run python tests/benchmarks/suspicious.py                     # banking77 and ag_news, 3 % swapped
    uv run python tests/benchmarks/suspicious.py banking77 --swapped 0.1
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import IngestConfig, load_recipe
from pipeline.dataset.corpus import TRAIN
from pipeline.ingest import ingest
from pipeline.review.label_errors import cross_validated, label_issues
from pipeline.training.prepare import prepare
from pipeline.workspace import Workspace

DATA = Path(__file__).parents[3] / "shared" / "data"
CORPORA = ("banking77", "ag_news")


def swapped(table: pa.Table, share: float, seed: int) -> tuple[pa.Table, set[str]]:
    """Return a table a share of whose labels are other ones, and the ids of these rows."""
    random = np.random.default_rng(seed)
    labels = np.array(table["label"].to_pylist(), dtype=object)
    names = np.unique(labels)
    rows = random.choice(len(labels), round(share * len(labels)), replace=False)
    for row in rows:
        labels[row] = random.choice(names[names != labels[row]])
    column = table.schema.get_field_index("label")
    ids = set(np.array(table["id"].to_pylist(), dtype=object)[rows])
    return table.set_column(column, "label", pa.array(labels.tolist())), ids


def line(name: str, share: float, seed: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        table, wrong = swapped(pq.read_table(DATA / name / "train.parquet"), share, seed)
        pq.write_table(table, Path(folder) / "train.parquet")
        workspace = Workspace(Path(folder) / "workspace")
        ingest(workspace, [str(Path(folder) / "train.parquet")], IngestConfig(), batch_id="train")
        recipe = load_recipe()
        prepared = prepare(workspace, recipe)
        texts, tokenizer = prepared.read(TRAIN), prepared.cache.tokenizer
        started = time.monotonic()
        found = label_issues(
            texts, cross_validated(texts, tokenizer.vocabulary, recipe.model.wide_buckets), multi_label=False
        )
        seconds = time.monotonic() - started
        ids = np.array(texts.doc_ids.to_pylist(), dtype=object)
        there = sum(one in wrong for one in ids)
        right = np.array([one in wrong for one in ids[found]])
    first = [f"{right[:count].mean():.0%}" for count in (50, 100)]
    cells = [
        name,
        f"{len(ids):,}",
        f"{there:,}",
        f"{len(right):,}",
        *first,
        f"{right.sum() / there:.0%}",
        f"{seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="*", metavar="CORPUS", help=f"of {', '.join(CORPORA)}; both if none is given")
    parser.add_argument("--swapped", type=float, default=0.03, help="share of the labels")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(
        "| corpus | training texts | swapped | listed | of the first 50 | of the first 100 | found in all | seconds |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.corpora or CORPORA:
        print(line(name, options.swapped, options.seed), flush=True)


if __name__ == "__main__":
    main()
