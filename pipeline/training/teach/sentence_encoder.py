"""A sentence encoder: texts to L2-normalised embeddings, in minibatches of about equal length.

Weights are read by `transformers` from safetensors, without custom code and without the network, or run as an ONNX
graph. Pooling follows the files of sentence-transformers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset.minibatches import plan_minibatches
from pipeline.errors import InputError
from pipeline.training.parallel import has_bfloat16
from pipeline.training.teach.encoder_folder import EncoderFolder, check_packages, first_line
from pipeline.training.teach.onnx_backend import OnnxBackend

BATCH_TOKENS = {"cpu": 4_096, "cuda": 131_072}  # most token slots in a minibatch
UNUSED_WEIGHTS = ("pooler.", "lm_head.", "cls.")  # not needed for token states, so they may be missing
SMALLEST_NORM = 1e-9

# Token ids int64 [batch, time] and their mask to states [batch, time, size], or embeddings [batch, size].
Backend = Callable[[NDArray[np.int64], NDArray[np.int64]], Tensor]


class SentenceEncoder:
    """Embeds texts.

    Args:
        folder: the files.
        device: where to run the model.

    Raises:
        ConfigError: the packages of the extra `teach` are not installed.
        InputError: a file is damaged, the architecture is unknown, or weights are missing.
    """

    def __init__(self, folder: EncoderFolder, device: torch.device) -> None:
        check_packages()
        self.folder, self.device = folder, device
        self._tokenizer = _load_tokenizer(folder)
        self._backend: Backend = (
            OnnxBackend(folder.weights, device) if folder.is_onnx else _TransformersBackend(folder, device)
        )
        self.size = self.embed(["a"]).shape[1]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the embeddings of texts, float32 [texts, size], each of length 1.

        Raises:
            InputError: the model cannot take the texts, or returns numbers that are not finite.
        """
        token_ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        lengths = np.array([len(ids) for ids in token_ids], dtype=np.int64)
        embeddings: list[Any] = [None] * len(texts)
        for rows in plan_minibatches(lengths, batch_tokens=BATCH_TOKENS[self.device.type]):
            for row, vector in zip(rows, self._embed([token_ids[row] for row in rows]), strict=True):
                embeddings[row] = vector
        return np.stack(embeddings)

    @torch.inference_mode()
    def _embed(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Embed one minibatch."""
        longest = max(1, *map(len, token_ids))
        padding = self.folder.config.get("pad_token_id")
        padded = np.full((len(token_ids), longest), padding if isinstance(padding, int) else 0, dtype=np.int64)
        mask = np.zeros_like(padded)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)], mask[row, : len(ids)] = ids, 1
        try:
            states = self._backend(padded, mask)
        except (RuntimeError, IndexError, ValueError) as error:  # also what ONNX Runtime raises
            raise InputError(
                f"{self.folder.weights}: cannot run ({first_line(error)}); copy the folder again"
            ) from error
        vectors = pool(states, torch.from_numpy(mask).to(states.device), self.folder.pooling)
        vectors = torch.nn.functional.normalize(vectors, dim=1, eps=SMALLEST_NORM)
        if not bool(torch.isfinite(vectors).all()):
            raise InputError(f"{self.folder.weights}: its embeddings are not finite numbers; copy the file again")
        result: NDArray[np.float32] = vectors.cpu().numpy()
        return result


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Return one vector for each text, float32 [batch, size].

    Args:
        states: [batch, time, size]; embeddings [batch, size] are returned as they are.
        mask: [batch, time], 1 for tokens and 0 for padding.
        pooling: "mean", "cls", "max" or "last".
    """
    states = states.float()
    if states.dim() == 2:
        return states
    inside = mask[..., None].bool()
    if pooling == "mean":
        return (states * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)
    if pooling == "max":
        return states.masked_fill(~inside, torch.finfo(states.dtype).min).amax(dim=1)
    last = (mask.sum(dim=1) - 1).clamp(min=0)
    return states[torch.arange(len(states)), last if pooling == "last" else 0]


def _load_tokenizer(folder: EncoderFolder) -> Any:
    """Return the tokenizer, truncating but not padding.

    Raises:
        InputError: the file is damaged, or has more words than the model.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder.tokenizer))
    except Exception as error:  # the class that tokenizers raises
        raise InputError(
            f"{folder.tokenizer}: is not a tokenizer ({first_line(error)}); copy the file again"
        ) from error
    tokenizer.enable_truncation(folder.max_tokens)
    tokenizer.no_padding()
    words = folder.config.get("vocab_size")
    if isinstance(words, int) and max(tokenizer.get_vocab().values(), default=0) >= words:
        raise InputError(
            f"{folder.tokenizer}: has {tokenizer.get_vocab_size():,} tokens, the model {words:,}; "
            "copy the tokenizer that belongs to the model"
        )
    return tokenizer


class _TransformersBackend:
    """Runs a model of the transformers library."""

    def __init__(self, folder: EncoderFolder, device: torch.device) -> None:
        self._model, self._device = _load_transformer(folder).to(device), device

    def __call__(self, token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Tensor:
        use_bfloat16 = self._device.type == "cuda" and has_bfloat16(self._device)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=use_bfloat16):
            output = self._model(
                input_ids=torch.from_numpy(token_ids).to(self._device),
                attention_mask=torch.from_numpy(mask).to(self._device),
            )
        states: Tensor = output.last_hidden_state
        return states


def _load_transformer(folder: EncoderFolder) -> Any:
    """Return a model with the weights of a safetensors file.

    Raises:
        InputError: the architecture is unknown or needs code of its own, or the weights do not fit it.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder.transformer, **options)
    except Exception as error:  # whatever the values in config.json make the library raise
        raise InputError(
            f"{folder.transformer / 'config.json'}: unknown architecture {folder.config.get('model_type')!r} "
            f"({first_line(error)}); choose an encoder that transformers knows without code of its own"
        ) from error
    if config.is_encoder_decoder:
        raise InputError(f"{folder.path}: {config.model_type} is not a sentence encoder: it also has a decoder")
    try:
        model, loading = AutoModel.from_pretrained(
            folder.transformer,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **options,
        )
    except Exception as error:  # safetensors, transformers and torch each raise their own
        raise InputError(f"{folder.weights}: cannot be read ({first_line(error)}); copy the file again") from error
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith(UNUSED_WEIGHTS))
    if missing:  # transformers would leave them random
        raise InputError(
            f"{folder.weights}: {len(missing):,} weights of {config.model_type} are missing, the first is "
            f"{missing[0]}; copy the weights that belong to config.json"
        )
    return model.eval()
