"""A workspace of 2026-11-22, before modules, settings and words got their names of today, is used as it is."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.reports.model import model_report
from flows.reports.model_card import model_card
from flows.reports.morning_sections import outliers_section, trust_section
from pipeline.config import ScoringConfig, stored_recipe
from pipeline.models.registry import Registry
from pipeline.models.write_bundle import load_classifier
from pipeline.nights.finish import score_batch
from pipeline.nights.publish import publish, published_batches
from pipeline.nights.summary import labelled_night
from pipeline.promotion.comparison import read_comparison
from pipeline.promotion.rule import Registration
from pipeline.scoring.labels import labelled_batches
from pipeline.scoring.scorer import Scorer
from pipeline.training.pretrain.encoder import named_encoder
from pipeline.workspace import Workspace

FIXTURE = Path(__file__).parent / "fixtures" / "workspace-2026-11-22.tar.xz"
NIGHT = "2026-11-20"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def old(folder: Path) -> Workspace:
    return Workspace(folder / "workspace")


def part_facts(path: Path) -> dict[str, object]:
    facts: dict[str, object] = json.loads(pq.read_metadata(path).metadata[b"nightlabel"])
    return facts


@pytest.mark.parametrize("version", [1, 2])
def test_its_models_label_as_they_did(folder: Path, old: Workspace, version: int) -> None:
    shutil.rmtree(old.root / "labels")
    bundle = Registry(old).load("weather", version)
    with Scorer(bundle, ScoringConfig(device="cpu", variant="fp32", evidence=version == 2)) as scorer:
        path = score_batch(old, old.batch(NIGHT), scorer).path / "part-00000.parquet"
    before, now = (pq.read_table(one) for one in (folder / f"expected-{version}.parquet", path))
    for column in ("doc_id", "label", "status", "model"):
        assert now[column].equals(before[column])
    scores = [np.array([row or [0, 0] for row in table["scores"].to_pylist()]) for table in (before, now)]
    np.testing.assert_allclose(*scores, atol=1e-5)  # processors round differently
    assert part_facts(path)["fingerprint"] == part_facts(folder / f"expected-{version}.parquet")["fingerprint"]


def test_its_labels_are_not_made_again(old: Workspace) -> None:
    assert [(batch.id, batch.published) for batch in labelled_batches(old, "weather")] == [(NIGHT, False)]
    publish(old, NIGHT)
    assert [batch.id for batch in published_batches(old, "weather")] == [NIGHT]
    config = ScoringConfig(device="cpu", variant="fp32", evidence=True)
    with Scorer(Registry(old).find("weather"), config) as scorer:
        assert score_batch(old, old.batch(NIGHT), scorer).skipped


def test_its_target_precision_still_holds(old: Workspace) -> None:
    bundle = Registry(old).load("weather", 1)
    assert bundle.selective_config.target_precision == 0.9
    policy = bundle.policy()
    assert policy is not None
    assert policy.target == 0.9


def test_its_reports_can_be_read(old: Workspace) -> None:
    bundle = Registry(old).find("weather")
    assert bundle.version == 2
    comparison = read_comparison(bundle)
    assert comparison is not None
    text = model_report(Registration(bundle, True, "", comparison), pictures=False)
    assert "### Compared with weather@1" in text
    assert model_card(bundle).startswith("# Model weather@2")
    night = labelled_night(old, "weather", [old.batch(NIGHT)])
    assert night is not None
    assert "### Drift checks of 2026-11-20" in "\n".join(trust_section(old, night, bundle, pictures=True))
    assert "| document | label |" in "\n".join(outliers_section(old, night))


def test_its_weights_and_its_encoder_open_in_pytorch(old: Workspace) -> None:
    for version in (1, 2):
        bundle = Registry(old).load("weather", version)
        model = load_classifier(bundle)
        assert sum(value.numel() for value in model.state_dict().values()) > 1_000
    (name,) = [path.name for path in (old.root / "encoders").iterdir()]
    values = Registry(old).load("weather", 2).settings["recipe"]
    assert "promise" in values  # a section that has another name today
    assert named_encoder(old, name, stored_recipe(values)).name == name
