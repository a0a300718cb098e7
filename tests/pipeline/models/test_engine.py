"""Batches on a device: bound or not, the same numbers; few shapes; the truth about where the LSTM runs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from test_onnx_graph import ragged_texts, trained_model

from pipeline.errors import DeviceError, DeviceMemoryError
from pipeline.models.engine import BoundRunner, Engine, HostRunner, bucket_length, pad_time, temporary_engine
from pipeline.models.onnx_graph import build_graph
from pipeline.models.session import (
    CPU,
    CUDA,
    Device,
    check_placement,
    cuda_options,
    lstm_providers,
    open_session,
    visible_gpus,
)

HERE = Device(CPU, "this processor")
SMI = """NVIDIA H200, 580.65.06, 143771, GPU-aaa
NVIDIA H200, 580.65.06, 143771, GPU-bbb
NVIDIA L4, 580.65.06, 23034, GPU-ccc
"""


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    onnx.save(build_graph(trained_model(wide=101)), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_bound_inputs_padded_to_a_bucket_give_the_same_numbers(model_path: Path) -> None:
    session = open_session(model_path, HERE)
    texts = ragged_texts()
    token_ids, lengths = texts.tokens.pad(np.arange(40))
    bound = BoundRunner(session, "cpu").run(token_ids, lengths)
    assert np.array_equal(bound, HostRunner(session).run(token_ids, lengths))


def test_buckets_are_few_and_cost_little() -> None:
    buckets = [bucket_length(length) for length in range(1, 513)]
    assert all(bucket >= length for length, bucket in enumerate(buckets, start=1))
    assert len(set(buckets)) <= 32
    assert max(bucket / length for length, bucket in enumerate(buckets, start=1) if length >= 64) < 1.13
    assert pad_time(np.ones((2, 3), np.int32), 5).tolist() == [[1, 1, 1, 0, 0]] * 2


@pytest.mark.parametrize("runners", [1, 3])
def test_several_runners_share_the_batches_and_the_order_is_restored(model_path: Path, runners: int) -> None:
    texts = ragged_texts(200)
    session = open_session(model_path, HERE)
    engine = Engine([HostRunner(session)] * runners, HERE, 64)
    alone = np.concatenate([HostRunner(session).run(*texts.tokens.pad(np.array([row]))) for row in range(200)])
    assert np.array_equal(engine.probabilities(texts.tokens), alone)
    engine.close()


def test_the_largest_batch_is_tried_first_and_halved_until_it_fits(model_path: Path) -> None:
    sizes = []

    class Small(HostRunner):
        def run(self, token_ids: np.ndarray, lengths: np.ndarray, unknown: np.ndarray | None = None) -> np.ndarray:
            sizes.append(token_ids.shape)
            if token_ids.size > 3000:
                raise RuntimeError("Available memory of 1 is smaller than requested bytes of 2")
            return super().run(token_ids, lengths, unknown)

    engine = Engine([Small(open_session(model_path, HERE))], HERE, 8192)
    engine.warm_up(30)
    assert sizes == [(273, 30), (136, 30), (68, 30)]
    assert engine.batch_tokens == 2048
    sizes.clear()
    with pytest.raises(DeviceMemoryError):
        engine.warm_up(5000)


def test_the_nodes_of_the_lstm_are_found_and_must_run_where_they_should(model_path: Path) -> None:
    placed = lstm_providers(open_session(model_path, HERE))
    assert placed == {"lstm0": CPU}
    check_placement(placed, CPU)
    with pytest.raises(DeviceError, match=r"lstm0 on CPUExecutionProvider.*--device cpu"):
        check_placement(placed, CUDA)
    with pytest.raises(DeviceError, match="no LSTM found"):
        check_placement({}, CUDA)


def test_cuda_computes_in_true_single_precision_within_a_memory_limit() -> None:
    options = cuda_options(1, 1000)
    assert options["device_id"] == "1"
    assert options["use_tf32"] == "0"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert int(options["gpu_mem_limit"]) == 800 * 2**20
    assert "gpu_mem_limit" not in cuda_options(0, None)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA H200", "NVIDIA H200", "NVIDIA L4"]),
        ("2,0", ["NVIDIA L4", "NVIDIA H200"]),
        ("GPU-ccc", ["NVIDIA L4"]),
        ("", []),
    ],
)
def test_gpus_are_counted_as_cuda_counts_them(visible: str | None, names: list[str]) -> None:
    found = visible_gpus(SMI, visible)
    assert [gpu.name for gpu in found] == names
    assert [gpu.number for gpu in found] == list(range(len(names)))
    assert all(gpu.driver == "580.65.06" and gpu.memory_mib > 20_000 for gpu in found)


def test_a_model_file_is_opened_and_closed(model_path: Path) -> None:
    with temporary_engine(model_path) as engine:
        assert engine.probabilities(ragged_texts().tokens).shape == (40, 3)
    with pytest.raises(RuntimeError):
        engine.probabilities(ragged_texts().tokens)
