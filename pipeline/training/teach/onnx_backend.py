"""Runs the ONNX graph of a sentence encoder: a foreign model, so none of the engines of `pipeline.models` fits it."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError
from pipeline.training.teach.encoder_folder import first_line

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
ERRORS_ONLY = 3  # ONNX Runtime's log level
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class OnnxBackend:
    """An ONNX graph from token ids to the states of the tokens, or to the embedding of each text.

    Args:
        path: the graph; its external data, if any, lies beside it.
        device: where to run it; without CUDA in ONNX Runtime on the CPU, on all cores.

    Raises:
        InputError: the file is damaged, or the graph has other inputs or outputs.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        import onnxruntime

        providers = [CPU]
        if device.type == "cuda" and CUDA in onnxruntime.get_available_providers():
            onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
            providers.insert(0, CUDA)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # ONNX Runtime has no common class of errors
            raise InputError(f"{path}: is not an ONNX graph ({first_line(error)}); copy the file again") from error
        self._inputs = [node.name for node in self._session.get_inputs()]
        if not {"input_ids", "attention_mask"} <= set(self._inputs) <= set(INPUTS):
            raise InputError(
                f"{path}: the inputs are {', '.join(self._inputs)}; export the encoder with input_ids, attention_mask"
            )
        outputs = {node.name: len(node.shape) for node in self._session.get_outputs()}
        states = [name for name, rank in outputs.items() if rank == 3]
        texts = [name for name, rank in outputs.items() if rank == 2]
        if not states and not texts:
            raise InputError(f"{path}: no output holds token states; export the encoder with last_hidden_state")
        self._output = "last_hidden_state" if "last_hidden_state" in states else (states or texts)[0]

    def __call__(self, token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Tensor:
        """Return the states [batch, time, size], or embeddings [batch, size] if the graph pools by itself.

        Args:
            token_ids: [batch, time].
            mask: [batch, time], 1 for tokens and 0 for padding.
        """
        positions = np.broadcast_to(np.arange(token_ids.shape[1]), token_ids.shape)
        values = (token_ids, mask, np.zeros_like(token_ids), positions)
        feed = {name: value for name, value in zip(INPUTS, values, strict=True) if name in self._inputs}
        return torch.from_numpy(self._session.run([self._output], feed)[0]).float()
