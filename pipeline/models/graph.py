"""An ONNX graph under construction."""

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    import torch


def _array(value: "np.ndarray | torch.Tensor") -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()


class GraphBuilder:
    """Nodes and weights of a graph; a node has the name of its output."""

    def __init__(self, *, half: bool = False) -> None:
        self.half = half  # embedding and LSTM in half precision
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node with one output, and return the output's name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, value: "np.ndarray | torch.Tensor") -> str:
        """Add a constant, and return its name; the same name replaces it."""
        self.weights[name] = numpy_helper.from_array(np.array(_array(value), order="C"), name)
        return name

    def ints(self, name: str, *values: int) -> str:
        """Add int64 [values] as a constant, and return its name."""
        return self.weight(name, np.array(values, dtype=np.int64))

    def axis(self, number: int) -> str:
        """Add the number of an axis, as operators take it, and return its name."""
        return self.ints(f"axis_{number}", number)

    def recurrent_weight(self, name: str, value: "np.ndarray | torch.Tensor") -> str:
        """Add a weight of the embedding or the LSTM, in the precision in which they run."""
        return self.weight(name, _array(value).astype(np.float16) if self.half else value)

    def in_single(self, name: str) -> str:
        """Return a value of the embedding or the LSTM in single precision."""
        return self.add("Cast", [name], f"{name}_single", to=TensorProto.FLOAT) if self.half else name
