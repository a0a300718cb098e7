from collections.abc import Callable

import pytest
from conftest import tiny_recipe, weather_rows

from pipeline.config import Recipe, apply_overrides, load_recipe
from pipeline.errors import ConfigError, ModelError, ParityError
from pipeline.files import read_json
from pipeline.models.registry import Registry
from pipeline.promotion.register import train
from pipeline.promotion.rule import Registration
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]


def spoilt(seed: int = 5) -> Recipe:
    """A recipe that cannot learn: one pass at a rate of almost nothing, and no linear branch beside the LSTM."""
    return apply_overrides(tiny_recipe(epochs=1, learning_rate=1e-9, seed=seed), ["model.wide_buckets=0"])


def test_a_bundle_holds_all_that_scoring_and_an_auditor_need(workspace: Workspace, trained: Registration) -> None:
    bundle = trained.bundle
    files = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    assert files == {
        "model.onnx",
        "model.int8.onnx",
        "model.fp16.onnx",
        "variants.json",
        "reference.json",
        "weights.safetensors",
        "vocabulary.txt",
        "model.json",
        "metrics.json",
        "parity.json",
        "manifest.json",
        "claims.parquet",
        "figures/precision_and_coverage.png",
        "figures/learning_curve.png",
        "figures/confusion_matrix.png",
        "figures/reliability.png",
    }
    assert bundle.labels == ["rain", "sun"]
    assert bundle.metrics["parity"]["largest_difference"] < 1e-5
    assert bundle.metrics["test"]["accuracy"] == 1.0
    assert bundle.metrics["baseline"]["accuracy"] is not None
    assert bundle.manifest["batches"][0]["batch"] == "one"
    assert "torch" in bundle.manifest["libraries"]
    assert not list(workspace.root.glob(".staging*"))
    assert not list((workspace.root / "checkpoints").glob("*"))


@pytest.mark.parametrize("file", ["model.onnx", "vocabulary.txt", "model.json", "weights.safetensors"])
def test_a_bundle_with_a_changed_byte_is_refused(workspace: Workspace, trained: Registration, file: str) -> None:
    path = trained.bundle.path / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=f"{file} is not the file that was registered"):
        Registry(workspace).find("weather")


def test_a_worse_version_is_registered_but_not_promoted(workspace: Workspace, trained: Registration) -> None:
    worse = train(workspace, "weather", spoilt())  # type: ignore[arg-type]
    assert (worse.bundle.version, worse.promoted) == (2, False)
    assert "macro-F1" in worse.reason
    assert Registry(workspace).find("weather").version == trained.bundle.version == 1
    forced = train(workspace, "weather", spoilt(6), force=True, reason="to see it at work")  # type: ignore[arg-type]
    assert forced.promoted
    promotion = forced.bundle.manifest["promotion"]
    assert (promotion["promoted"], promotion["forced"]) == (True, True)
    assert promotion["reason"].startswith("forced over weather@1: to see it at work; macro-F1")
    assert Registry(workspace).find().version == 3


def test_an_equal_version_is_promoted(workspace: Workspace, trained: Registration) -> None:
    equal = train(workspace, "weather", tiny_recipe())
    assert equal.promoted
    assert trained.bundle.version < equal.bundle.version == Registry(workspace).champion("weather")


def test_promote_and_rollback_change_the_champion_and_keep_a_log(workspace: Workspace, trained: Registration) -> None:
    train(workspace, "weather", spoilt())  # type: ignore[arg-type]
    registry = Registry(workspace)
    registry.promote("weather", 2, "to see it")
    assert registry.find("weather").title == "weather@2"
    assert registry.rollback("weather") == 1
    assert registry.find("weather").title == "weather@1"
    with pytest.raises(ModelError, match="no earlier champion"):
        registry.rollback("weather")
    log = read_json(workspace.model_dir("weather") / "champion.json")["log"]
    assert [entry["action"] for entry in log] == ["promote", "promote", "rollback"]
    assert all(entry["by"] and entry["at"] and entry["reason"] for entry in log)
    assert trained.promoted


def test_a_version_that_nothing_tests_is_not_promoted_by_itself(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    unreadable = [
        {"id": f"e{n}", "text": " " * n, "label": label, "split": "test"} for n, label in enumerate(["rain", "sun"])
    ]
    add_batch([*weather_rows(split="train"), *unreadable])
    untested = train(workspace, "weather", tiny_recipe())
    assert not untested.promoted
    assert "no test texts" in untested.reason
    assert Registry(workspace).champion("weather") == trained.bundle.version


def test_other_classes_do_not_replace_the_champion_by_themselves(
    workspace: Workspace, trained: Registration, add_batch: AddBatch
) -> None:
    add_batch([{"text": f"snow fell {n}", "label": "snow"} for n in range(20)], "two")
    other = train(workspace, "weather", tiny_recipe())
    assert not other.promoted
    assert "classes" in other.reason
    assert trained.promoted


def test_a_graph_that_disagrees_stops_registration(
    workspace: Workspace, add_batch: AddBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_batch(weather_rows())
    monkeypatch.setattr("pipeline.models.parity.TOLERANCE", -1.0)
    monkeypatch.setattr("pipeline.models.parity.CEILING", -1.0)
    with pytest.raises(ParityError):
        train(workspace, "weather", tiny_recipe())
    assert Registry(workspace).names() == []
    assert not list(workspace.root.glob(".staging*"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("storms", r"no model 'storms' \(there: weather\)"),
        ("weather@7", r"no model weather@7 \(there: weather@1\)"),
        ("weather@new", "write a version as a number"),
    ],
)
def test_an_unknown_model_is_named_with_those_there_are(
    workspace: Workspace, trained: Registration, spec: str, message: str
) -> None:
    assert trained.promoted
    with pytest.raises(ModelError, match=message):
        Registry(workspace).find(spec)


def test_scoring_without_any_model_says_how_to_get_one(workspace: Workspace) -> None:
    with pytest.raises(ModelError, match="nightlabel train"):
        Registry(workspace).find()


def test_several_models_must_be_chosen_from(workspace: Workspace, trained: Registration) -> None:
    train(workspace, "other", tiny_recipe())
    with pytest.raises(ModelError, match=r"choose one with --model \(other, weather\)"):
        Registry(workspace).find()
    assert trained.promoted


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=-1", "training.epochs = -1"),
        ("training.epoch=3", "training.epoch"),
        ("trainig.epochs=3", "no section 'trainig'"),
        ("epochs=3", "write section.field=value"),
        ("model.pooling=sum", "model.pooling = 'sum'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("default", [override])


def test_presets_and_overrides_make_a_recipe() -> None:
    recipe = load_recipe("imdb-lstm100", ["training.epochs=5", "model.pooling=mean", "model.dense_sizes=[8, 4]"])
    assert recipe.tokenizer.vocabulary_size == 6000
    assert (recipe.training.epochs, recipe.model.pooling, recipe.model.dense_sizes) == (5, "mean", (8, 4))
    with pytest.raises(ConfigError, match="no preset 'nope'; there are: default, imdb-lstm100"):
        load_recipe("nope")
