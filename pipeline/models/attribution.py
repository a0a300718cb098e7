"""What each word adds to the logit of the likeliest class: nodes appended to a scoring model.

Between the states of the LSTM and the logits everything is linear, but for gates that are open or closed for a row
(max pooling, ReLU). So a class's logit is exactly a sum over the places of a text, of state times gradient; the
linear branches are sums over words and word pairs anyway. The weights of attention count as given.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.errors import ModelError
from pipeline.models.graph import GraphBuilder

CLASS, CLASS_COLUMN = "attribution_class", "attribution_class_column"  # int64 [batch] and [batch, 1]


def with_attributions(model: onnx.ModelProto, title: str) -> onnx.ModelProto:
    """Return a scoring model, in any precision, that also tells what its logits are made of.

    It has two outputs more: `attributions` float32 [batch, kinds, time], what each place adds to the logit of the
    class with the highest probability, and `attribution_start` float32 [batch], what that logit is without any
    word. Together they are the logit. Of the kinds the first are words, and the second, in a model of word pairs, a
    word together with the one before it. What counts once in a text is told where it stands first, and so is a state
    that is highest at several places.

    Args:
        model: as `build_graph` wrote it, or quantised.
        title: the bundle, for messages.

    Raises:
        ModelError: no word's part in a logit is known.
    """
    there = {name for node in model.graph.node for name in node.output}
    graph = GraphBuilder()
    graph.add("ArgMax", ["probabilities"], CLASS, axis=1, keepdims=0)
    graph.add("Unsqueeze", [CLASS, graph.axis(1)], CLASS_COLUMN)
    words, pairs, totals = [], [], []
    if "pooled" in there and _pooling(there):
        words.append(_recurrent(graph, model, there))
        totals.append("attribution_lstm_total")
    if "average_mean" in there:
        words.append(_linear(graph, "average", "average_words"))
        totals.append(_of_class(graph, "average_mean"))
    if "wide_mean" in there:
        pairs.append(_by_kind(graph, _linear(graph, "wide", "wide_features")))
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
    return _appended(model, graph, kinds=2 if pairs else 1)


def _pooling(there: set[str]) -> str | None:
    """Return how the states are pooled; None for the last state, which is no sum over places."""
    marks = {"max": "masked_states", "mean": "mean", "attention": "attention_weights"}
    return next((pooling for pooling, mark in marks.items() if mark in there), None)


def _recurrent(graph: GraphBuilder, model: onnx.ModelProto, there: set[str]) -> str:
    """Add what the states at each place add to the class's logit, [batch, time], and `attribution_lstm_total`."""
    gradient = _gradient(graph, model, there)
    pooling = _pooling(there)
    if pooling == "mean":  # `pooled` is the sum then
        gradient = graph.add("Div", [gradient, "lengths_by_row"], "attribution_share_of_mean")
    graph.add("Mul", [gradient, "pooled"], "attribution_by_unit")
    graph.add("ReduceSum", ["attribution_by_unit", graph.axis(1)], "attribution_lstm_total", keepdims=1)
    if pooling == "max":
        return _scattered(graph)
    if pooling == "attention":
        graph.add("Mul", ["weighted_states", gradient], "attribution_by_state")
        graph.add("ReduceSum", ["attribution_by_state", graph.axis(2)], "attribution_by_time", keepdims=0)
    else:
        lstm = _last_lstm(model)
        single = f"{lstm.output[0]}_single"
        weights = _by_direction(graph, gradient, _attribute(lstm, "hidden_size").i)
        graph.add("Mul", [single if single in there else lstm.output[0], weights], "attribution_by_state")
        graph.add("ReduceSum", ["attribution_by_state", graph.axis(3)], "attribution_by_direction", keepdims=0)
        graph.add("ReduceSum", ["attribution_by_direction", graph.axis(1)], "attribution_by_time", keepdims=0)
    return graph.add("Transpose", ["attribution_by_time"], "attribution_lstm", perm=[1, 0])


def _last_lstm(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in reversed(model.graph.node) if "LSTM" in node.op_type)


def _scattered(graph: GraphBuilder) -> str:
    """Return what each unit adds at the place where it is highest, the first of several, [batch, time]."""
    graph.add("Transpose", ["attribution_highest_places"], "attribution_places_by_row", perm=[1, 0, 2])
    graph.ints("attribution_side_by_side", 0, -1)
    graph.add("Reshape", ["attribution_places_by_row", "attribution_side_by_side"], "attribution_places")
    graph.add("Shape", ["token_ids"], "attribution_shape")
    nothing = onnx.helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    graph.add("ConstantOfShape", ["attribution_shape"], "attribution_nowhere", value=nothing)
    inputs = ["attribution_nowhere", "attribution_places", "attribution_by_unit"]
    return graph.add("ScatterElements", inputs, "attribution_lstm", axis=1, reduction="add")


def _gradient(graph: GraphBuilder, model: onnx.ModelProto, there: set[str]) -> str:
    """Add the gradient of the class's logit with respect to the pooled states, [batch, size]."""
    values = {weight.name: weight for weight in model.graph.initializer}
    graph.weight("attribution_output", numpy_helper.to_array(values["output_weight"]).T)
    gradient = graph.add("Gather", ["attribution_output", CLASS], "attribution_gradient")
    for number in reversed(range(sum(name.startswith("dense") and name.endswith("_relu") for name in there))):
        name = f"attribution_dense{number}"
        graph.weight("attribution_zero", np.array(0, dtype=np.float32))
        graph.add("Greater", [f"dense{number}_relu", "attribution_zero"], f"{name}_open")
        graph.add("Where", [f"{name}_open", gradient, "attribution_zero"], f"{name}_gated")
        gradient = graph.add("Gemm", [f"{name}_gated", f"dense{number}_weight"], name, transB=1)
    norm = next((node for node in model.graph.node if node.op_type == "BatchNormalization"), None)
    if norm is None:
        return gradient
    scale, variance = (numpy_helper.to_array(values[f"norm_{kind}"]) for kind in ("scale", "variance"))
    graph.weight("attribution_slope", scale / np.sqrt(variance + np.float32(_attribute(norm, "epsilon").f)))
    return graph.add("Mul", [gradient, "attribution_slope"], "attribution_before_norm")


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(attribute for attribute in node.attribute if attribute.name == name)


def _by_direction(graph: GraphBuilder, values: str, hidden: int) -> str:
    """Return values [batch, size] as [directions, batch, hidden], as the states lie."""
    graph.ints("attribution_directions", 0, -1, hidden)
    graph.add("Reshape", [values, "attribution_directions"], "attribution_side_by_side")
    return graph.add("Transpose", ["attribution_side_by_side"], "attribution_weights", perm=[1, 0, 2])


def _linear(graph: GraphBuilder, branch: str, features: str) -> str:
    """Add what each feature of a linear branch adds to the class's logit, in the features' places, [batch, places].

    The branch has sorted its features, and `_order` is where each of them stood.
    """
    name = f"attribution_{branch}"
    graph.add("Shape", [features], f"{name}_shape")
    graph.add("Expand", [CLASS, f"{name}_shape"], f"{name}_classes")
    graph.add("Unsqueeze", [f"{name}_classes", graph.axis(2)], f"{name}_columns")
    graph.add("GatherElements", [f"{branch}_found", f"{name}_columns"], f"{name}_found", axis=2)
    graph.add("Squeeze", [f"{name}_found", graph.axis(2)], f"{name}_by_feature")
    graph.add("Transpose", [f"{name}_by_feature"], f"{name}_by_row", perm=[1, 0])
    parts = graph.add("Div", [f"{name}_by_row", f"{branch}_divisor"], f"{name}_parts")
    return graph.add("ScatterElements", [parts, f"{features}_order", parts], name, axis=1)


def _by_kind(graph: GraphBuilder, values: str) -> str:
    """Return words and pairs, one after the other [batch, 2 x time], as [batch, 2, time]."""
    graph.ints("attribution_kinds", 0, 2, -1)
    return graph.add("Reshape", [values, "attribution_kinds"], "attribution_by_kind")


def _of_class(graph: GraphBuilder, values: str) -> str:
    """Return the class's column [batch, 1] of values [batch, classes]."""
    return graph.add("GatherElements", [values, CLASS_COLUMN], f"attribution_of_{values}", axis=1)


def _sum_up(graph: GraphBuilder, words: Sequence[str], pairs: Sequence[str]) -> None:
    """Add `attributions` [batch, kinds, time]: those of words [batch, time], and of words and pairs."""
    kinds = list(pairs)
    if words:
        graph.add("Sum", list(words), "attribution_words_sum")
        single = graph.add("Unsqueeze", ["attribution_words_sum", graph.axis(1)], "attribution_words")
        if pairs:
            graph.ints("attribution_no_pairs", 0, 0, 0, 0, 1, 0)
            single = graph.add("Pad", [single, "attribution_no_pairs"], "attribution_padded_words")
        kinds.append(single)
    graph.add("Sum", kinds, "attributions")


def _with_places(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the nodes with one that finds where each unit is highest, instead of the one that finds how high.

    A second pass over all states would cost as much as the first: the value is taken from where it was found.
    """
    graph = GraphBuilder()
    graph.add("ArgMax", ["masked_states"], "attribution_highest_rows", axis=0, keepdims=1)
    graph.add("GatherElements", ["masked_states", "attribution_highest_rows"], "attribution_highest", axis=0)
    graph.add("Squeeze", ["attribution_highest", graph.axis(0)], "highest")
    graph.add("Squeeze", ["attribution_highest_rows", graph.axis(0)], "attribution_highest_places")
    return [new for node in nodes for new in (graph.nodes if node.name == "highest" else [node])]


def _appended(model: onnx.ModelProto, graph: GraphBuilder, kinds: int) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    there = {weight.name for weight in model.graph.initializer}
    nodes = _with_places(model.graph.node)
    del result.graph.node[:]
    result.graph.node.extend([*nodes, *graph.nodes])
    result.graph.initializer.extend(weight for name, weight in graph.weights.items() if name not in there)
    result.graph.output.extend(
        [
            onnx.helper.make_tensor_value_info("attributions", TensorProto.FLOAT, ["batch", kinds, "time"]),
            onnx.helper.make_tensor_value_info("attribution_start", TensorProto.FLOAT, ["batch"]),
        ]
    )
    return result
