"""Export: trained weights as an ONNX graph, written node by node.

Not traced: PyTorch's exporter never emits `sequence_lens`, so a bidirectional model would be silently wrong on every
padded row. Layouts follow the ONNX specification of the operator LSTM: PyTorch's gate rows i, f, g, o become
i, o, f, c, and the two biases are concatenated. Names of nodes and values are read again from stored graphs by
`pipeline.models.attribution`: keep them.
"""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from pipeline.dataset.tokenizer import UNKNOWN
from pipeline.errors import ModelError
from pipeline.models.graph import GraphBuilder
from pipeline.training.model import PAIR_FACTOR, SMALLEST_NORM, Classifier, LstmLayer, MeanEmbeddingLinear, NgramLinear

OPSET, IR_VERSION = 20, 9  # ONNX Runtime 1.24 and later load them
LOWEST = np.float32(np.finfo(np.float32).min)


def build_graph(model: Classifier, *, metadata: dict[str, str] | None = None, half: bool = False) -> onnx.ModelProto:
    """Return a trained classifier as a checked ONNX model.

    Inputs: `token_ids` int32 [batch, time] (0 past each length, from the vocabulary's size on for unknown words),
    `lengths` int32 [batch], each from 1 to time, and, of a model with character n-grams, `unknown_words` float32
    [1 + unknown words, classes + 1], see `NgramLinear.unknown_rows`. Output: `probabilities` float32 [batch, classes],
    independent of each other in a multi-label model.

    Args:
        model: in evaluation mode, on any device.
        metadata: strings to store in the model.
        half: run embedding and LSTM in half precision, which only CUDA can; all else, pooling included, stays in
            single precision.

    Raises:
        ModelError: the model's pooling has no graph here.
    """
    graph = GraphBuilder(half=half)
    graph.weight("zero", np.array(0, dtype=np.int64))
    # A disabled LSTM would take nearly all of the time and change nothing.
    branches = [] if model.lstm_disabled and (model.average or model.wide) else [_recurrent(graph, model)]
    if model.average is not None:
        branches.append(_mean_embedding(graph, model.average))
    if model.wide is not None:
        branches.append(_ngrams(graph, model.wide))
    logits = graph.add("Sum", branches, "logits")
    if model.multi_label:
        graph.add("Sigmoid", [logits], "probabilities")
    else:
        graph.add("Softmax", [logits], "probabilities", axis=-1)
    has_characters = model.wide is not None and model.wide.characters is not None
    return _checked(graph, model.output.out_features, metadata or {}, unknown_words=has_characters)


def _recurrent(graph: GraphBuilder, model: Classifier) -> str:
    """Add embedding, LSTM, pooling and head, logits [batch, classes]."""
    # `inside`, bool [time, batch, 1]: where a row has a token.
    graph.add("Shape", ["token_ids"], "time_axis", start=1, end=2)
    graph.add("Squeeze", ["time_axis"], "time")
    graph.weight("one", np.array(1, dtype=np.int64))
    graph.add("Range", ["zero", "time", "one"], "places")
    graph.ints("column", -1, 1)
    graph.add("Reshape", ["places", "column"], "places_by_time")
    graph.add("Cast", ["lengths"], "lengths_int64", to=TensorProto.INT64)
    graph.add("Less", ["places_by_time", "lengths_int64"], "inside_2d")
    graph.add("Unsqueeze", ["inside_2d", graph.axis(2)], "inside")
    graph.weight("lstm_vocabulary", np.array(model.embedding.num_embeddings, dtype=np.int32))
    graph.weight("lstm_unknown", np.array(UNKNOWN, dtype=np.int32))
    graph.add("Less", ["token_ids", "lstm_vocabulary"], "lstm_is_known")
    graph.add("Where", ["lstm_is_known", "token_ids", "lstm_unknown"], "lstm_words")
    transposed = graph.add("Transpose", ["lstm_words"], "token_ids_by_time", perm=[1, 0])
    graph.recurrent_weight("embedding", model.embedding.weight)
    states = graph.add("Gather", ["embedding", transposed], "embedded")
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, LstmLayer)
        # A layer's inputs are as wide as the outputs of the one below.
        inputs = states if number == 0 else _by_row(graph, f"lstm{number - 1}", states, layer.forwards.input_size)
        states, last = _lstm(graph, f"lstm{number}", layer, inputs)
    return _head(graph, model, _pool(graph, model, graph.in_single(states), graph.in_single(last)))


def _lstm(graph: GraphBuilder, name: str, layer: LstmLayer, inputs: str) -> tuple[str, str]:
    """Add a layer; return its states [time, directions, batch, hidden] and last ones [directions, batch, hidden]."""
    directions = [layer.forwards] + ([layer.backwards] if layer.backwards is not None else [])
    values = {
        "W": [_gates(lstm, "weight_ih") for lstm in directions],  # [directions, 4 x hidden, inputs]
        "R": [_gates(lstm, "weight_hh") for lstm in directions],  # [directions, 4 x hidden, hidden]
        "B": [np.concatenate([_gates(lstm, "bias_ih"), _gates(lstm, "bias_hh")]) for lstm in directions],
    }
    weights = [graph.recurrent_weight(f"{name}_{kind}", np.stack(value)) for kind, value in values.items()]
    graph.nodes.append(
        helper.make_node(
            "LSTM",
            [inputs, *weights, "lengths"],
            [f"{name}_Y", f"{name}_Y_h"],
            name=name,
            hidden_size=layer.forwards.hidden_size,
            direction="bidirectional" if len(directions) == 2 else "forward",
        )
    )
    return f"{name}_Y", f"{name}_Y_h"


def _gates(lstm: torch.nn.LSTM, name: str) -> np.ndarray:
    """Return a weight's gate rows i, f, g, o [4 x hidden, ...] in the order i, o, f, c of ONNX (g is c)."""
    i, f, g, o = np.split(lstm.get_parameter(f"{name}_l0").detach().cpu().numpy(), 4)
    return np.concatenate([i, o, f, g])


def _by_row(graph: GraphBuilder, name: str, states: str, size: int) -> str:
    """Lay directions side by side: [time, directions, batch, hidden] -> [time, batch, size]."""
    graph.add("Transpose", [states], f"{name}_by_row", perm=[0, 2, 1, 3])
    graph.ints(f"{name}_shape", 0, 0, size)
    return graph.add("Reshape", [f"{name}_by_row", f"{name}_shape"], f"{name}_states")


def _joined(graph: GraphBuilder, directions: str, size: int) -> str:
    """Lay directions side by side: [directions, batch, hidden] -> [batch, size]."""
    graph.add("Transpose", [directions], "pooled_by_row", perm=[1, 0, 2])
    graph.ints("pooled_shape", 0, size)
    return graph.add("Reshape", ["pooled_by_row", "pooled_shape"], "pooled")


def _pool(graph: GraphBuilder, model: Classifier, states: str, last: str) -> str:
    """Add pooling over time: states [time, directions, batch, hidden] to [batch, size].

    Directions are laid side by side after pooling, when there is little left to move.

    Raises:
        ModelError: the pooling has no graph here.
    """
    pooling, size = model.config.pooling, model.state_size
    if pooling == "last":
        return _joined(graph, last, size)
    if pooling == "max":  # states past a row's end are 0, which is more than a negative maximum
        graph.weight("lowest", np.array(LOWEST))
        graph.add("Unsqueeze", ["inside", graph.axis(1)], "inside_directions")
        graph.weight("nothing", np.array(0, dtype=np.float32))
        # An addition takes half the time of a Where and changes no state: past the ends lowest + 0 is lowest.
        graph.add("Where", ["inside_directions", "nothing", "lowest"], "penalty")
        masked = graph.add("Add", [states, "penalty"], "masked_states")
        return _joined(graph, graph.add("ReduceMax", [masked, graph.axis(0)], "highest", keepdims=0), size)
    if pooling == "mean":
        total = _joined(graph, graph.add("ReduceSum", [states, graph.axis(0)], "summed", keepdims=0), size)
        graph.add("Cast", ["lengths"], "lengths_float", to=TensorProto.FLOAT)
        graph.add("Unsqueeze", ["lengths_float", graph.axis(1)], "lengths_by_row")
        return graph.add("Div", [total, "lengths_by_row"], "mean")
    if pooling != "attention" or model.attention is None:
        raise ModelError(f"no ONNX graph for pooling {pooling!r}; train with --set model.pooling=max")
    states = _by_row(graph, "attention", states, size)
    keys = _linear(graph, "attention_key", model.attention.key, states)
    graph.weight("attention_query", model.attention.query.weight.t())
    scores = graph.add("MatMul", [graph.add("Tanh", [keys], "attention_tanh"), "attention_query"], "attention_scores")
    graph.weight("lowest", np.array(LOWEST))
    masked = graph.add("Where", ["inside", scores, "lowest"], "masked_scores")
    weights = graph.add("Softmax", [masked], "attention_weights", axis=0)
    weighted = graph.add("Mul", [weights, states], "weighted_states")
    return graph.add("ReduceSum", [weighted, graph.axis(0)], "pooled", keepdims=0)


def _linear(graph: GraphBuilder, name: str, layer: torch.nn.Linear, inputs: str) -> str:
    graph.weight(f"{name}_weight", layer.weight.t())
    graph.weight(f"{name}_bias", layer.bias)
    product = graph.add("MatMul", [inputs, f"{name}_weight"], f"{name}_product")
    return graph.add("Add", [product, f"{name}_bias"], f"{name}_sum")


def _head(graph: GraphBuilder, model: Classifier, pooled: str) -> str:
    """Add everything between the pooled vectors and the logits; dropout has no effect at scoring time."""
    vectors = pooled
    if model.norm is not None:
        values = (model.norm.weight, model.norm.bias, model.norm.running_mean, model.norm.running_var)
        names = [
            graph.weight(f"norm_{kind}", value)
            for kind, value in zip(("scale", "bias", "mean", "variance"), values, strict=True)
            if value is not None
        ]
        vectors = graph.add("BatchNormalization", [vectors, *names], "normalised", epsilon=model.norm.eps)
    for number, dense in enumerate(model.dense):
        assert isinstance(dense, torch.nn.Linear)
        vectors = graph.add("Relu", [_linear(graph, f"dense{number}", dense, vectors)], f"dense{number}_relu")
    return _linear(graph, "output", model.output, vectors)


def _mean_embedding(graph: GraphBuilder, branch: MeanEmbeddingLinear) -> str:
    """Add the linear branch over mean word vectors, logits [batch, classes].

    A linear map of a mean is the mean of what each word adds: one small table replaces the vectors.
    """
    by_word, start = branch.by_word()
    graph.weight("average_table", by_word)
    graph.weight("average_start", start)
    words = _distinct(graph, _known(graph, "average", len(by_word)), "average_words")
    graph.add("Gather", ["average_table", words], "average_found")  # padding adds nothing
    graph.add("ReduceSum", ["average_found", graph.axis(0)], "average_sum", keepdims=0)
    graph.add("Greater", [words, "zero"], "average_there")
    graph.add("Cast", ["average_there"], "average_ones", to=TensorProto.FLOAT)
    graph.add("ReduceSum", ["average_ones", graph.axis(0)], "average_count", keepdims=0)
    graph.add("Unsqueeze", ["average_count", graph.axis(1)], "average_divisor")
    graph.add("Div", ["average_sum", "average_divisor"], "average_mean")
    return graph.add("Add", ["average_mean", "average_start"], "average_logits")


def _ngrams(graph: GraphBuilder, branch: NgramLinear) -> str:
    """Add the linear branch over word and character n-grams, logits [batch, classes]."""
    graph.weight("ngram_start", branch.start)
    words = _distinct(graph, _words(graph), "ngram_words")
    graph.weight("ngram_vocabulary", np.array(branch.vocabulary_size, dtype=np.int64))
    graph.add("Less", [words, "ngram_vocabulary"], "ngram_is_known")
    graph.add("Where", ["ngram_is_known", words, "zero"], "ngram_known")  # row 0 is 0
    graph.weight("ngram_table", branch.words)
    graph.add("Gather", ["ngram_table", "ngram_known"], "ngram_found")
    graph.add("ReduceSum", ["ngram_found", graph.axis(0)], "ngram_word_total", keepdims=0)
    graph.weight("ngram_sequence_table", branch.sequences)
    sequences = _distinct(graph, _sequences(graph, branch), "ngram_sequences")
    graph.add("Gather", ["ngram_sequence_table", sequences], "ngram_sequences_found")
    graph.add("ReduceSum", ["ngram_sequences_found", graph.axis(0)], "ngram_sequence_total", keepdims=0)
    graph.add("Add", ["ngram_word_total", "ngram_sequence_total"], "ngram_total")
    means = [_normalised(graph, "ngram", branch.classes)]
    if branch.characters is not None:
        graph.weight("ngram_characters_table", branch.characters)
        graph.add("Gather", ["ngram_characters_table", "ngram_known"], "ngram_characters_known")
        graph.weight("ngram_last", np.array(branch.vocabulary_size - 1, dtype=np.int64))
        graph.add("Sub", [words, "ngram_last"], "ngram_number")
        graph.add("Where", ["ngram_is_known", "zero", "ngram_number"], "ngram_unknown")
        graph.add("Gather", ["unknown_words", "ngram_unknown"], "ngram_characters_unknown")
        graph.add("Add", ["ngram_characters_known", "ngram_characters_unknown"], "ngram_characters_found")
        inputs = ["ngram_characters_found", graph.axis(0)]
        graph.add("ReduceSum", inputs, "ngram_characters_total", keepdims=0)
        means.append(_normalised(graph, "ngram_characters", branch.classes))
    return graph.add("Sum", [*means, "ngram_start"], "ngram_logits")


def _sequences(graph: GraphBuilder, branch: NgramLinear) -> str:
    """Add the rows of the word pairs, and triples, that end at each word, int64 [batch, n x time], 0 for none."""
    for name, value in (("factor", PAIR_FACTOR), ("buckets", len(branch.bucket_rows))):
        graph.weight(f"ngram_{name}", np.array(value, dtype=np.int64))
    graph.weight("ngram_bucket_rows", branch.bucket_rows)
    words = _known(graph, "ngram", branch.vocabulary_size)
    graph.add("Equal", [_words(graph), "zero"], "ngram_outside")
    rows, before = [], words
    for kind in ("pair", "triple") if branch.triples else ("pair",):
        graph.add("Mul", [_shifted(graph, before, f"ngram_{kind}_before"), "ngram_factor"], f"ngram_{kind}_product")
        before = graph.add("Add", [f"ngram_{kind}_product", words], f"ngram_{kind}")
        graph.add("Mod", [before, "ngram_buckets"], f"ngram_{kind}_bucket")
        graph.add("Gather", ["ngram_bucket_rows", f"ngram_{kind}_bucket"], f"ngram_{kind}_any_row")
        graph.add("Cast", [f"ngram_{kind}_any_row"], f"ngram_{kind}_cast", to=TensorProto.INT64)
        rows.append(graph.add("Where", ["ngram_outside", "zero", f"ngram_{kind}_cast"], f"ngram_{kind}_row"))
    return rows[0] if len(rows) == 1 else graph.add("Concat", rows, "ngram_sequence_rows", axis=1)


def _normalised(graph: GraphBuilder, name: str, classes: int) -> str:
    """Divide the total [batch, classes + 1] of some features by the root of its last column: [batch, classes]."""
    graph.ints(f"{name}_sizes", classes, 1)
    outputs = [f"{name}_logit_total", f"{name}_square_total"]
    inputs = [f"{name}_total", f"{name}_sizes"]
    graph.nodes.append(helper.make_node("Split", inputs, outputs, name=f"{name}_split", axis=1))
    graph.weight("ngram_smallest", np.array(SMALLEST_NORM, dtype=np.float32))
    graph.add("Max", [f"{name}_square_total", "ngram_smallest"], f"{name}_square")
    graph.add("Sqrt", [f"{name}_square"], f"{name}_divisor")
    return graph.add("Div", [f"{name}_logit_total", f"{name}_divisor"], f"{name}_mean")


def _distinct(graph: GraphBuilder, values: str, name: str) -> str:
    """Return each value of a row once, [batch, number] to [number, batch], 0 instead of repetitions.

    Sorted, equal values of a row are neighbours.
    """
    graph.add("Shape", [values], f"{name}_count", start=1, end=2)
    ordered = f"{name}_ordered"
    graph.nodes.append(
        helper.make_node("TopK", [values, f"{name}_count"], [ordered, f"{name}_order"], name=ordered, axis=1)
    )
    graph.add("Equal", [ordered, _shifted(graph, ordered, f"{name}_last")], f"{name}_repeated")
    graph.add("Where", [f"{name}_repeated", "zero", ordered], f"{name}_distinct")
    return graph.add("Transpose", [f"{name}_distinct"], name, perm=[1, 0])


def _words(graph: GraphBuilder) -> str:
    """Return the token ids as int64 [batch, time]."""
    if not any(node.name == "words" for node in graph.nodes):
        graph.add("Cast", ["token_ids"], "words", to=TensorProto.INT64)
    return "words"


def _known(graph: GraphBuilder, branch: str, size: int) -> str:
    """Return the token ids as int64 [batch, time], that of an unknown word for those from a size on."""
    graph.weight(f"{branch}_size", np.array(size, dtype=np.int64))
    graph.weight("unknown", np.array(UNKNOWN, dtype=np.int64))
    graph.add("Less", [_words(graph), f"{branch}_size"], f"{branch}_known_places")
    return graph.add("Where", [f"{branch}_known_places", "words", "unknown"], f"{branch}_known_words")


def _shifted(graph: GraphBuilder, values: str, name: str) -> str:
    """Return int64 [batch, time] values one position later, 0 in the first."""
    graph.ints("front", 0, 1, 0, 0)
    graph.ints("first", 0)
    graph.ints("but_last", -1)
    graph.add("Pad", [values, "front"], f"{name}_padded")
    return graph.add("Slice", [f"{name}_padded", "first", "but_last", graph.axis(1)], name)


def _checked(graph: GraphBuilder, classes: int, metadata: dict[str, str], *, unknown_words: bool) -> onnx.ModelProto:
    """Return the graph as a model with inputs, outputs and metadata, checked."""
    inputs = [
        helper.make_tensor_value_info("token_ids", TensorProto.INT32, ["batch", "time"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
    ]
    if unknown_words:
        inputs.append(helper.make_tensor_value_info("unknown_words", TensorProto.FLOAT, ["words", classes + 1]))
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes])]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "nightlabel", inputs, outputs, list(graph.weights.values())),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="nightlabel",
    )
    helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    return proto
