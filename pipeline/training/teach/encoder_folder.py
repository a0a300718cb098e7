"""The files of a sentence encoder in the layout of Hugging Face, checked before anything is loaded.

Pickled weights (`.bin`, `.pt`, `.pkl`) are never read: they can run code.
"""

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import ConfigError, InputError
from pipeline.files import file_digest, read_json, value_digest

MAX_TOKENS = 512  # of a text, even if an encoder takes more: the beginning decides its topic
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
POOLINGS = {"mean_tokens": "mean", "mean_sqrt_len_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
POOLINGS |= {"lasttoken": "last", "mean": "mean", "cls": "cls", "max": "max"}  # mean_sqrt_len is mean once normalised
PADDING_OFFSET = ("roberta", "mpnet", "camembert")  # in these architectures positions begin after the padding id
PACKAGES = ("tokenizers", "transformers")
INSTALL = "pip install 'nightlabel[teach]' (in this repository: uv sync --extra teach)"


@dataclass(frozen=True)
class EncoderFolder:
    """A sentence encoder on disk.

    Attributes:
        path: the folder.
        transformer: the folder with `config.json`, mostly the same.
        tokenizer: path of `tokenizer.json`.
        weights: path of `model.safetensors`, of its index, or of an ONNX file.
        config: the content of `config.json`.
        pooling: "mean", "cls", "max" or "last": how the states of a text's tokens become one vector.
        max_tokens: longer texts are truncated.
    """

    path: Path
    transformer: Path
    tokenizer: Path
    weights: Path
    config: dict[str, Any]
    pooling: str
    max_tokens: int

    @classmethod
    def open(cls, path: Path) -> "EncoderFolder":
        """Find the files of an encoder.

        Raises:
            InputError: the path is not a folder, a file is missing or is not JSON, the weights are pickled only, or
                the pooling is not supported.
        """
        if not path.is_dir():
            raise InputError(f"{path}: is not a folder; give the folder of a sentence encoder, with its config.json")
        modules = _modules(path)
        transformer = path / modules.get("Transformer", "")
        config = _read_object(transformer / "config.json")
        places = [transformer / "tokenizer.json", path / "tokenizer.json"]
        tokenizer = next((file for file in places if file.is_file()), None)
        if tokenizer is None:
            raise InputError(f"{path}: no tokenizer.json; copy it from where the encoder comes from")
        weights = _find_weights(path, transformer)
        pooling = _pooling(path / modules["Pooling"] / "config.json") if "Pooling" in modules else "mean"
        return cls(path, transformer, tokenizer, weights, config, pooling, _max_tokens(transformer, config))

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name

    @property
    def is_onnx(self) -> bool:
        """Whether the weights are an ONNX graph."""
        return self.weights.suffix == ".onnx"

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file that decides an embedding, by its path in the folder."""
        weights = self.weights.parent.glob(f"{self.weights.name}*" if self.is_onnx else "model*.safetensors*")
        settings = [*self.path.glob("*.json"), *self.path.glob("*_Pooling/*.json"), *self.transformer.glob("*.json")]
        files = {file.relative_to(self.path).as_posix(): file for file in (*weights, *settings) if file.is_file()}
        return {name: file_digest(files[name]) for name in sorted(files)}

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the names and digests of these files."""
        return value_digest(self.digests)

    def provenance(self) -> dict[str, Any]:
        """Return what a teacher's manifest records of it."""
        return {
            "name": self.name,
            "sha256": self.digest,
            "files": self.digests,
            "weights": self.weights.relative_to(self.path).as_posix(),
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
        }


def check_packages() -> None:
    """Check that the libraries that read encoders are installed.

    Raises:
        ConfigError: one is not; says how to install it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"nightlabel teach needs {' and '.join(missing)}: {INSTALL}")


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, shortened."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _read_object(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object.

    Raises:
        InputError: it is missing, or holds something else.
    """
    try:
        value = read_json(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); copy it from where the encoder comes from"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({first_line(error)}); copy the file again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not a JSON object; copy the file again")
    return value


def _modules(path: Path) -> dict[str, str]:
    """Return the folder of each module that the modules.json of sentence-transformers lists, by the module's kind.

    Raises:
        InputError: it is damaged, or lists other modules than a transformer, a pooling and a normalisation.
    """
    file = path / "modules.json"
    if not file.is_file():
        return {}
    try:
        modules = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in read_json(file)}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: is not a list of modules ({first_line(error)}); copy the file again") from error
    for kind, folder in modules.items():
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise InputError(
                f"{file}: the module {kind} is not supported; choose an encoder of a transformer and a pooling"
            )
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
            raise InputError(f"{file}: {folder!r} is outside of the folder; copy the file again")
    return modules


def _pooling(path: Path) -> str:
    """Return the pooling that a 1_Pooling/config.json chooses.

    Raises:
        InputError: it cannot be read, or chooses none or several, or one that is not supported.
    """
    config = _read_object(path)
    chosen = [name.removeprefix("pooling_mode_") for name, value in config.items() if value is True]
    modes = config.get("pooling_mode", [mode for mode in chosen if mode != "include_prompt"])
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLINGS:
        listed = ", ".join(map(str, modes)) or "none"
        raise InputError(f"{path}: pooling {listed} is not supported; choose an encoder with mean, cls, max or last")
    return POOLINGS[modes[0]]


def _find_weights(path: Path, transformer: Path) -> Path:
    """Return the safetensors file of a folder, or its ONNX file.

    Raises:
        InputError: there is neither, or there are several ONNX files.
    """
    index = transformer / "model.safetensors.index.json"
    onnx = [folder / name for folder in (transformer, path) for name in ("model.onnx", "onnx/model.onnx")]
    file = next((file for file in (transformer / "model.safetensors", index, *onnx) if file.is_file()), None)
    if file == index:
        _check_shards(index)
    if file is not None:
        return file
    graphs = sorted({*path.glob("*.onnx"), *path.glob("onnx/*.onnx")})
    if len(graphs) > 1:
        listed = ", ".join(graph.relative_to(path).as_posix() for graph in graphs[:5])
        raise InputError(f"{path}: several ONNX files ({listed}); rename the one to use to model.onnx")
    if graphs:
        return graphs[0]
    pickled = sorted(file for pattern in PICKLED for file in {*path.glob(pattern), *transformer.glob(pattern)})
    if pickled:
        raise InputError(
            f"{pickled[0]}: pickled weights can run code and are not read; convert them to model.safetensors, for "
            "example by AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER) where you trust them"
        )
    raise InputError(f"{path}: no weights; copy model.safetensors or model.onnx into it")


def _check_shards(index: Path) -> None:
    """Check that the weights of an index lie in safetensors files beside it.

    Raises:
        InputError: one does not.
    """
    shards = _read_object(index).get("weight_map")
    for name in set(map(str, shards.values())) if isinstance(shards, dict) else {"weight_map is missing"}:
        if PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index}: {name!r} is not a safetensors file beside it; copy the folder again")


def _max_tokens(transformer: Path, config: dict[str, Any]) -> int:
    """Return the longest input of an encoder in tokens, at most `MAX_TOKENS`."""
    limits = [MAX_TOKENS]
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int):
        offset = any(name in str(config.get("model_type")) for name in PADDING_OFFSET)
        limits.append(positions - (1 + (config.get("pad_token_id") or 0) if offset else 0))
    for name, field in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (transformer / name).is_file():
            limit = _read_object(transformer / name).get(field)
            if isinstance(limit, int):
                limits.append(limit)
    return max(1, min(limits))
