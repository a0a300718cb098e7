"""Token ids of the labelled documents as Parquet, for training. A cache, safe to delete."""

import hashlib
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import TokenizerConfig
from pipeline.dataset.characters import UnknownWords
from pipeline.dataset.corpus import TRAIN, Corpus
from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.token_set import TokenSet
from pipeline.dataset.tokenizer import Tokenizer, TokenStats, number_unknown, read_words, write_vocabulary, write_words
from pipeline.files import read_json, value_digest, write_json
from pipeline.schemas import SPLITS, TOKENS
from pipeline.workspace import Workspace


class TokenCache:
    """A committed folder of token ids, one Parquet file for each split, with their tokenizer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_json(path / "manifest.json")

    @property
    def fingerprint(self) -> str:
        return self.path.name

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_spec(self.manifest["tokenizer"], read_words(self.path / "vocabulary.txt"))

    def read(self, split: int) -> TokenSet:
        """Read one split."""
        table = pq.read_table(self.path / f"{SPLITS[split]}.parquet", schema=TOKENS)
        lists = pa.concat_arrays(table["token_ids"].chunks) if len(table) else pa.array([], TOKENS.field(2).type)
        return TokenSet(
            doc_ids=table["doc_id"],
            label_ids=table["label_id"].to_numpy(),
            tokens=TokenLists.of(lists),
            label_sets=self.label_sets,
            groups=table["group"].to_numpy() if "groups" in self.manifest["counts"] else None,
            unknown_words=pa.array(read_words(self.path / f"{SPLITS[split]}.unknown.txt"), pa.string()),
        )

    @cached_property
    def label_sets(self) -> np.ndarray:
        """bool [label sets, classes]."""
        classes = len(self.manifest["labels"])
        label_sets = np.zeros((len(self.manifest["sets"]), classes), dtype=bool)
        for number, members in enumerate(self.manifest["sets"]):
            label_sets[number, members] = True
        return label_sets


def build_tokens(
    workspace: Workspace, corpus: Corpus, config: TokenizerConfig, tokenizer: Tokenizer | None = None
) -> TokenCache:
    """Tokenize a corpus into the cache of the workspace, unless it is cached.

    Args:
        workspace: holds the cache.
        corpus: the documents and their splits.
        config: settings of a tokenizer fitted to the training texts...
        tokenizer: ...unless this one is to be used.

    Raises:
        TrainingDataError: the training texts have no words.
    """
    path = workspace.tokens_dir(_fingerprint(corpus, config, tokenizer))
    if not (path / "manifest.json").exists():
        workspace.ensure_writable()
        path.mkdir(parents=True, exist_ok=True)
        tokenizer = tokenizer or Tokenizer.fit(corpus.texts(TRAIN), config)
        write_vocabulary(path / "vocabulary.txt", tokenizer)
        stats = {
            name: _write_split(path / f"{name}.parquet", corpus, split, tokenizer) for split, name in enumerate(SPLITS)
        }
        write_json(
            path / "manifest.json",
            {
                "batches": [batch.id for batch in corpus.batches],
                "labels": corpus.labels,
                "sets": [np.flatnonzero(members).tolist() for members in corpus.label_sets],
                "counts": corpus.counts,
                "tokenizer": tokenizer.spec(),
                "stats": {name: {**asdict(value), **value.shares()} for name, value in stats.items()},
            },
        )
    return TokenCache(path)


def _fingerprint(corpus: Corpus, config: TokenizerConfig, tokenizer: Tokenizer | None) -> str:
    decided = value_digest(
        {
            "batches": [[batch.id, batch.manifest["fingerprint"]] for batch in corpus.batches],
            "labels": corpus.labels,
            "sets": corpus.label_sets.tolist() if corpus.multi_label else None,
            "rows": hashlib.sha256(corpus.splits.tobytes() + corpus.label_ids.tobytes()).hexdigest(),
            "tokenizer": tokenizer.digest if tokenizer else config.model_dump(),
            "unknown_words": True,  # in caches of earlier versions they all had one id
            # Left out without reviews: caches from before there were reviews stay valid.
            **({"reviews": corpus.reviews} if corpus.reviews else {}),
        }
    )
    return decided[:16]


def _write_split(path: Path, corpus: Corpus, split: int, tokenizer: Tokenizer) -> TokenStats:
    """Write the texts of a split that have words: the model never gets an empty text."""
    stats = TokenStats()
    groups = pa.nulls(np.count_nonzero(corpus.splits == split), pa.int64())
    if corpus.groups is not None:
        groups = pa.array(corpus.groups[corpus.splits == split])
    columns, unknown = [], [UnknownWords.none()]
    for doc_ids, texts, label_ids in corpus.read(split):
        encoded = tokenizer.encode(texts)
        stats += TokenStats.of(encoded)
        of_rows, groups = groups.slice(0, len(texts)), groups.slice(len(texts))
        fields = [doc_ids, pa.array(label_ids), encoded.token_ids, of_rows]
        columns.append((fields, encoded.lengths, encoded.unknown_hashes))
        unknown.append(encoded.unknown_words)
    words = UnknownWords.merged(unknown)
    write_words(path.with_suffix(".unknown.txt"), words.words.to_pylist())
    with pq.ParquetWriter(path, TOKENS, compression="zstd") as writer:
        for fields, lengths, hashes in columns:
            fields[2] = number_unknown(fields[2], hashes, words, tokenizer.size)
            rows = pa.record_batch(fields, schema=TOKENS)
            writer.write_batch(rows.filter(pa.array(lengths > 0)))
    return stats
