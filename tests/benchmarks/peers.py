"""How fast other ways label the same documents: PyTorch, Keras, scikit-learn, a transformer, other tokenizers.

Run it with nothing else running. WORKSPACE has the batch and a trained model, and is only read:

    uv run --group peers python tests/benchmarks/peers.py WORKSPACE --batch test --rows 10000
    uv run --group peers python tests/benchmarks/peers.py WORKSPACE --batch test --tokenizers

All run on the CPU in one process and take turns. What is got ready once (sessions, weights, fitting) is not timed,
and each has labelled a few rows before its first turn.
"""

import argparse
import gc
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.allocator import keep_freed_memory
from pipeline.config import IngestConfig, ScoringConfig, load_recipe, validated
from pipeline.dataset.minibatches import TokenLists, plan_minibatches
from pipeline.dataset.tokenizer import RESERVED, UNKNOWN, UNSEPARATED_SCRIPTS, Tokenizer
from pipeline.errors import NightlabelError
from pipeline.ingest import ingest
from pipeline.models.bundle import Bundle
from pipeline.models.engine import open_engine
from pipeline.models.onnx_graph import build_graph
from pipeline.models.registry import Registry
from pipeline.models.session import choose_scoring_device
from pipeline.models.write_bundle import load_classifier
from pipeline.nights.finish import score_batch
from pipeline.scoring.scorer import Scorer, byte_slices
from pipeline.training.model import Classifier
from pipeline.workspace import Batch, Workspace

BATCH, SLICE_ROWS, WARM_UP_ROWS, FIT_ROWS, TOKENIZER_ROUNDS = 64, 4096, 32, 20_000, 5
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PACKED_BATCH_TOKENS, TRANSFORMER_BATCH_TOKENS = 8_192, 1_024  # measured: what each is fastest with
LAYERS, HEADS, HIDDEN, INNER, VOCABULARY, LONGEST = 6, 12, 768, 3072, 30_522, 512  # DistilBERT (Sanh et al. 2019)
# Python's re knows no scripts: the main blocks of those whose characters are tokens of their own.
SCRIPT_BLOCKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
HANGUL_BLOCKS = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3"

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]  # token_ids [batch, time], lengths -> probabilities


class SkipError(Exception):
    """Why a peer cannot run here."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Documents in a temporary workspace of their own, and the model that is to label them."""

    workspace: Workspace
    batch: Batch
    bundle: Bundle

    @classmethod
    def of(cls, documents: pa.Table, batch: Batch, bundle: Bundle, folder: Path) -> "Rows":
        folder.mkdir()
        pq.write_table(documents, folder / "documents.parquet")
        config, workspace = IngestConfig(id="doc_id", max_text_bytes=2**31), Workspace(folder / "workspace")
        ingest(workspace, [str(folder / "documents.parquet")], config, batch_id=batch.id)
        return cls(workspace, workspace.batch(batch.id), bundle)

    def read(self) -> pa.Table:
        return read(self.batch, ["doc_id", "text"])

    @cached_property
    def tokens(self) -> TokenLists:
        """The product's token ids, after truncation."""
        return encode(self.bundle.tokenizer, self.read()["text"])

    def write(self, doc_ids: pa.ChunkedArray, probabilities: np.ndarray, classes: Sequence[str]) -> Path:
        """Write labels and confidences as Parquet; return the folder."""
        folder = self.workspace.root / "peer"
        folder.mkdir()
        labels = pa.array(classes, pa.string()).take(pa.array(probabilities.argmax(axis=1)))
        table = pa.table({"doc_id": doc_ids, "label": labels, "confidence": probabilities.max(axis=1)})
        pq.write_table(table, folder / "labels.parquet", compression="zstd")
        return folder


@dataclass(frozen=True)
class Trial:
    """The documents to label: all, some for slow peers, a few to warm up; and where they come from."""

    source: Workspace
    folder: Path
    all: Rows
    slow: Rows
    few: Rows


def read(batch: Batch, columns: Sequence[str]) -> pa.Table:
    return pa.concat_tables(pq.read_table(path, columns=columns, partitioning=None) for path in batch.parts)


def encode(tokenizer: Tokenizer, texts: pa.ChunkedArray) -> TokenLists:
    slices = [tokenizer.encode(texts.slice(start, SLICE_ROWS).combine_chunks()) for start in starts(texts)]
    return TokenLists.of(pa.concat_arrays([encoded.token_ids for encoded in slices]))


def starts(texts: Sequence[Any], size: int = SLICE_ROWS) -> range:
    return range(0, len(texts), size)


def evenly(count: int, wanted: int) -> np.ndarray:
    """Return row numbers taken evenly from `count` rows; all if there are no more than wanted."""
    return np.arange(count) if count <= wanted else np.linspace(0, count - 1, wanted).astype(np.int64)


def by_length(tokens: TokenLists, classes: int, run: Run, budget: int) -> np.ndarray:
    """Return probabilities [texts, classes] of a model run on sorted batches; 0 for texts without tokens."""
    result, non_empty = np.zeros((len(tokens), classes), np.float32), np.flatnonzero(tokens.lengths > 0)
    for places in plan_minibatches(tokens.lengths[non_empty], batch_tokens=budget):
        result[non_empty[places]] = run(*tokens.pad(non_empty[places]))
    return result


def in_file_order(rows: Rows, encode_texts: Callable[[list[str]], list[list[int]]], run: Run) -> Path:
    """Label rows in batches as they come, each padded to its longest text."""
    table, found = rows.read(), []
    texts = table["text"].to_pylist()
    for start in starts(texts, BATCH):
        lists = [ids or [0] for ids in encode_texts(texts[start : start + BATCH])]
        lengths = np.array([len(ids) for ids in lists], np.int32)
        token_ids = np.zeros((len(lists), lengths.max()), np.int32)
        for row, ids in enumerate(lists):
            token_ids[row, : len(ids)] = ids
        found.append(run(token_ids, lengths))
    return rows.write(table["doc_id"], np.concatenate(found), rows.bundle.labels)


def open_graph(path: Path) -> Run:
    """Return a graph with ONNX Runtime's own settings, on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda token_ids, lengths: session.run(None, {"token_ids": token_ids, "lengths": lengths})[0]


class Peer(ABC):
    """One way to label documents; its constructor gets ready what is not timed."""

    same_weights = False  # whether its labels should be the product's
    alone = False  # the model alone, from ready token ids, on the rows for slow peers
    against = "fp32"  # whose speed is divided by its own

    @abstractmethod
    def label(self, rows: Rows) -> Path | None:
        """Label all rows; return the folder of labels, or None if it is about speed alone."""

    def tokens(self, rows: Rows) -> int:
        """Return how many tokens the model sees, as the product counts them. Not timed."""
        return int(rows.tokens.lengths.sum())


class Nightlabel(Peer):
    """The product itself."""

    same_weights = True

    def __init__(self, trial: Trial, precision: str = "fp32") -> None:
        settings = {"device": "cpu", "precision": precision}
        self.scorer = Scorer(trial.all.bundle, validated(ScoringConfig, settings))

    def label(self, rows: Rows) -> Path:
        return score_batch(rows.workspace, rows.batch, self.scorer).path


def load_torch(bundle: Bundle) -> tuple[Classifier, nn.LSTM]:
    """Return the trained classifier, and its layers as the one `nn.LSTM` that a PyTorch user has."""
    model = load_classifier(bundle)
    config, state = model.config, model.state_dict()
    lstm = nn.LSTM(config.embedding_size, config.hidden_size, config.layers, bidirectional=config.bidirectional)
    weights = {}
    for name in (name for name in state if name.startswith("layers.")):
        _, number, direction, weight = name.split(".")  # layers.0.backwards.weight_ih_l0 is weight_ih_l0_reverse
        weights[weight.replace("l0", f"l{number}") + ("_reverse" if direction == "backwards" else "")] = state[name]
    lstm.load_state_dict(weights)
    return model, lstm.eval()


class TorchPacked(Peer):
    """PyTorch at its best on ragged rows: the product's tokens, batches by length, packed sequences."""

    same_weights = True

    def __init__(self, trial: Trial) -> None:
        self.model, self.lstm = load_torch(trial.all.bundle)

    @torch.inference_mode()
    def label(self, rows: Rows) -> Path:
        table, classes = rows.read(), rows.bundle.labels
        tokens = encode(rows.bundle.tokenizer, table["text"])
        return rows.write(table["doc_id"], by_length(tokens, len(classes), self._run, PACKED_BATCH_TOKENS), classes)

    def _run(self, token_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        ids, sizes = torch.from_numpy(token_ids), torch.from_numpy(lengths).long()
        packed = nn.utils.rnn.pack_padded_sequence(self.model.embedding(ids.t()), sizes)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0])
        return self.model.logits(states, ids, sizes).softmax(dim=-1).numpy()


class Words:
    """A tokenizer in plain Python: the product's ids, but for rare characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.config, self.stop_words = tokenizer.config, set(tokenizer.splitter.stop_words)
        self.ids = {word: number for number, word in enumerate(tokenizer.vocabulary.to_pylist(), RESERVED)}
        alone = SCRIPT_BLOCKS + (HANGUL_BLOCKS if self.config.split_hangul else "")
        punctuation = "" if self.config.remove_punctuation else r"|[^\w\s]|_"
        self.pattern = re.compile(rf"[^\W_{alone}]+|[{alone}]{punctuation}")

    def encode(self, text: str) -> list[int]:
        words = self.pattern.findall(text.lower() if self.config.lowercase else text)
        if self.stop_words:
            words = [word for word in words if word not in self.stop_words]
        limit, keep = self.config.max_tokens, self.config.truncation
        if len(words) > limit:
            head = {"head": limit, "tail": 0, "both": (limit + 1) // 2}[keep]
            words = words[:head] + words[len(words) - limit + head :]
        return [self.ids.get(word, UNKNOWN) for word in words]


class TorchFirst(Peer):
    """PyTorch as most people first write it: no sorting, no packing, so that backward reads padding first."""

    same_weights = True

    def __init__(self, trial: Trial) -> None:
        self.model, self.lstm = load_torch(trial.all.bundle)
        self.words = Words(trial.all.bundle.tokenizer)

    @torch.inference_mode()
    def label(self, rows: Rows) -> Path:
        return in_file_order(rows, lambda texts: [self.words.encode(text) for text in texts], self._run)

    def _run(self, token_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(token_ids)
        states, _ = self.lstm(self.model.embedding(ids.t()))
        return self.model.logits(states, ids, torch.from_numpy(lengths).long()).softmax(dim=-1).numpy()


def word_level(tokenizer: Tokenizer) -> Any:
    """Return a Hugging Face tokenizer that gives the product's ids, its splitter the fastest that does."""
    import tokenizers

    config = tokenizer.config
    if config.truncation == "both" or tokenizer.splitter.stop_words:
        raise SkipError("Hugging Face tokenizers neither keep both ends of a text nor drop stop words")
    scripts = (*UNSEPARATED_SCRIPTS, *(("Hangul",) if config.split_hangul else ()))
    alone = "".join(rf"\p{{{script}}}" for script in scripts)
    punctuation = "" if config.remove_punctuation else r"|[^\p{L}\p{M}\p{N}\s]"
    token = tokenizers.Regex(rf"[{alone}]{punctuation}|[\p{{L}}\p{{M}}\p{{N}}&&[^{alone}]]+")
    words = {"[padding]": 0, "[unknown]": UNKNOWN}  # no word of the vocabulary has a bracket
    words |= {word: number for number, word in enumerate(tokenizer.vocabulary.to_pylist(), RESERVED)}
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[unknown]"))
    if config.lowercase:
        other.normalizer = tokenizers.normalizers.Lowercase()
    other.pre_tokenizer = tokenizers.pre_tokenizers.Split(token, "removed", invert=True)
    other.enable_truncation(config.max_tokens, direction="right" if config.truncation == "head" else "left")
    return other


class OnnxUnsorted(Peer):
    """The product's own graph, fed as a tutorial would."""

    same_weights = True

    def __init__(self, trial: Trial) -> None:
        self.tokenizer, self.run = word_level(trial.all.bundle.tokenizer), open_graph(trial.all.bundle.onnx_path)

    def label(self, rows: Rows) -> Path:
        return in_file_order(rows, lambda texts: [e.ids for e in self.tokenizer.encode_batch_fast(texts)], self.run)


class Imdb(Peer):
    """The product's graph of the preset imdb-lstm100, run as the product runs it."""

    alone, against = True, "imdb"

    def __init__(self, trial: Trial) -> None:
        self.recipe, texts = load_recipe("imdb-lstm100"), trial.all.read()["text"].combine_chunks()
        self.tokenizer = Tokenizer.fit([texts.take(evenly(len(texts), FIT_ROWS))], self.recipe.tokenizer)
        self.lists = {}
        for rows in (trial.few, trial.slow):
            tokens = encode(self.tokenizer, rows.read()["text"])
            non_empty = tokens.lengths > 0
            self.lists[rows] = TokenLists(tokens.values, tokens.starts[non_empty], tokens.lengths[non_empty])
        self.predict = self.model(trial.folder / "imdb.onnx")

    def model(self, path: Path) -> Callable[[TokenLists], Any]:
        onnx.save(build_graph(Classifier(self.tokenizer.size, 2, self.recipe.model).eval()), path)
        return open_engine(path, choose_scoring_device("cpu")).probabilities

    def label(self, rows: Rows) -> None:
        self.predict(self.lists[rows])

    def tokens(self, rows: Rows) -> int:
        return int(self.lists[rows].lengths.sum())


class ImdbKeras(Imdb):
    """The same in Keras, every text padded to the longest there can be."""

    def model(self, path: Path) -> Callable[[TokenLists], Any]:  # noqa: ARG002 - nothing to save
        os.environ |= {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
        from keras import Sequential, layers

        embedding = layers.Embedding(self.tokenizer.size, self.recipe.model.embedding_size)
        lstm = layers.LSTM(self.recipe.model.hidden_size)
        model = Sequential([embedding, lstm, layers.Dense(1, activation="sigmoid")])
        longest = self.recipe.tokenizer.max_tokens

        def predict(lists: TokenLists) -> Any:
            token_ids, _ = lists.pad(np.arange(len(lists)))
            padded = np.pad(token_ids, ((0, 0), (0, longest - token_ids.shape[1])))
            return model.predict(padded, batch_size=BATCH, verbose=0)

        counts = [len(lists) for lists in self.lists.values()]
        for rows in {BATCH, *(count % BATCH or BATCH for count in counts)}:  # compiled for each size of a batch
            model.predict(np.zeros((rows, longest), np.int32), batch_size=BATCH, verbose=0)
        return predict


class Linear(Peer):
    """scikit-learn with its own settings; fitted to the labels that texts came with, else to the product's."""

    def __init__(self, trial: Trial) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        examples = pa.concat_tables(read(batch, ["text", "label"]) for batch in trial.source.batches()).drop_null()
        if not len(examples):
            labels = read_labels(Nightlabel(trial).label(trial.all))
            examples = pa.table({"text": trial.all.read()["text"], "label": labels}).drop_null()
        examples = examples.take(evenly(len(examples), FIT_ROWS))
        if pc.count_distinct(examples["label"]).as_py() < 2:
            raise SkipError("there are no two classes to learn")
        self.model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
        self.model.fit(examples["text"].to_pylist(), examples["label"].to_pylist())

    def label(self, rows: Rows) -> Path:
        table = rows.read()
        probabilities = self.model.predict_proba(table["text"].to_pylist())
        return rows.write(table["doc_id"], probabilities.astype(np.float32), self.model.classes_.tolist())


class Transformer(Peer):
    """A transformer of DistilBERT's sizes with random weights and random token ids."""

    alone = True

    def __init__(self, trial: Trial, precision: str = "fp32") -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        self.classes, path = len(trial.all.bundle.labels), trial.folder / f"transformer-{precision}.onnx"
        onnx.save(transformer(self.classes), path)
        if precision == "int8":
            types = {"DefaultTensorType": TensorProto.FLOAT}  # nothing infers those behind fused operators
            quantize_dynamic(path, path, weight_type=QuantType.QInt8, extra_options=types)
        self.run = open_graph(path)

    def label(self, rows: Rows) -> None:
        lengths = np.minimum(rows.tokens.lengths + 2, LONGEST)  # with a first and a last token, as BERT has them
        ids = np.random.default_rng(0).integers(1, VOCABULARY, int(lengths.sum()), np.int32)
        tokens = TokenLists(ids, np.cumsum(lengths, dtype=np.int64) - lengths, lengths)
        by_length(tokens, self.classes, self.run, TRANSFORMER_BATCH_TOKENS)


def transformer(classes: int) -> onnx.ModelProto:
    """Return an encoder, written in the fused operators that `onnxruntime.transformers.optimizer` makes of one."""
    random = np.random.default_rng(0)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(*shape: int) -> str:
        values = random.normal(0.0, 0.02, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"weight{len(weights)}"))
        return weights[-1].name

    def add(operator: str, *inputs: str, domain: str = "com.microsoft", more: Sequence[str] = (), **values: Any) -> str:
        outputs = [f"node{len(nodes)}", *more]
        nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **values))
        return outputs[0]

    def product(states: str, size_in: int, size_out: int) -> str:
        return add("MatMul", states, weight(size_in, size_out), domain="")

    def norm(states: str, skip: str) -> str:
        return add("SkipLayerNormalization", states, skip, weight(HIDDEN), weight(HIDDEN), weight(HIDDEN))

    tables = weight(VOCABULARY, HIDDEN), weight(LONGEST, HIDDEN)
    norms = weight(HIDDEN), weight(HIDDEN)
    states = add("EmbedLayerNormalization", "token_ids", "", *tables, "", *norms, more=["mask_index"])
    for _ in range(LAYERS):
        mixed = add("Attention", states, weight(HIDDEN, 3 * HIDDEN), weight(3 * HIDDEN), "lengths", num_heads=HEADS)
        states = norm(product(mixed, HIDDEN, HIDDEN), states)
        inner = add("BiasGelu", product(states, HIDDEN, INNER), weight(INNER))
        states = norm(product(inner, INNER, HIDDEN), states)
    weights.append(numpy_helper.from_array(np.array(0), "first"))
    pooled = add("Gather", states, "first", domain="", axis=1)
    result = add("Softmax", product(pooled, HIDDEN, classes), domain="")
    inputs = [
        helper.make_tensor_value_info("token_ids", TensorProto.INT32, ["batch", "time"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["batch", classes])]
    graph = helper.make_graph(nodes, "transformer", inputs, outputs, weights)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=9)


PEERS: dict[str, tuple[str, Callable[[Trial], Peer]]] = {
    "fp32": ("nightlabel fp32", Nightlabel),
    "int8": ("nightlabel int8", partial(Nightlabel, precision="int8")),
    "packed": ("PyTorch packed, sorted", TorchPacked),
    "first": ("PyTorch, as first written", TorchFirst),
    "onnx": ("ONNX Runtime, unsorted, batch 64, Hugging Face tokenizers", OnnxUnsorted),
    "imdb": ("nightlabel graph of imdb-lstm100", Imdb),
    "keras": ("Keras 3 predict, imdb-lstm100", ImdbKeras),
    "tfidf": ("scikit-learn TF-IDF + logistic regression", Linear),
    "distilbert": ("DistilBERT-sized ONNX, fp32", Transformer),
    "distilbert-int8": ("DistilBERT-sized ONNX, int8", partial(Transformer, precision="int8")),
}


@dataclass
class Result:
    """What was measured of one peer."""

    name: str
    peer: Peer
    rows: Rows
    tokens: int
    seconds: list[float] = field(default_factory=list)
    labels: pa.ChunkedArray | None = None

    def per_second(self, count: int) -> list[float]:
        """Return slowest, median and fastest speed."""
        return [count / choose(self.seconds) for choose in (max, statistics.median, min)]

    def facts(self, results: dict[str, "Result"]) -> dict[str, Any]:
        """Return what is reported; the ratio is of tokens, so that it holds between unequal rows."""
        other, labels = results[self.peer.against], results["fp32"].labels
        tokens_per_second = self.per_second(self.tokens)[1]
        return {
            "peer": self.name + ("\\*" if self.peer.alone else "") + ("†" if self.peer.against != "fp32" else ""),
            "rows_per_second": self.per_second(self.rows.batch.rows),
            "tokens_per_second": tokens_per_second,
            "ratio": other.per_second(other.tokens)[1] / tokens_per_second,
            "same_labels": pc.mean(pc.equal(self.labels, labels)).as_py() if self.peer.same_weights else None,
            "rows": self.rows.batch.rows,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }


def read_labels(folder: Path) -> pa.ChunkedArray:
    """Return the labels of a folder in the order of the documents, and delete it."""
    tables = [pq.read_table(path, columns=["label"], partitioning=None) for path in sorted(folder.glob("*.parquet"))]
    shutil.rmtree(folder)
    return pa.concat_tables(tables)["label"]


def turn(peer: Peer, rows: Rows) -> tuple[float, pa.ChunkedArray | None]:
    gc.collect()
    time.sleep(0.5)  # until the threads of the peer before no longer spin
    started = time.perf_counter()
    folder = peer.label(rows)
    seconds = time.perf_counter() - started
    return seconds, None if folder is None else read_labels(folder)


def measure(trial: Trial, keys: Sequence[str], rounds: int) -> dict[str, Result]:
    """Let the peers take turns; those that cannot run here are told of and left out."""
    results: dict[str, Result] = {}
    for key in keys:
        name, make = PEERS[key]
        say(f"{name}: getting ready")
        try:
            peer = make(trial)
            turn(peer, trial.few)
        except (SkipError, NightlabelError) as reason:
            if key == "fp32":
                raise
            say(f"{name}: left out: {reason}")
            continue
        rows = trial.slow if peer.alone else trial.all
        results[key] = Result(name, peer, rows, peer.tokens(rows))
    for number in range(1, rounds + 1):
        for result in results.values():
            seconds, result.labels = turn(result.peer, result.rows)
            result.seconds.append(seconds)
            say(f"round {number} of {rounds}: {result.name}: {result.rows.batch.rows / seconds:,.1f} rows/s")
    return results


def markdown(records: Sequence[dict[str, Any]], trial: Trial) -> str:
    """Return the table, with what one has to know beside the numbers."""
    lines = ["| peer | rows/s | tokens/s | slowest to fastest rows/s | product / peer | same labels |"]
    lines.append("|" + " --- |" + " ---: |" * 5)
    for record in records:
        slowest, median, fastest = record["rows_per_second"]
        share = "–" if record["same_labels"] is None else f"{record['same_labels']:.2%}"
        speeds = f"{median:,.1f} | {record['tokens_per_second']:,.0f} | {slowest:,.1f} to {fastest:,.1f}"
        lines.append(f"| {record['peer']} | {speeds} | {record['ratio']:.2f} | {share} |")
    count = trial.all.batch.rows
    repeats = count - pc.count_distinct(read(trial.all.batch, ["content_hash"])["content_hash"]).as_py()
    return "\n".join(
        [
            *lines,
            "",
            f"{count:,} documents with {trial.all.tokens.lengths.sum():,} tokens, Parquet in and Parquet out, on the "
            f"CPU; texts that repeat another, which the product does not run again: {repeats:,}.",
            "",
            f"\\* The model alone with random weights, from ready token ids, on {trial.slow.batch.rows:,} documents "
            "taken evenly from all; the ratio is of tokens per second.",
            "",
            "† Compared with the product's graph of imdb-lstm100, on the same token ids, by that preset's tokenizer.",
        ]
    )


def compare_tokenizers(rows: Rows) -> str:
    """Tokenize with one thread each; the texts are ready as each wants them, in Arrow or as Python strings."""
    column, tokenizer = rows.read()["text"].combine_chunks(), rows.bundle.tokenizer
    keep_freed_memory()  # as the product does before it scores
    texts, other, words = column.to_pylist(), word_level(tokenizer), Words(tokenizer)
    ways: dict[str, Callable[[], list[Any]]] = {
        "nightlabel": lambda: [tokenizer.encode(column.slice(*place)).token_ids for place in byte_slices(column)],
        "Hugging Face tokenizers, word level": lambda: [encoded.ids for encoded in other.encode_batch_fast(texts)],
        "Python's re and a dict": lambda: [words.encode(text) for text in texts],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    ids: dict[str, list[Any]] = {}
    for number in range(TOKENIZER_ROUNDS + 1):  # the first round warms up
        for name, way in ways.items():
            started = time.perf_counter()
            ids[name] = way()
            seconds[name].append(time.perf_counter() - started)
            say(f"round {number} of {TOKENIZER_ROUNDS}: {name}: {seconds[name][-1]:.2f} s")
    ids["nightlabel"] = [token_ids for part in ids["nightlabel"] for token_ids in part.to_pylist()]
    tokens, size = sum(map(len, ids["nightlabel"])), sum(len(text.encode()) for text in texts)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    lines = ["| tokenizer | MB/s | tokens/s | product / peer | texts with equal ids |", "|" + " --- |" + " ---: |" * 4]
    for name, spent in medians.items():
        equal = sum(map(list.__eq__, ids[name], ids["nightlabel"])) / len(texts)
        ratio = spent / medians["nightlabel"]
        lines.append(f"| {name} | {size / spent / 1e6:,.1f} | {tokens / spent:,.0f} | {ratio:.2f} | {equal:.2%} |")
    return "\n".join(lines)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", metavar="WORKSPACE", type=Path)
    parser.add_argument("--batch", required=True)
    parser.add_argument("--model", help="name or name@version; not needed where there is only one")
    parser.add_argument("--rows", type=int, default=sys.maxsize, help="the first so many documents; else all")
    parser.add_argument("--slow-rows", type=int, default=2000, help="documents for the peers marked *")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS), help="some of %(default)s")
    parser.add_argument("--tokenizers", action="store_true", help="compare tokenizing alone, one thread each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there")
    options = parser.parse_args()
    chosen = {*options.peers.split(","), "fp32"}
    if unknown := chosen - set(PEERS):
        parser.error(f"no peers {', '.join(sorted(unknown))}; there are: {', '.join(PEERS)}")
    if "keras" in chosen:
        chosen.add("imdb")  # what it is compared with
    options.peers = [key for key in PEERS if key in chosen]
    return options


def run(options: argparse.Namespace) -> None:
    source = Workspace(options.workspace)
    batch, bundle = source.batch(options.batch), Registry(source).find(options.model)
    documents = read(batch, ["doc_id", "text"]).slice(0, options.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {"all": options.rows, "slow": options.slow_rows, "few": WARM_UP_ROWS}
        rows = {
            part: Rows.of(documents.take(evenly(len(documents), count)), batch, bundle, folder / part)
            for part, count in parts.items()
        }
        if options.tokenizers:
            print(compare_tokenizers(rows["all"]))
            return
        trial = Trial(source, folder, **rows)
        results = measure(trial, options.peers, options.rounds)
        records = [result.facts(results) for result in results.values()]
        print(markdown(records, trial))
    if options.json:
        libraries = {name: version(name) for name in ("torch", "keras", "jax", "tokenizers", "scikit-learn")}
        libraries["onnxruntime"] = onnxruntime.__version__
        report = {"cores": CORES, "libraries": libraries, "model": bundle.title, "peers": records}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    options = parse()
    torch.set_num_threads(CORES)
    if options.tokenizers:  # read when the library is loaded
        os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        pa.set_cpu_count(1)
    if missing := [name for name in ("keras", "jax", "tokenizers") if find_spec(name) is None]:
        say(f"peers: {', '.join(missing)} not installed: run this with uv run --group peers python {sys.argv[0]} ...")
        raise SystemExit(2)
    try:
        run(options)
    except (NightlabelError, SkipError) as error:
        say(f"peers: {error}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
