"""Token ids of all texts, labelled or not, for pretraining: tokenized once into Parquet, streamed from there."""

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
from pipeline.dataset.corpus import TEST, read_columns, select, text_position
from pipeline.dataset.labelled_rows import number_groups
from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.tokenizer import Tokenizer, WordSplitter, read_words, write_vocabulary
from pipeline.errors import ConfigError, TrainingDataError
from pipeline.files import read_json, value_digest, write_json
from pipeline.schemas import CHUNKS
from pipeline.workspace import Batch, Workspace

MIN_TEXTS = 100
MIN_HELD_OUT = 10
GROUP_CHUNKS = 8_192  # chunks in a row group, which is read at once


class ChunkCache:
    """A committed folder of chunks, with their tokenizer and the frequency of each id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = read_json(path / "manifest.json")

    @property
    def fingerprint(self) -> str:
        return self.path.name

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_spec(self.manifest["tokenizer"], read_words(self.path / "vocabulary.txt"))

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 [vocabulary], how often each id occurs in the training texts."""
        counts: np.ndarray = np.load(self.path / "counts.npy")
        return counts

    @property
    def groups(self) -> int:
        """Number of row groups of training chunks."""
        with pq.ParquetFile(self.path / "learn.parquet") as file:
            return int(file.num_row_groups)

    def read(self, groups: Sequence[int]) -> TokenLists:
        """Return the training chunks of some row groups."""
        with pq.ParquetFile(self.path / "learn.parquet") as file:
            return _lists(file.read_row_groups(list(groups)))

    def held_out(self) -> TokenLists:
        """Return the held-out chunks."""
        return _lists(pq.read_table(self.path / "held_out.parquet"))


def _lists(table: pa.Table) -> TokenLists:
    return TokenLists.of(table["token_ids"].combine_chunks())


def build_chunks(workspace: Workspace, batches: Sequence[Batch], recipe: Recipe) -> ChunkCache:
    """Tokenize all texts into the cache of the workspace, unless they are cached.

    Long texts are cut into chunks of `max_tokens` instead of being truncated. Labels are read only to leave out the
    texts of the test split.

    Raises:
        TrainingDataError: there are too few texts.
        ConfigError: `max_tokens` is 1.
    """
    if recipe.tokenizer.max_tokens < 2:
        raise ConfigError("tokenizer.max_tokens=1: no word follows another, so there is nothing to pretrain on")
    selected = _select_rows(batches, recipe)
    path = workspace.tokens_dir(_fingerprint(batches, selected, recipe))
    if not (path / "manifest.json").exists():
        workspace.ensure_writable()
        path.mkdir(parents=True, exist_ok=True)
        tokenizer = Tokenizer.fit(selected.texts(selected.training), _tokenizer_config(recipe))
        write_vocabulary(path / "vocabulary.txt", tokenizer)
        counts = _write(path / "learn.parquet", selected.texts(selected.training), tokenizer)
        _write(path / "held_out.parquet", selected.texts(selected.held_out), tokenizer)
        np.save(path / "counts.npy", counts)
        write_json(
            path / "manifest.json",
            {
                "batches": [batch.id for batch in batches],
                "tokenizer": tokenizer.spec(),
                "texts": int(selected.training.sum()),
                "held_out_texts": int(selected.held_out.sum()),
                "left_out_for_test": selected.left_out,
                "tokens": int(counts.sum()),
            },
        )
    return ChunkCache(path)


@dataclass(frozen=True)
class _SelectedRows:
    """The training and held-out rows, bool [rows of all batches in order], and the number of test texts left out."""

    batches: Sequence[Batch]
    training: np.ndarray
    held_out: np.ndarray
    left_out: int

    def texts(self, mask: np.ndarray) -> Iterator[pa.Array]:
        """Yield the texts where `mask` is true, a column slice at a time."""
        start = 0
        for part in (part for batch in self.batches for part in batch.parts):
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(columns=["text"]):
                    rows = mask[start : start + len(batch)]
                    start += len(batch)
                    if rows.any():
                        yield batch["text"].filter(pa.array(rows))


def _select_rows(batches: Sequence[Batch], recipe: Recipe) -> _SelectedRows:
    config: PretrainingConfig = recipe.pretraining
    table = read_columns(batches, ["content_hash", "label", "split", "group"])
    rows = len(table)
    if not rows:
        raise TrainingDataError("no documents to pretrain on: start with nightlabel ingest FILE")
    hashes = pa.concat_arrays(table["content_hash"].chunks)
    text_ids = hashes.dictionary_encode().indices.to_numpy()
    use = np.zeros(rows, bool)
    use[np.unique(text_ids, return_index=True)[1]] = True  # each text once
    left_out = 0
    if config.leave_out_test:
        in_test = pc.fill_null(pc.equal(table["split"], "test"), False).to_numpy().astype(bool)
        if table["label"].null_count < rows:
            training = recipe.training
            corpus = select(
                batches,
                method=training.split,
                validation_share=training.validation_share,
                test_share=training.test_share,
            )
            in_test |= corpus.splits == TEST
        group_ids, _ = number_groups(table["group"], text_ids)
        test_texts = np.isin(text_ids, text_ids[in_test]) | np.isin(group_ids, group_ids[in_test])
        left_out = int(np.count_nonzero(use & test_texts))
        use &= ~test_texts
    texts = int(use.sum())
    if texts < MIN_TEXTS:
        raise TrainingDataError(
            f"{texts} texts are too few to pretrain on (at least {MIN_TEXTS}); "
            "ingest more, with or without labels, or train without --pretrain"
        )
    positions = np.where(use, text_position(hashes), -1.0)
    last = np.argsort(positions)[-max(MIN_HELD_OUT, round(texts * config.held_out_share)) :]
    held_out = np.zeros(rows, bool)
    held_out[last] = True
    return _SelectedRows(batches, use & ~held_out, held_out, left_out)


def _fingerprint(batches: Sequence[Batch], selected: _SelectedRows, recipe: Recipe) -> str:
    decided = value_digest(
        {
            "batches": [[batch.id, batch.manifest["fingerprint"]] for batch in batches],
            "rows": hashlib.sha256(selected.training.tobytes() + selected.held_out.tobytes()).hexdigest(),
            # Nothing is truncated here, and there are no more words than an LSTM knows.
            "tokenizer": {**_tokenizer_config(recipe).model_dump(), "truncation": "head"},
        }
    )
    return f"pieces-{decided[:16]}"


def _tokenizer_config(recipe: Recipe) -> TokenizerConfig:
    size = min(recipe.tokenizer.vocabulary_size, recipe.model.vocabulary_size)
    return recipe.tokenizer.model_copy(update={"vocabulary_size": size})


def _write(path: Path, texts: Iterator[pa.Array], tokenizer: Tokenizer) -> np.ndarray:
    """Write the chunks of some texts; return how often each id occurs, int64 [vocabulary]."""
    max_tokens = tokenizer.config.max_tokens
    tokenizer = without_truncation(tokenizer)
    counts = np.zeros(tokenizer.size, dtype=np.int64)
    with pq.ParquetWriter(path, CHUNKS, compression="zstd") as writer:
        buffer: list[pa.ListArray] = []
        for column in texts:
            ids = tokenizer.encode(column).token_ids
            counts += np.bincount(ids.values.to_numpy(), minlength=tokenizer.size)
            buffer.append(split_into_chunks(ids, max_tokens))
            if sum(map(len, buffer)) >= GROUP_CHUNKS:
                buffer = [_write_groups(writer, buffer, GROUP_CHUNKS)]
        _write_groups(writer, buffer, 1)
    return counts


def _write_groups(writer: pq.ParquetWriter, buffer: Sequence[pa.ListArray], min_chunks: int) -> pa.ListArray:
    """Write row groups of at least `min_chunks`; return the remaining chunks."""
    chunks = pa.concat_arrays(buffer) if buffer else pa.array([], CHUNKS.field(0).type)
    start = 0
    while len(chunks) - start >= min_chunks:
        group = chunks.slice(start, GROUP_CHUNKS)
        writer.write_table(pa.table([group], schema=CHUNKS), row_group_size=GROUP_CHUNKS)
        start += len(group)
    return chunks.slice(start)


def without_truncation(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer without its limit on the length of texts."""
    config: TokenizerConfig = tokenizer.config.model_copy(update={"max_tokens": 2**31 - 1})
    return Tokenizer(WordSplitter(config, tokenizer.splitter.stop_words), tokenizer.vocabulary.to_pylist())


def split_into_chunks(lists: pa.ListArray, max_items: int) -> pa.ListArray:
    """Cut lists into consecutive chunks of at most `max_items`; a last chunk of one item has no next and is dropped."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    chunks = lengths // max_items + (lengths % max_items > 1)
    number = np.arange(chunks.sum()) - np.repeat(np.cumsum(chunks) - chunks, chunks)  # of a chunk in its list
    starts = np.repeat(offsets[:-1], chunks) + number * max_items
    sizes = np.minimum(np.repeat(offsets[1:], chunks) - starts, max_items)
    items = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), lists.values.take(pa.array(items)))
