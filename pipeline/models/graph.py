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
    """Nodes and weights under construction."""

    def __init__(self, *, half: bool = False) -> None:
        self.half = half  # embedding and LSTM in half precision
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}

    def recurrent_weight(self, name: str, value: "np.ndarray | torch.Tensor") -> str:
        """Add a weight of the embedding or the LSTM, in the precision they run in."""
        return self.weight(name, _array(value).astype(np.float16) if self.half else value)

    def in_single(self, name: str) -> str:
        """Return a value of the embedding or the LSTM in single precision."""
        return self.add("Cast", [name], f"{name}_single", to=TensorProto.FLOAT) if self.half else name

    def weight(self, name: str, value: "np.ndarray | torch.Tensor") -> str:
        self.weights[name] = numpy_helper.from_array(np.array(_array(value), order="C"), name)
        return name

    def axis(self, number: int) -> str:
        return self.ints(f"axis_{number}", number)

    def ints(self, name: str, *values: int) -> str:
        return self.weight(name, np.array(values, dtype=np.int64))

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output
