"""What each word adds to a logit is told by the graph itself: its sums are the logits that PyTorch gives."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from test_onnx_graph import ragged_texts, trained_model, unknown_rows
from torch import Tensor

from pipeline.dataset.minibatches import TokenLists
from pipeline.dataset.token_set import TokenSet
from pipeline.dataset.tokenizer import UNKNOWN
from pipeline.errors import ModelError
from pipeline.models.attribution import with_attributions
from pipeline.models.engine import (
    BoundRunner,
    HostRunner,
    bucket_length,
    unknown_word_columns,
    unknown_word_input,
)
from pipeline.models.onnx_graph import build_graph
from pipeline.training.model import (
    PAIR_FACTOR,
    SMALLEST_NORM,
    Classifier,
    MeanEmbeddingLinear,
    NgramLinear,
    unique_per_row,
)

NAMES = ["probabilities", "logits", "attributions", "attribution_start"]
HEADS: dict[str, dict[str, object]] = {
    "plain": {},
    "norm+dense": {"batch_norm": True, "dense_sizes": (7, 5)},
    "wide": {"wide": 101},
    "average+dense": {"average": True, "dense_sizes": (6,)},
    "triples+average+several": {"wide": 101, "triples": True, "average": True, "multi_label": True},
}
Outputs = dict[str, np.ndarray]


def opened(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session that also hands out the logits, to compare with."""
    proto.graph.output.append(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None))
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def run(
    session: onnxruntime.InferenceSession, texts: TokenSet, rows: np.ndarray, unknown: np.ndarray | None = None
) -> Outputs:
    token_ids, lengths = texts.tokens.pad(rows)
    inputs = {"token_ids": token_ids, "lengths": lengths}
    inputs |= unknown_word_input(unknown_word_columns(session), token_ids, unknown)
    return dict(zip(NAMES, session.run(NAMES, inputs), strict=True))


def class_logits(found: Outputs) -> np.ndarray:
    logits: np.ndarray = np.take_along_axis(found["logits"], found["probabilities"].argmax(1)[:, None], 1)[:, 0]
    return logits


def sums(found: Outputs) -> np.ndarray:
    total: np.ndarray = found["attributions"].sum(axis=(1, 2)) + found["attribution_start"]
    return total


def expected(
    model: Classifier, token_ids: Tensor, lengths: Tensor, unknown: Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the attributions [batch, time], pairs with their second word, and the class's logits, as PyTorch has them.

    Gradient times state for the LSTM; a loop over the words of each text for the linear branches.
    """
    kept: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        kept.append(states.detach().requires_grad_())
        return kept[0]

    attention = model.attention
    if attention is not None:  # its weights count as given
        attention.register_forward_hook(lambda _, inputs, __: _attended(model, inputs[0], inputs[1]))
    model.layers[-1].register_forward_hook(lambda _, __, states: keep(states))
    logits = model(token_ids, lengths, unknown=unknown)
    classes = model.probabilities(logits).argmax(dim=1)
    chosen = logits.gather(1, classes[:, None])[:, 0]
    chosen.sum().backward()
    by_place = torch.zeros(token_ids.shape)
    if model.config.pooling != "last":
        assert kept[0].grad is not None
        by_place += (kept[0].grad * kept[0]).sum(dim=2).t().detach()
    for row, label in enumerate(classes.tolist()):
        words = token_ids[row, : lengths[row]].tolist()
        if model.wide is not None:
            _add_wide(by_place[row], model.wide, words, label, unknown)
        if model.average is not None:
            _add_average(by_place[row], model.average, words, label)
    return by_place.numpy(), chosen.detach().numpy()


def _attended(model: Classifier, states: Tensor, inside: Tensor) -> Tensor:
    assert model.attention is not None
    scores = model.attention.query(torch.tanh(model.attention.key(states))).squeeze(-1)
    weights = scores.masked_fill(~inside, -torch.inf).softmax(dim=0).detach()
    return (weights[..., None] * states).sum(dim=0)


def _add_wide(places: Tensor, wide: NgramLinear, words: list[int], label: int, unknown: Tensor | None) -> None:
    assert wide.characters is not None
    assert unknown is not None
    buckets, known = len(wide.bucket_rows), [word if word < wide.vocabulary_size else UNKNOWN for word in words]
    found: dict[str, list[tuple[int, Tensor]]] = {"words": [], "characters": []}
    seen: set[tuple[str, int]] = {("sequence", 0)}
    pairs = [before * PAIR_FACTOR + word for before, word in pairwise([0, *known])]
    triples = [before * PAIR_FACTOR + word for before, word in zip([0, *pairs], known, strict=False)]
    for place, sequence in [*enumerate(pairs), *(enumerate(triples) if wide.triples else ())]:
        row = int(wide.bucket_rows[sequence % buckets])
        if ("sequence", row) not in seen:
            found["words"].append((place, wide.sequences[row]))
            seen.add(("sequence", row))
    for place, word in enumerate(words):
        if ("word", word) not in seen:
            is_known = word < wide.vocabulary_size
            found["words"] += [(place, wide.words[word])] if is_known else []
            row_of_word = wide.characters[word] if is_known else unknown[word - wide.vocabulary_size + 1]
            found["characters"].append((place, row_of_word))
            seen.add(("word", word))
    for features in found.values():
        square = torch.stack([torch.zeros(()), *(row[-1] for _, row in features)]).sum()
        for place, row in features:
            places[place] += (row[label] / square.clamp(min=SMALLEST_NORM).sqrt()).item()


def _add_average(places: Tensor, average: MeanEmbeddingLinear, words: list[int], label: int) -> None:
    by_word, _ = average.by_word()
    words = [word if word < len(by_word) else UNKNOWN for word in words]
    different = int((unique_per_row(torch.tensor([words])) > 0).sum())
    for word in set(words):
        places[words.index(word)] += (by_word[word, label] / different).item()


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("pooling", ["max", "mean", "attention", "last"])
def test_the_parts_are_those_of_pytorch_and_sum_to_its_logit_on_ragged_batches(
    pooling: str, layers: int, bidirectional: bool, head: dict[str, object]
) -> None:
    model = trained_model(pooling=pooling, layers=layers, bidirectional=bidirectional, **head)  # type: ignore[arg-type]
    graph, texts, everything = build_graph(model), ragged_texts(), np.arange(40)
    if pooling == "last" and not ("wide" in head or "average" in head):
        with pytest.raises(ModelError, match=r"small@1 reads the last state.*model.pooling=max"):
            with_attributions(graph, "small@1")
        return
    session = opened(with_attributions(graph, "small@1"))
    unknown = unknown_rows(model, texts)
    found = run(session, texts, everything, unknown)
    token_ids, lengths = texts.tokens.pad(everything)
    by_place, logits = expected(
        model,
        torch.from_numpy(token_ids),
        torch.from_numpy(lengths.astype(np.int64)),
        None if unknown is None else torch.from_numpy(unknown),
    )
    scale = np.abs(logits).max()
    np.testing.assert_allclose(found["attributions"].sum(axis=1), by_place, atol=2e-5 * scale)
    np.testing.assert_allclose(sums(found), logits, atol=2e-5 * scale)
    assert found["attributions"].shape[1] == (2 if "wide" in head else 1)

    plain = onnxruntime.InferenceSession(graph.SerializeToString())
    before = HostRunner(plain).run(token_ids, lengths, unknown)
    assert np.array_equal(found["probabilities"], before)
    for row in range(40):
        alone, length = run(session, texts, np.array([row]), unknown), texts.tokens.lengths[row]
        assert np.array_equal(alone["attributions"][0], found["attributions"][row, :, :length])
        assert alone["attribution_start"][0] == found["attribution_start"][row]


def test_of_places_with_the_same_highest_state_the_first_counts() -> None:
    """A word repeated for long brings an LSTM to rest: its states are then the same to the last bit."""
    model = trained_model(bidirectional=False)
    with torch.no_grad():
        model.layers[0].forwards.weight_hh_l0.zero_()
        model.layers[0].forwards.bias_hh_l0[12:24] = -60.0  # the cell forgets at once
    texts = ragged_texts()
    same = TokenLists(np.full_like(texts.tokens.values, 7), texts.tokens.starts, texts.tokens.lengths)
    texts = replace(texts, tokens=same)
    found = run(opened(with_attributions(build_graph(model), "small@1")), texts, np.arange(40))
    assert found["attributions"][:, 0, 0].all()
    assert not found["attributions"][:, 0, 1:].any()
    np.testing.assert_allclose(sums(found), class_logits(found), rtol=1e-5)


@pytest.mark.parametrize("head", [{"wide": 101, "average": True}, {"dense_sizes": (7,), "batch_norm": True}])
@pytest.mark.parametrize("pooling", ["max", "mean", "attention"])
def test_the_int8_variant_sums_to_its_own_logit(tmp_path: Path, pooling: str, head: dict[str, object]) -> None:
    onnx.save(build_graph(trained_model(pooling=pooling, layers=2, **head)), tmp_path / "fp32.onnx")  # type: ignore[arg-type]
    quantize_dynamic(
        tmp_path / "fp32.onnx", tmp_path / "int8.onnx", op_types_to_quantize=["LSTM"], weight_type=QuantType.QInt8
    )
    proto = onnx.load(tmp_path / "int8.onnx")
    assert "DynamicQuantizeLSTM" in {node.op_type for node in proto.graph.node}
    found = run(opened(with_attributions(proto, "small@1")), ragged_texts(), np.arange(40))
    np.testing.assert_allclose(sums(found), class_logits(found), atol=2e-5 * np.abs(found["logits"]).max())


@pytest.mark.parametrize("branches", [{"wide": 101}, {"average": True}, {"wide": 101, "average": True}])
def test_a_model_without_an_lstm_tells_its_words_too(branches: dict[str, object]) -> None:
    model = trained_model(**branches)  # type: ignore[arg-type]
    model.disable_lstm()
    texts = ragged_texts()
    found = run(opened(with_attributions(build_graph(model), "small@1")), texts, np.arange(40))
    np.testing.assert_allclose(sums(found), class_logits(found), atol=1e-5)
    assert found["attributions"].shape == (40, 2 if "wide" in branches else 1, texts.tokens.lengths.max())


def test_a_bound_runner_gives_what_the_others_give_without_the_padding_it_adds() -> None:
    session = opened(with_attributions(build_graph(trained_model(wide=101)), "small@1"))
    token_ids, lengths = ragged_texts().tokens.pad(np.arange(40))
    assert bucket_length(token_ids.shape[1]) > token_ids.shape[1]
    host, bound = HostRunner(session), BoundRunner(session, "cpu")
    for one, other in zip(host.attribute(token_ids, lengths), bound.attribute(token_ids, lengths), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(bound.run(token_ids, lengths), host.run(token_ids, lengths))


def test_half_precision_has_the_nodes_it_needs() -> None:
    """Only CUDA runs it; its graph is whole on any machine."""
    for pooling in ("max", "mean", "attention"):
        half = with_attributions(build_graph(trained_model(pooling=pooling, wide=101), half=True), "small@1")
        onnx.checker.check_model(half, full_check=True)


def test_a_pooling_that_is_not_known_is_refused() -> None:
    model = trained_model(pooling="max", wide=101)
    graph = build_graph(model)
    for node in graph.graph.node:  # as a later version might pool
        for names in (node.input, node.output):
            names[:] = ["otherwise_masked" if name == "masked_states" else name for name in names]
    with pytest.raises(ModelError, match=r"small@1 pools its states in an unknown way; label without evidence"):
        with_attributions(graph, "small@1")
    model.config = model.config.model_copy(update={"pooling": "median"})
    with pytest.raises(ModelError, match=r"no ONNX graph for pooling 'median'; train with --set model.pooling=max"):
        build_graph(model)
