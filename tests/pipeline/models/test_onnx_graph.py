"""The exported graph is the trained model: for every shape of model, on ragged batches."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch

from pipeline.config import ModelConfig, load_recipe
from pipeline.dataset.characters import ngram_hashes
from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.token_set import TokenSet
from pipeline.models.engine import HostRunner
from pipeline.models.onnx_graph import build_graph
from pipeline.models.parity import TOLERANCE, prove_parity
from pipeline.training.model import Classifier, MeanEmbeddingLinear, NgramLinear

VOCABULARY, CLASSES = 50, 3
UNKNOWN_WORDS = pa.array(["zebra", "zebras", "okapi", "ökapi", "o", "a" * 99])


def ragged_texts(count: int = 40, longest: int = 30) -> TokenSet:
    random = np.random.default_rng(3)
    ids = VOCABULARY + len(UNKNOWN_WORDS)
    lists = [random.integers(1, ids, length).astype(np.int32) for length in random.integers(1, longest, count)]
    tokens = TokenLists.of(pa.array(lists, pa.list_(pa.int32())))
    return TokenSet(
        pa.array([str(n) for n in range(count)]),
        np.zeros(count, np.int32),
        tokens,
        np.eye(CLASSES, dtype=bool),
        unknown_words=UNKNOWN_WORDS,
    )


def random_ngrams(buckets: int, *, triples: bool = False) -> NgramLinear:
    """A branch in which about every other n-gram has a weight."""
    keys = np.unique(ngram_hashes(UNKNOWN_WORDS)[0])[::2].view(np.int64)
    branch = NgramLinear(VOCABULARY, CLASSES, buckets, 20, len(keys), triples=triples)
    with torch.no_grad():
        branch.ngram_keys.copy_(torch.from_numpy(keys))
        branch.bucket_rows.copy_(torch.randint(0, 21, (buckets,)))
        branch.start.normal_()
        assert branch.characters is not None
        for table, first in ((branch.words, 2), (branch.sequences, 1), (branch.characters, 2), (branch.ngrams, 0)):
            table[first:, :-1].normal_()
            table[first:, -1].uniform_(1, 9)
    return branch


def trained_model(
    *, multi_label: bool = False, average: bool = False, wide: int = 0, triples: bool = False, **config: object
) -> Classifier:
    """A model with large weights and moving batch statistics, as after training; dropout at its defaults."""
    torch.manual_seed(1)
    settings = {"embedding_size": 8, "hidden_size": 12, **config}
    model = Classifier(VOCABULARY, CLASSES, ModelConfig.model_validate(settings), multi_label=multi_label)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        if wide:
            model.wide = random_ngrams(wide, triples=triples)
        if average:
            model.average = MeanEmbeddingLinear(torch.randn(VOCABULARY, 5), CLASSES)
            model.average.vectors[0] = 0.0
            model.average.output.weight.normal_()
            model.average.standardise(torch.randn(9, 5))
        if model.norm is not None:
            model.norm.running_mean.normal_()
            model.norm.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"batch_norm": True, "dense_sizes": (7, 5)},
        {"wide": 101},
        {"wide": 101, "triples": True, "average": True, "multi_label": True},
    ],
    ids=["plain", "norm+dense", "wide", "triples+average+several"],
)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("pooling", ["last", "max", "mean", "attention"])
def test_onnx_agrees_with_packed_pytorch_and_a_row_does_not_depend_on_its_batch(
    tmp_path: Path, pooling: str, layers: int, bidirectional: bool, head: dict[str, object]
) -> None:
    model = trained_model(pooling=pooling, layers=layers, bidirectional=bidirectional, **head)
    path = tmp_path / "model.onnx"
    onnx.save(build_graph(model), path)
    texts = ragged_texts()
    parity = prove_parity(model, path, texts)
    assert parity.largest_difference <= TOLERANCE
    assert (parity.texts, parity.equal_labels) == (40, 1.0)

    session, unknown = onnxruntime.InferenceSession(path), unknown_rows(model, texts)
    whole = run(session, texts, np.arange(40), unknown)
    for rows in (np.array([row]) for row in range(40)):
        assert np.array_equal(run(session, texts, rows, unknown), whole[rows])
    mixed = np.random.default_rng(0).permutation(40)
    assert np.array_equal(run(session, texts, mixed[:7], unknown), whole[mixed[:7]])


def run(
    session: onnxruntime.InferenceSession, texts: TokenSet, rows: np.ndarray, unknown: np.ndarray | None = None
) -> np.ndarray:
    return HostRunner(session).run(*texts.tokens.pad(rows), unknown)


def unknown_rows(model: Classifier, texts: TokenSet) -> np.ndarray | None:
    return None if model.wide is None else model.wide.unknown_rows(texts.unknown_words).numpy()


@pytest.mark.parametrize("branches", [{"wide": 101}, {"average": True}, {"wide": 101, "average": True}])
def test_a_silent_lstm_is_left_out_of_the_graph(tmp_path: Path, branches: dict[str, object]) -> None:
    model = trained_model(**branches)  # type: ignore[arg-type]
    model.disable_lstm()
    onnx.save(build_graph(model), tmp_path / "model.onnx")
    assert "LSTM" not in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    texts = ragged_texts()
    assert prove_parity(model, tmp_path / "model.onnx", texts).largest_difference <= TOLERANCE
    session, unknown = onnxruntime.InferenceSession(tmp_path / "model.onnx"), unknown_rows(model, texts)
    whole = run(session, texts, np.arange(40), unknown)
    assert np.array_equal(run(session, texts, np.array([3]), unknown), whole[[3]])


def test_what_an_unknown_word_is_made_of_changes_the_label(tmp_path: Path) -> None:
    """And texts that differ in nothing else have the same label with the same word, whatever its number."""
    model = trained_model(wide=101)
    onnx.save(build_graph(model), tmp_path / "model.onnx")
    session, unknown = onnxruntime.InferenceSession(tmp_path / "model.onnx"), unknown_rows(model, ragged_texts())
    assert unknown is not None
    ids = np.array([[5, VOCABULARY, 7], [5, VOCABULARY + 1, 7], [5, 1, 7]], np.int32)
    lengths = np.full(3, 3, np.int32)
    zebra, zebras, nothing = HostRunner(session).run(ids, lengths, unknown)
    assert len({tuple(row) for row in (zebra.tolist(), zebras.tolist(), nothing.tolist())}) == 3
    swapped = unknown[[0, 2, 1, 3, 4, 5, 6]]
    assert np.array_equal(HostRunner(session).run(ids[[1, 0, 2]], lengths, swapped), [zebra, zebras, nothing])
    same = HostRunner(session).run(ids, lengths)  # without rows they are all the same
    assert np.array_equal(same, [nothing, nothing, nothing])


def test_the_training_model_gives_what_the_graph_gives(tmp_path: Path) -> None:
    """Training reverses rows instead of packing them; both must be the same model."""
    model = trained_model(pooling="max", layers=2)
    path = tmp_path / "model.onnx"
    onnx.save(build_graph(model), path)
    texts = ragged_texts()
    token_ids, lengths = texts.tokens.pad(np.arange(40))
    with torch.no_grad():
        logits = model(torch.from_numpy(token_ids), torch.from_numpy(lengths.astype(np.int64)))
    exported = run(onnxruntime.InferenceSession(path), texts, np.arange(40))
    np.testing.assert_allclose(logits.softmax(-1).numpy(), exported, atol=TOLERANCE)


def test_the_graph_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(build_graph(trained_model(), metadata={"labels": "a\nb\nc"}), path)
    session = onnxruntime.InferenceSession(path)
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("token_ids", "tensor(int32)", ["batch", "time"]),
        ("lengths", "tensor(int32)", ["batch"]),
    ]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("probabilities", ["batch", CLASSES])]
    assert session.get_modelmeta().custom_metadata_map["labels"] == "a\nb\nc"


def test_the_stacked_preset_has_keras_parameters_and_pytorchs_second_bias() -> None:
    config = load_recipe("stacked-lstm128")
    model = Classifier(config.tokenizer.vocabulary_size, 4, config.model)
    assert model.parameter_count() == 584_932 + 1_024
