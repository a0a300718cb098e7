"""Attributions: nodes appended to a scoring graph that split the top class's logit into what each word adds.

Between the states of the LSTM and the logits everything is linear, except for gates that are fixed for a row (max
pooling, ReLU). So a class's logit is exactly the sum over positions of state times gradient; the linear branches are
sums over words and word pairs anyway. The weights of attention count as constants.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.errors import ModelError
from pipeline.models.graph import GraphBuilder

CLASS, CLASS_COLUMN = "attribution_class", "attribution_class_column"  # int64 [batch] and [batch, 1]
# A value that only the graph of this pooling computes. Graphs are stored in bundles: keep the names.
POOLING_MARKS = {"max": "masked_states", "mean": "mean", "attention": "attention_weights"}


def with_attributions(model: onnx.ModelProto, title: str) -> onnx.ModelProto:
    """Return a scoring model, of any variant, that also computes attributions.

    It has two more outputs: `attributions` float32 [batch, kinds, time], what each position adds to the logit of the
    most probable class, and `attribution_start` float32 [batch], that logit without any word. Together they sum to
    the logit. The first kind is words; the second, in a model with word pairs, a word together with the one before
    it (a triple counts as the pair of its last two words). A word that counts once in a text is attributed to its
    first position, and so is a state that is highest at several positions.

    Args:
        model: from `build_graph`, possibly quantized.
        title: the bundle, for messages.

    Raises:
        ModelError: the model has no attributions, or its pooling is unknown.
    """
    values = {name for node in model.graph.node for name in node.output}
    graph = GraphBuilder()
    graph.add("ArgMax", ["probabilities"], CLASS, axis=1, keepdims=0)
    graph.add("Unsqueeze", [CLASS, graph.axis(1)], CLASS_COLUMN)
    words, pairs, totals = [], [], []
    pooling = _pooling(model, values, title) if "pooled" in values else "last"
    if pooling != "last":
        words.append(_lstm_words(graph, model, values, pooling))
        totals.append("attribution_lstm_total")
    if "average_mean" in values:
        words.append(_feature_values(graph, "average_found", "average_divisor", "average_words"))
        totals.append(_of_class(graph, "average_mean"))
    if "ngram_mean" in values:
        words.append(_feature_values(graph, "ngram_found", "ngram_divisor", "ngram_words"))
        pairs.append(_sequence_values(graph))
        totals.append(_of_class(graph, "ngram_mean"))
    if "ngram_characters_mean" in values:
        words.append(_feature_values(graph, "ngram_characters_found", "ngram_characters_divisor", "ngram_words"))
        totals.append(_of_class(graph, "ngram_characters_mean"))
    if "wide_mean" in values:  # of an earlier version
        graph.ints("attribution_kinds", 0, 2, -1)  # words and pairs: [batch, 2 x time] -> [batch, 2, time]
        by_feature = _feature_values(graph, "wide_found", "wide_divisor", "wide_features")
        pairs.append(graph.add("Reshape", [by_feature, "attribution_kinds"], "attribution_by_kind"))
        totals.append(_of_class(graph, "wide_mean"))
    if not words and not pairs:
        raise ModelError(
            f"{title} reads the last state of its LSTM and has no linear branch, so what a word adds to a label is "
            "not known; label without evidence, or train with --set model.pooling=max"
        )
    _sum_up(graph, words, pairs)
    graph.add("Sum", totals, "attribution_total")
    graph.add("Sub", [_of_class(graph, "logits"), "attribution_total"], "attribution_start_column")
    graph.add("Squeeze", ["attribution_start_column", graph.axis(1)], "attribution_start")
    return _extended(model, graph, kinds=2 if pairs else 1)


def _last_lstm(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in reversed(model.graph.node) if "LSTM" in node.op_type)


def _pooling(model: onnx.ModelProto, values: set[str], title: str) -> str:
    """Return how a graph pools its states.

    Raises:
        ModelError: in none of the ways that are known here.
    """
    for pooling, mark in POOLING_MARKS.items():
        if mark in values:
            return pooling
    last = _last_lstm(model).output[1]
    if any({last, f"{last}_single"} & set(node.input) for node in model.graph.node if node.name == "pooled_by_row"):
        return "last"
    raise ModelError(f"{title} pools its states in an unknown way; label without evidence, or train again")


def _lstm_words(graph: GraphBuilder, model: onnx.ModelProto, values: set[str], pooling: str) -> str:
    """Add what each position's state adds to the class's logit, [batch, time], and `attribution_lstm_total`."""
    gradient = _gradient(graph, model, values)
    if pooling == "mean":  # `pooled` is the sum then
        gradient = graph.add("Div", [gradient, "lengths_by_row"], "attribution_share_of_mean")
    graph.add("Mul", [gradient, "pooled"], "attribution_by_unit")
    graph.add("ReduceSum", ["attribution_by_unit", graph.axis(1)], "attribution_lstm_total", keepdims=1)
    if pooling == "max":  # a unit counts at the first position where it is highest
        graph.add("Transpose", ["attribution_highest_places"], "attribution_places_by_row", perm=[1, 0, 2])
        graph.ints("attribution_side_by_side", 0, -1)
        graph.add("Reshape", ["attribution_places_by_row", "attribution_side_by_side"], "attribution_places")
        graph.add("Shape", ["token_ids"], "attribution_shape")
        zero = onnx.helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
        graph.add("ConstantOfShape", ["attribution_shape"], "attribution_zeros", value=zero)
        inputs = ["attribution_zeros", "attribution_places", "attribution_by_unit"]
        return graph.add("ScatterElements", inputs, "attribution_lstm", axis=1, reduction="add")
    if pooling == "attention":
        graph.add("Mul", ["weighted_states", gradient], "attribution_by_state")
        graph.add("ReduceSum", ["attribution_by_state", graph.axis(2)], "attribution_by_time", keepdims=0)
    else:  # the gradient as the states: [batch, size] -> [directions, batch, hidden]
        lstm = _last_lstm(model)
        single = f"{lstm.output[0]}_single"
        graph.ints("attribution_directions", 0, -1, _attribute(lstm, "hidden_size").i)
        graph.add("Reshape", [gradient, "attribution_directions"], "attribution_side_by_side")
        weights = graph.add("Transpose", ["attribution_side_by_side"], "attribution_weights", perm=[1, 0, 2])
        graph.add("Mul", [single if single in values else lstm.output[0], weights], "attribution_by_state")
        graph.add("ReduceSum", ["attribution_by_state", graph.axis(3)], "attribution_by_direction", keepdims=0)
        graph.add("ReduceSum", ["attribution_by_direction", graph.axis(1)], "attribution_by_time", keepdims=0)
    return graph.add("Transpose", ["attribution_by_time"], "attribution_lstm", perm=[1, 0])


def _gradient(graph: GraphBuilder, model: onnx.ModelProto, values: set[str]) -> str:
    """Add the gradient of the class's logit with respect to the pooled states, [batch, size]."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    graph.weight("attribution_output", numpy_helper.to_array(weights["output_weight"]).T)
    gradient = graph.add("Gather", ["attribution_output", CLASS], "attribution_gradient")
    for number in reversed(range(sum(name.startswith("dense") and name.endswith("_relu") for name in values))):
        name = f"attribution_dense{number}"
        graph.weight("attribution_zero", np.array(0, dtype=np.float32))
        graph.add("Greater", [f"dense{number}_relu", "attribution_zero"], f"{name}_open")
        graph.add("Where", [f"{name}_open", gradient, "attribution_zero"], f"{name}_gated")
        gradient = graph.add("Gemm", [f"{name}_gated", f"dense{number}_weight"], name, transB=1)
    norm = next((node for node in model.graph.node if node.op_type == "BatchNormalization"), None)
    if norm is None:
        return gradient
    scale, variance = (numpy_helper.to_array(weights[f"norm_{kind}"]) for kind in ("scale", "variance"))
    graph.weight("attribution_slope", scale / np.sqrt(variance + np.float32(_attribute(norm, "epsilon").f)))
    return graph.add("Mul", [gradient, "attribution_slope"], "attribution_before_norm")


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(attribute for attribute in node.attribute if attribute.name == name)


def _feature_values(graph: GraphBuilder, found: str, divisor: str, features: str) -> str:
    """Add what each feature of a linear branch adds to the class's logit, [batch, features], in the text's order.

    Args:
        graph: to add to.
        found: the value [features, batch, ...] with what each feature adds to each class.
        divisor: the value [batch, 1] by which the sum is divided.
        features: the value [features, batch]; the branch sorted them, and `_order` holds the position each had.
    """
    name = f"attribution_of_{found}"
    graph.add("Shape", [features], f"{name}_shape")
    graph.add("Expand", [CLASS, f"{name}_shape"], f"{name}_classes")
    graph.add("Unsqueeze", [f"{name}_classes", graph.axis(2)], f"{name}_columns")
    graph.add("GatherElements", [found, f"{name}_columns"], f"{name}_found", axis=2)
    graph.add("Squeeze", [f"{name}_found", graph.axis(2)], f"{name}_by_feature")
    graph.add("Transpose", [f"{name}_by_feature"], f"{name}_by_row", perm=[1, 0])
    shares = graph.add("Div", [f"{name}_by_row", divisor], f"{name}_shares")
    return graph.add("ScatterElements", [shares, f"{features}_order", shares], name, axis=1)


def _sequence_values(graph: GraphBuilder) -> str:
    """Add what each word together with those before it adds to the class's logit, as the second kind of two."""
    by_feature = _feature_values(graph, "ngram_sequences_found", "ngram_divisor", "ngram_sequences")
    graph.add("Shape", ["token_ids"], "attribution_time", start=1, end=2)
    graph.ints("attribution_first_sizes", 0, -1)  # pairs, and triples: [batch, n x time] -> [batch, n, time]
    graph.add("Concat", ["attribution_first_sizes", "attribution_time"], "attribution_sequence_shape", axis=0)
    graph.add("Reshape", [by_feature, "attribution_sequence_shape"], "attribution_sequence_lengths")
    graph.add("ReduceSum", ["attribution_sequence_lengths", graph.axis(1)], "attribution_sequences", keepdims=1)
    graph.ints("attribution_no_words", 0, 1, 0, 0, 0, 0)
    return graph.add("Pad", ["attribution_sequences", "attribution_no_words"], "attribution_second_kind")


def _of_class(graph: GraphBuilder, values: str) -> str:
    """Return the class's column [batch, 1] of values [batch, classes]."""
    return graph.add("GatherElements", [values, CLASS_COLUMN], f"attribution_of_{values}", axis=1)


def _sum_up(graph: GraphBuilder, words: Sequence[str], pairs: Sequence[str]) -> None:
    """Add `attributions` [batch, kinds, time] from those of words [batch, time], and of words and pairs."""
    kinds = list(pairs)
    if words:
        graph.add("Sum", list(words), "attribution_words_sum")
        single = graph.add("Unsqueeze", ["attribution_words_sum", graph.axis(1)], "attribution_words")
        if pairs:
            graph.ints("attribution_no_pairs", 0, 0, 0, 0, 1, 0)
            single = graph.add("Pad", [single, "attribution_no_pairs"], "attribution_padded_words")
        kinds.append(single)
    graph.add("Sum", kinds, "attributions")


def _extended(model: onnx.ModelProto, graph: GraphBuilder, kinds: int) -> onnx.ModelProto:
    """Return the model with more nodes; the node `highest` of max pooling gives way to one that returns positions.

    A second pass over all states would cost as much as the first, so the value is gathered from its position.
    """
    argmax = GraphBuilder()
    argmax.add("ArgMax", ["masked_states"], "attribution_highest_rows", axis=0, keepdims=1)
    argmax.add("GatherElements", ["masked_states", "attribution_highest_rows"], "attribution_highest", axis=0)
    argmax.add("Squeeze", ["attribution_highest", argmax.axis(0)], "highest")
    argmax.add("Squeeze", ["attribution_highest_rows", argmax.axis(0)], "attribution_highest_places")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        result.graph.node.extend(argmax.nodes if node.name == "highest" else [node])
    result.graph.node.extend(graph.nodes)
    stored = {weight.name for weight in model.graph.initializer}
    result.graph.initializer.extend(weight for name, weight in graph.weights.items() if name not in stored)
    result.graph.output.extend(
        [
            onnx.helper.make_tensor_value_info("attributions", TensorProto.FLOAT, ["batch", kinds, "time"]),
            onnx.helper.make_tensor_value_info("attribution_start", TensorProto.FLOAT, ["batch"]),
        ]
    )
    return result
