"""Token ids of the labelled documents as Parquet: what training reads. A cache, safe to delete."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.batching import TokenLists
from pipeline.config import TokenizerConfig
from pipeline.corpus import TRAIN, Corpus
from pipeline.files import read_json, value_digest, write_json
from pipeline.schemas import SPLITS, TOKENS
from pipeline.tokenizer import Tokenizer, TokenStats
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class TokenSet:
    """One split, ready for training or evaluation."""

    doc_ids: pa.Array
    label_ids: np.ndarray  # int32 [texts]
    tokens: TokenLists

    def __len__(self) -> int:
        return len(self.label_ids)


class TokenCache:
    """A committed folder of tokens: one Parquet file for each split, and the tokenizer that made them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_json(path / "manifest.json")

    @property
    def fingerprint(self) -> str:
        return self.path.name

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_spec(self.manifest["tokenizer"], read_vocabulary(self.path / "vocabulary.txt"))

    def read(self, split: int) -> TokenSet:
        table = pq.read_table(self.path / f"{SPLITS[split]}.parquet", schema=TOKENS)
        lists = pa.concat_arrays(table["token_ids"].chunks) if len(table) else pa.array([], TOKENS.field(2).type)
        return TokenSet(table["doc_id"], table["label_id"].to_numpy(), TokenLists.of(lists))


def build_tokens(workspace: Workspace, corpus: Corpus, config: TokenizerConfig) -> TokenCache:
    """Tokenize a corpus into the workspace's cache, unless it is there already.

    Raises:
        TrainingDataError: the training texts have no words.
    """
    path = workspace.tokens_of(_fingerprint(corpus, config))
    if not (path / "manifest.json").exists():
        workspace.prepare()
        path.mkdir(parents=True, exist_ok=True)
        tokenizer = Tokenizer.fit(corpus.texts(TRAIN), config)
        write_vocabulary(path / "vocabulary.txt", tokenizer)
        stats = {
            name: _write_split(path / f"{name}.parquet", corpus, split, tokenizer) for split, name in enumerate(SPLITS)
        }
        write_json(
            path / "manifest.json",
            {
                "batches": [batch.id for batch in corpus.batches],
                "labels": corpus.labels,
                "counts": corpus.counts,
                "tokenizer": tokenizer.spec(),
                "stats": {name: {**asdict(value), **value.shares()} for name, value in stats.items()},
            },
        )
    return TokenCache(path)


def _fingerprint(corpus: Corpus, config: TokenizerConfig) -> str:
    decided = value_digest(
        {
            "batches": [[batch.id, batch.manifest["fingerprint"]] for batch in corpus.batches],
            "labels": corpus.labels,
            "rows": hashlib.sha256(corpus.splits.tobytes() + corpus.label_ids.tobytes()).hexdigest(),
            "tokenizer": config.model_dump(),
        }
    )
    return decided[:16]


def _write_split(path: Path, corpus: Corpus, split: int, tokenizer: Tokenizer) -> TokenStats:
    stats = TokenStats()
    with pq.ParquetWriter(path, TOKENS, compression="zstd") as writer:
        for doc_ids, token_ids, label_ids, column_stats in _encode(corpus, split, tokenizer):
            stats += column_stats
            writer.write_batch(pa.record_batch([doc_ids, pa.array(label_ids), token_ids], schema=TOKENS))
    return stats


def _encode(
    corpus: Corpus, split: int, tokenizer: Tokenizer
) -> Iterator[tuple[pa.Array, pa.Array, np.ndarray, TokenStats]]:
    """Yield the texts that have words; one without cannot teach or test a model that never sees it."""
    for doc_ids, texts, label_ids in corpus.read(split):
        encoded = tokenizer.encode(texts)
        spoken = encoded.lengths > 0
        mask = pa.array(spoken)
        yield doc_ids.filter(mask), encoded.token_ids.filter(mask), label_ids[spoken], TokenStats.of(encoded)


def write_vocabulary(path: Path, tokenizer: Tokenizer) -> None:
    """Write one word a line, in the order of their ids; no word holds white space."""
    path.write_text("\n".join(tokenizer.vocabulary.to_pylist()), encoding="utf-8", newline="\n")


def read_vocabulary(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n") if path.stat().st_size else []
