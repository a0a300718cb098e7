"""Token ids of every text, labelled or not, for pretraining: read once, written as Parquet, streamed from there."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import PretrainingConfig, Recipe, TokenizerConfig
from pipeline.dataset.corpus import TEST, select, text_position
from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.token_cache import read_vocabulary, write_vocabulary
from pipeline.dataset.tokenizer import Tokenizer, WordSplitter
from pipeline.errors import ConfigError, TrainingDataError
from pipeline.files import read_json, value_digest, write_json
from pipeline.schemas import CHUNKS
from pipeline.workspace import Batch, Workspace

MIN_TEXTS = 100
MIN_HELD_OUT = 10
GROUP_CHUNKS = 8_192  # pieces in a row group, which is read at once


class ChunkCache:
    """A committed folder of pieces, the tokenizer that made them, and how often each id occurs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = read_json(path / "manifest.json")

    @property
    def fingerprint(self) -> str:
        return self.path.name

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_spec(self.manifest["tokenizer"], read_vocabulary(self.path / "vocabulary.txt"))

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 [vocabulary], how often each id occurs in the texts to learn from."""
        counts: np.ndarray = np.load(self.path / "counts.npy")
        return counts

    @property
    def groups(self) -> int:
        with pq.ParquetFile(self.path / "learn.parquet") as file:
            return int(file.num_row_groups)

    def read(self, groups: Sequence[int]) -> TokenLists:
        """Return the pieces of some row groups."""
        with pq.ParquetFile(self.path / "learn.parquet") as file:
            return _lists(file.read_row_groups(list(groups)))

    def held_out(self) -> TokenLists:
        return _lists(pq.read_table(self.path / "held_out.parquet"))


def _lists(table: pa.Table) -> TokenLists:
    return TokenLists.of(table["token_ids"].combine_chunks())


def build_chunks(workspace: Workspace, batches: Sequence[Batch], recipe: Recipe) -> ChunkCache:
    """Tokenize every text once into the workspace's cache, unless it is there already.

    Long texts are cut into pieces of `max_tokens`, so nothing of them is lost. Labels are never read, but where
    they decide which texts are for testing.

    Raises:
        TrainingDataError: there are too few texts.
        ConfigError: texts are truncated to single words.
    """
    if recipe.tokenizer.max_tokens < 2:
        raise ConfigError("tokenizer.max_tokens=1: no word follows another, so there is nothing to pretrain on")
    chosen = _choose(batches, recipe)
    path = workspace.tokens_dir(_fingerprint(batches, chosen, recipe))
    if not (path / "manifest.json").exists():
        workspace.ensure_writable()
        path.mkdir(parents=True, exist_ok=True)
        tokenizer = Tokenizer.fit(chosen.texts(chosen.learn), recipe.tokenizer)
        write_vocabulary(path / "vocabulary.txt", tokenizer)
        counts = _write(path / "learn.parquet", chosen.texts(chosen.learn), tokenizer)
        _write(path / "held_out.parquet", chosen.texts(chosen.held_out), tokenizer)
        np.save(path / "counts.npy", counts)
        write_json(
            path / "manifest.json",
            {
                "batches": [batch.id for batch in batches],
                "tokenizer": tokenizer.spec(),
                "texts": int(chosen.learn.sum()),
                "held_out_texts": int(chosen.held_out.sum()),
                "left_out_for_test": chosen.left_out,
                "tokens": int(counts.sum()),
            },
        )
    return ChunkCache(path)


@dataclass(frozen=True)
class _Chosen:
    """Which rows are read: bool [rows of all batches in order], and how many were left out as test texts."""

    batches: Sequence[Batch]
    learn: np.ndarray
    held_out: np.ndarray
    left_out: int

    def texts(self, wanted: np.ndarray) -> Iterator[pa.Array]:
        start = 0
        for part in (part for batch in self.batches for part in batch.parts):
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(columns=["text"]):
                    rows = wanted[start : start + len(batch)]
                    start += len(batch)
                    if rows.any():
                        yield batch["text"].filter(pa.array(rows))


def _choose(batches: Sequence[Batch], recipe: Recipe) -> _Chosen:
    config: PretrainingConfig = recipe.pretraining
    paths = [str(path) for batch in batches for path in batch.parts]
    tables = [pq.read_table(path, columns=["content_hash", "label", "split"], partitioning=None) for path in paths]
    rows = sum(len(table) for table in tables)
    if not rows:
        raise TrainingDataError("no documents to pretrain on: start with nightlabel ingest FILE")
    table = pa.concat_tables(tables)
    hashes = pa.concat_arrays(table["content_hash"].chunks)
    text_ids = hashes.dictionary_encode().indices.to_numpy()
    use = np.zeros(rows, bool)
    use[np.unique(text_ids, return_index=True)[1]] = True  # each text once
    left_out = 0
    if config.leave_out_test:
        given_test = pc.fill_null(pc.equal(table["split"], "test"), False).to_numpy().astype(bool)
        if table["label"].null_count < rows:
            training = recipe.training
            corpus = select(
                batches,
                method=training.split,
                validation_share=training.validation_share,
                test_share=training.test_share,
            )
            given_test |= corpus.splits == TEST
        tested = np.isin(text_ids, text_ids[given_test])
        left_out = int(np.count_nonzero(use & tested))
        use &= ~tested
    texts = int(use.sum())
    if texts < MIN_TEXTS:
        raise TrainingDataError(
            f"{texts} texts are too few to pretrain on (at least {MIN_TEXTS}); "
            "ingest more, with or without labels, or train without --pretrain"
        )
    places = np.where(use, text_position(hashes), -1.0)
    last = np.argsort(places)[-max(MIN_HELD_OUT, round(texts * config.held_out_share)) :]
    held_out = np.zeros(rows, bool)
    held_out[last] = True
    return _Chosen(batches, use & ~held_out, held_out, left_out)


def _fingerprint(batches: Sequence[Batch], chosen: _Chosen, recipe: Recipe) -> str:
    decided = value_digest(
        {
            "batches": [[batch.id, batch.manifest["fingerprint"]] for batch in batches],
            "rows": hashlib.sha256(chosen.learn.tobytes() + chosen.held_out.tobytes()).hexdigest(),
            "tokenizer": {**recipe.tokenizer.model_dump(), "truncation": "head"},  # nothing is truncated here
        }
    )
    return f"pieces-{decided[:16]}"


def _write(path: Path, texts: Iterator[pa.Array], tokenizer: Tokenizer) -> np.ndarray:
    """Write the pieces of some texts; return how often each id occurs, int64 [vocabulary]."""
    longest = tokenizer.config.max_tokens
    whole = without_truncation(tokenizer)
    counts = np.zeros(tokenizer.size, dtype=np.int64)
    with pq.ParquetWriter(path, CHUNKS, compression="zstd") as writer:
        waiting: list[pa.ListArray] = []
        for column in texts:
            ids = whole.encode(column).token_ids
            counts += np.bincount(ids.values.to_numpy(), minlength=tokenizer.size)
            waiting.append(split_into_chunks(ids, longest))
            if sum(len(pieces) for pieces in waiting) >= GROUP_CHUNKS:
                waiting = [_write_groups(writer, waiting, GROUP_CHUNKS)]
        _write_groups(writer, waiting, 1)
    return counts


def _write_groups(writer: pq.ParquetWriter, waiting: Sequence[pa.ListArray], fewest: int) -> pa.ListArray:
    """Write as many whole row groups as there are; return the pieces that are left."""
    pieces = pa.concat_arrays(waiting) if waiting else pa.array([], CHUNKS.field(0).type)
    start = 0
    while len(pieces) - start >= fewest:
        group = pieces.slice(start, GROUP_CHUNKS)
        writer.write_table(pa.table([group], schema=CHUNKS), row_group_size=GROUP_CHUNKS)
        start += len(group)
    return pieces.slice(start)


def without_truncation(tokenizer: Tokenizer) -> Tokenizer:
    """Return the same tokenizer, but one that truncates nothing."""
    config: TokenizerConfig = tokenizer.config.model_copy(update={"max_tokens": 2**31 - 1})
    return Tokenizer(WordSplitter(config, tokenizer.splitter.stop_words), tokenizer.vocabulary.to_pylist())


def split_into_chunks(lists: pa.ListArray, longest: int) -> pa.ListArray:
    """Cut lists into consecutive pieces of at most `longest` items; a piece of one has no next and is left out."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    pieces = lengths // longest + (lengths % longest > 1)
    first = np.repeat(offsets[:-1], pieces)
    place = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = first + place * longest
    sizes = np.minimum(np.repeat(offsets[1:], pieces) - starts, longest)
    kept = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), lists.values.take(pa.array(kept)))
