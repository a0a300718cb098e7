"""An encoder from a folder embeds as its files say, or is refused in one line that says what to do."""

import importlib.util
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_tools import HIDDEN, choose_pooling, write_encoder, write_json, write_onnx_encoder
from numpy.typing import NDArray

from pipeline.errors import ConfigError, InputError
from pipeline.files import read_json
from pipeline.training.teach import encoder_folder
from pipeline.training.teach.encoder_folder import EncoderFolder
from pipeline.training.teach.sentence_encoder import SentenceEncoder, pool

CPU = torch.device("cpu")
TEXTS = ["day 3 was bright", "", "wet", "unheard words", "long " * 200, "day 3 was bright and long"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("encoders")
    write_encoder(root / "bert")
    write_onnx_encoder(root / "onnx")
    return root


@pytest.fixture(params=["bert", "onnx"])
def folder(request: pytest.FixtureRequest, made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / request.param, tmp_path / request.param))


@pytest.fixture
def bert(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "bert", tmp_path / "bert"))


def embed(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    return SentenceEncoder(EncoderFolder.open(folder), CPU).embed(texts)


def states_of(folder: Path, text: str) -> NDArray[np.float32]:
    """Return the states [tokens, size] of one text by transformers alone."""
    from tokenizers import Tokenizer
    from transformers import BertModel

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with torch.inference_mode():
        model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
        states: NDArray[np.float32] = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0].numpy()
    return states


def test_embeddings_have_length_one_and_do_not_depend_on_the_other_texts(folder: Path) -> None:
    together = embed(folder, TEXTS)
    assert together.shape == (len(TEXTS), HIDDEN)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embed(folder, [text]) for text in reversed(TEXTS)])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("modes", "reduce"),
    [
        ({}, lambda states: states.mean(axis=0)),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, lambda states: states.mean(axis=0)),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, lambda states: states[0]),
        ({"pooling_mode_max_tokens": True}, lambda states: states.max(axis=0)),
        ({"pooling_mode": "lasttoken"}, lambda states: states[-1]),
    ],
)
def test_the_files_of_the_folder_decide_the_pooling(
    bert: Path, modes: dict[str, Any], reduce: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> None:
    if modes:
        choose_pooling(bert, **modes)
    expected = np.stack([reduce(states_of(bert, text)) for text in TEXTS[:3]])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(bert, TEXTS[:3]), expected, atol=1e-5)


def test_padding_never_takes_part_in_pooling() -> None:
    states = torch.tensor([[[1.0], [3.0], [99.0]], [[-5.0], [-1.0], [-3.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    pooled = {name: pool(states, mask, name).flatten().tolist() for name in ("mean", "cls", "max", "last")}
    assert pooled == {"mean": [2.0, -3.0], "cls": [1.0, -5.0], "max": [3.0, -1.0], "last": [3.0, -3.0]}
    assert pool(states[:, 0], mask, "mean").flatten().tolist() == [1.0, -5.0]  # a graph that pools by itself


def test_the_beginning_of_a_long_text_decides(bert: Path) -> None:
    write_json(bert / "sentence_bert_config.json", {"max_seq_length": 5})
    first, second = embed(bert, ["day 3 was bright", "day 3 was wet"])
    np.testing.assert_array_equal(first, second)  # 3 words and 2 special tokens
    (bert / "sentence_bert_config.json").unlink()
    assert EncoderFolder.open(bert).max_tokens == 64  # as many as it has positions


def test_an_encoder_is_loaded_without_the_network(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network is used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert embed(bert, TEXTS).shape == (len(TEXTS), HIDDEN)


def test_the_digest_depends_on_every_file_that_decides(folder: Path) -> None:
    digests = {EncoderFolder.open(folder).digest}
    for name in ("config.json", "tokenizer.json"):
        value = read_json(folder / name)
        write_json(folder / name, {**value, "more": 1})
        digests.add(EncoderFolder.open(folder).digest)
    weights = EncoderFolder.open(folder).weights
    weights.write_bytes(weights.read_bytes() + b"\0")
    digests.add(EncoderFolder.open(folder).digest)
    choose_pooling(folder, pooling_mode="max")
    digests.add(EncoderFolder.open(folder).digest)
    assert len(digests) == 5
    (folder / "README.md").write_text("not read")
    assert EncoderFolder.open(folder).digest in digests


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / name, {**read_json(folder / name), **changes})


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])  # type: ignore[func-returns-value]


def change_header(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[20] ^= 0xFF
    (folder / "model.safetensors").write_bytes(content)


def not_finite(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][:] = np.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def other_weights(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3, np.float32)}, folder / "model.safetensors", {"format": "pt"})


def pickled_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "pytorch_model-00001.bin"}})


def two_graphs(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("a.onnx", "b.onnx"):
        (folder / name).write_bytes(b"")


def with_a_dense_layer(folder: Path) -> None:
    write_json(folder / "modules.json", [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "bert: no tokenizer.json; copy it"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: cannot be read (No such file or directory)"),
        (lambda folder: (folder / "model.safetensors").unlink(), "bert: no weights; copy model.safetensors"),
        (pickled_only, "pytorch_model.bin: pickled weights can run code and are not read; convert them"),
        (pickled_shards, "'pytorch_model-00001.bin' is not a safetensors file beside it"),
        (two_graphs, "bert: several ONNX files (a.onnx, b.onnx); rename the one to use"),
        (cut("config.json", 20), "config.json: is not JSON ("),
        (lambda folder: write_json(folder / "config.json", []), "config.json: is not a JSON object"),
        (cut("tokenizer.json", 50), "tokenizer.json: is not a tokenizer ("),
        (cut("model.safetensors", 5000), "model.safetensors: cannot be read ("),
        (change_header, "model.safetensors: cannot be read ("),
        (not_finite, "model.safetensors: its embeddings are not finite numbers"),
        (other_weights, "weights of bert are missing, the first is embeddings.LayerNorm.bias; copy the weights"),
        (edit("config.json", model_type="unheard-of"), "config.json: unknown architecture 'unheard-of' ("),
        (edit("config.json", model_type=None), "config.json: unknown architecture None ("),
        (
            lambda folder: write_json(folder / "config.json", {"model_type": "t5"}),
            "t5 is not a sentence encoder: it also has a decoder",
        ),
        (edit("config.json", hidden_size=16), "model.safetensors: cannot be read ("),
        (edit("config.json", num_attention_heads=5), "model.safetensors: cannot be read ("),
        (edit("config.json", vocab_size=9), "tokenizer.json: has 137 tokens, the model 9; copy the tokenizer"),
        (with_a_dense_layer, "modules.json: the module Dense is not supported"),
        (lambda folder: write_json(folder / "modules.json", [1]), "modules.json: is not a list of modules ("),
        (
            lambda folder: write_json(folder / "modules.json", [{"type": "x.Pooling", "path": "../1_Pooling"}]),
            "modules.json: '../1_Pooling' is outside of the folder",
        ),
        (lambda folder: choose_pooling(folder, pooling_mode_weightedmean_tokens=True), "weightedmean_tokens is not"),
        (choose_pooling, "pooling none is not supported"),
    ],
)
def test_a_folder_that_is_no_encoder_is_refused(bert: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(bert)
    with pytest.raises(InputError) as refused:
        embed(bert, TEXTS)
    assert message in str(refused.value)
    assert str(bert) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"not a graph", None])
def test_a_damaged_graph_is_refused(made: Path, tmp_path: Path, content: bytes | None) -> None:
    folder = Path(shutil.copytree(made / "onnx", tmp_path / "onnx"))
    graph = folder / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:2000] if content is None else content)
    with pytest.raises(InputError, match=r"model\.onnx: is not an ONNX graph \(") as refused:
        embed(folder, TEXTS)
    assert len(str(refused.value).splitlines()) == 1


def test_a_graph_with_other_inputs_is_refused(made: Path, tmp_path: Path) -> None:
    import onnx

    folder = Path(shutil.copytree(made / "onnx", tmp_path / "onnx"))
    model = onnx.load(folder / "onnx" / "model.onnx")
    model.graph.input[0].name = model.graph.node[0].input[1] = "pixels"
    onnx.save(model, folder / "onnx" / "model.onnx")
    with pytest.raises(InputError, match="the inputs are pixels, attention_mask; export the encoder with input_ids"):
        embed(folder, TEXTS)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path / "file"):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(InputError, match="is not a folder; give the folder of a sentence encoder"):
            EncoderFolder.open(path)


def test_missing_packages_are_named_with_the_command_that_installs_them(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        encoder_folder.importlib.util, "find_spec", lambda name: None if name == "transformers" else find_spec(name)
    )
    with pytest.raises(ConfigError, match=r"teach needs transformers: pip install 'nightlabel\[teach\]'"):
        embed(bert, TEXTS)
