"""A teacher knows the training texts and no others, survives a kill, and is refused when it no longer fits."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import tiny_recipe, weather_rows
from encoder_tools import HIDDEN, write_encoder, write_onnx_encoder

from pipeline.config import apply_overrides
from pipeline.dataset.corpus import TEST, TRAIN, VALIDATION
from pipeline.dataset.soft_labels import read_soft_labels
from pipeline.dataset.word_vectors import read_vectors
from pipeline.errors import ConfigError, InputError, ModelError, TrainingDataError
from pipeline.files import read_json
from pipeline.promotion.register import train
from pipeline.schemas import TEACHER_TEXTS
from pipeline.training.prepare import PreparedData, WarmStart, prepare
from pipeline.training.teach import embeddings
from pipeline.training.teach.cross_fit import cross_fit
from pipeline.training.teach.encoder_folder import EncoderFolder
from pipeline.training.teach.sentence_encoder import SentenceEncoder
from pipeline.training.teach.teach import teach, teacher_name
from pipeline.training.teach.teacher import Teacher, find_teacher
from pipeline.training.teach.word_distillation import distil_word_vectors, write_word_vectors
from pipeline.workspace import Batch, Workspace

AddBatch = Callable[..., Batch]
NIGHT = [{"id": f"n{row['id']}", "text": f"{row['text']} and long"} for row in weather_rows(60)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_onnx_encoder(tmp_path_factory.mktemp("encoders") / "tiny encoder")


@pytest.fixture
def filled(workspace: Workspace, add_batch: AddBatch) -> Workspace:
    """120 labelled documents, and 60 unlabelled of another night."""
    add_batch(weather_rows(), "labelled")
    add_batch(NIGHT, "night")
    return workspace


@pytest.fixture
def teacher(filled: Workspace, encoder: Path) -> Teacher:
    return teach(filled, encoder, tiny_recipe(), name="tiny")


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect every text that an encoder embeds."""
    texts: list[str] = []
    embed = SentenceEncoder.embed

    def record(self: SentenceEncoder, columns: list[str]) -> Any:
        texts.extend(columns)
        return embed(self, columns)

    monkeypatch.setattr(SentenceEncoder, "embed", record)
    return texts


def soft_labels_of(teacher: Teacher) -> dict[str, float]:
    """Return the probability of sun of each document."""
    table = pq.read_table(teacher.path / "soft_labels.parquet")
    assert table.column_names == ["doc_id", "rain", "sun"]
    return dict(zip(table["doc_id"].to_pylist(), table["sun"].to_pylist(), strict=True))


def ids_of(prepared: PreparedData, split: int) -> set[str]:
    return {doc_id for ids, _, _ in prepared.corpus.read(split) for doc_id in ids.to_pylist()}


def test_it_teaches_the_training_texts_labelled_or_not_and_no_others(teacher: Teacher, filled: Workspace) -> None:
    prepared = prepare(filled, tiny_recipe())
    soft = soft_labels_of(teacher)
    assert soft.keys() == ids_of(prepared, TRAIN) | {row["id"] for row in NIGHT}
    sunny = ("bright", "warm", "beach", "shine")
    suns = {row["id"] for row in [*weather_rows(), *NIGHT] if any(word in row["text"] for word in sunny)}
    assert np.mean([(probability > 0.5) == (doc_id in suns) for doc_id, probability in soft.items()]) > 0.9
    counts = teacher.manifest["counts"]
    assert counts["documents"] == 180
    assert counts["fitted"] == counts["of_labelled"] == prepared.corpus.counts["train"]
    assert counts["of_unlabelled"] == len(NIGHT)
    assert counts["soft_labels"] == len(soft)
    assert teacher.manifest["classes"] == ["rain", "sun"]
    assert teacher.manifest["accuracy"] > 0.9


def test_validation_and_test_texts_are_not_embedded(filled: Workspace, encoder: Path, embedded: list[str]) -> None:
    teach(filled, encoder, tiny_recipe())
    prepared = prepare(filled, tiny_recipe())
    for split in (VALIDATION, TEST):
        held_out = {text for texts in prepared.corpus.texts(split) for text in texts.to_pylist()}
        assert held_out
        assert not held_out & set(embedded)


@pytest.mark.usefixtures("teacher")
def test_a_training_with_its_name_starts_from_soft_labels_word_vectors_and_document_vectors(
    filled: Workspace,
) -> None:
    prepared = prepare(filled, tiny_recipe(), start=WarmStart(teacher="tiny"))
    assert prepared.corpus.counts["taught"] == len(NIGHT)
    soft_labels = prepared.read(TRAIN).soft_labels
    assert soft_labels is not None
    assert not np.isnan(soft_labels).any()
    assert prepared.word_vectors is prepared.teacher_vectors
    assert prepared.word_vectors is not None
    assert prepared.document_vectors is not None
    assert prepared.document_vectors.shape == (prepared.cache.tokenizer.size, 16)
    assert not prepared.document_vectors[0].any()
    registration = train(filled, "weather", tiny_recipe(), start=WarmStart(teacher="tiny"))
    metrics = registration.bundle.metrics
    assert metrics["test"]["accuracy"] > 0.8
    assert metrics["teacher"]["file"] == "tiny/soft_labels.parquet"
    assert metrics["word_vectors"]["file"] == "tiny/word_vectors.txt.gz"
    assert metrics["parity"]["equal_labels"] == 1.0


def test_a_teacher_is_named_by_its_folder_too_and_a_file_stays_a_file(teacher: Teacher, filled: Workspace) -> None:
    for spec in ("tiny", str(teacher.path)):
        found = find_teacher(filled, spec)
        assert found is not None
        assert found.manifest == teacher.manifest
    assert find_teacher(filled, str(teacher.path / "soft_labels.parquet")) is None
    with pytest.raises(InputError, match=r"--teacher huge: there is no such file, and no teacher .* \(there: tiny\)"):
        find_teacher(filled, "huge")
    with pytest.raises(InputError, match=r"no teacher in this folder: manifest\.json is missing \(there: tiny\)"):
        find_teacher(filled, str(filled.root))


def test_word_vectors_of_a_file_come_before_those_of_the_teacher(
    teacher: Teacher, filled: Workspace, tmp_path: Path
) -> None:
    assert teacher.name == "tiny"
    (tmp_path / "own.txt").write_text(f"bright {' '.join(['1.0'] * 16)}\n")
    prepared = prepare(filled, tiny_recipe(), start=WarmStart(str(tmp_path / "own.txt"), teacher="tiny"))
    assert prepared.word_vectors is not None
    assert prepared.word_vectors.source == "own.txt"
    assert prepared.teacher_vectors is not None


def test_a_killed_run_goes_on_where_it_stopped(
    filled: Workspace, encoder: Path, embedded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embeddings, "FILE_ROWS", 16)
    whole = Workspace(shutil.copytree(filled.root, tmp_path / "whole"))
    expected = teach(whole, encoder, tiny_recipe(), name="tiny")
    written = 0

    def kill(progress: embeddings.EmbeddingProgress, texts: int) -> None:  # noqa: ARG001 - the signature
        nonlocal written
        written += texts
        if written == 64:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embeddings.EmbeddingProgress, "advance", kill)
        teach(filled, encoder, tiny_recipe(), name="tiny")
    assert not filled.teacher_manifests()
    embedded.clear()
    resumed = teach(filled, encoder, tiny_recipe(), name="tiny")
    counts = resumed.manifest["counts"]
    assert len(embedded) == counts["soft_labels"] - 64 + counts["words"] + 1  # one to see the size
    assert resumed.manifest["files"] == expected.manifest["files"]


def test_a_text_is_embedded_once_and_only_a_new_night_is_added(
    filled: Workspace, encoder: Path, embedded: list[str], add_batch: AddBatch
) -> None:
    first = teach(filled, encoder, tiny_recipe(), name="tiny")
    embedded.clear()
    assert teach(filled, encoder, tiny_recipe(), name="tiny").manifest["files"] == first.manifest["files"]
    assert embedded == ["a"]
    add_batch([{"id": "x", "text": "a warm day at the umbrella"}], "later")
    embedded.clear()
    later = teach(filled, encoder, tiny_recipe(), name="tiny")
    assert "a warm day at the umbrella" in embedded
    assert "day 0 was wet and long 0" not in embedded
    assert later.manifest["counts"]["of_unlabelled"] == len(NIGHT) + 1


def test_damaged_or_deleted_embeddings_are_made_again(filled: Workspace, encoder: Path, embedded: list[str]) -> None:
    first = teach(filled, encoder, tiny_recipe(), name="tiny")
    files = sorted((filled.root / "embeddings").rglob("*.parquet"))
    files[0].write_bytes(b"PAR1")
    files[1].unlink()
    embedded.clear()
    assert teach(filled, encoder, tiny_recipe(), name="tiny").manifest["files"] == first.manifest["files"]
    assert len(embedded) > 1


def test_another_encoder_embeds_again(filled: Workspace, encoder: Path, tmp_path: Path, embedded: list[str]) -> None:
    teach(filled, encoder, tiny_recipe(), name="tiny")
    other = Path(shutil.copytree(encoder, tmp_path / "other"))
    config = read_json(other / "config.json")
    (other / "config.json").write_text(json.dumps({**config, "revision": 2}))
    embedded.clear()
    teach(filled, other, tiny_recipe(), name="tiny")
    assert "day 0 was wet and long 0" in embedded
    assert len(list((filled.root / "embeddings").iterdir())) == 2


def test_safetensors_teach_as_well(filled: Workspace, tmp_path: Path) -> None:
    lines: list[str] = []
    teacher = teach(
        filled, write_encoder(tmp_path / "bert"), tiny_recipe(), progress=lambda _, line: lines.append(line)
    )
    assert teacher.name == "bert"
    assert teacher.manifest["encoder"]["weights"] == "model.safetensors"
    assert teacher.manifest["encoder"]["size"] == HIDDEN
    assert teacher.manifest["accuracy"] > 0.6  # its weights are random
    assert any("texts embedded" in line and "left" in line for line in lines)
    assert any("words embedded" in line for line in lines)


def test_documents_with_several_labels_have_a_probability_for_each(
    workspace: Workspace, add_batch: AddBatch, encoder: Path
) -> None:
    rows = [
        {"id": str(n), "text": f"day {n} was {'bright' * (n % 2)} {'wet' * (n // 2 % 2)}", "label": labels}
        for n in range(120)
        for labels in [[*["sun"] * (n % 2), *["rain"] * (n // 2 % 2)]]
    ]
    add_batch(rows)
    teacher = teach(workspace, encoder, tiny_recipe(), name="several")
    assert teacher.manifest["multi_label"]
    assert teacher.manifest["accuracy"] > 0.9
    prepared = prepare(workspace, tiny_recipe(), start=WarmStart(teacher="several"))
    texts = prepared.read(TRAIN)
    assert texts.soft_labels is not None
    assert ((texts.soft_labels > 0.5) == (texts.targets() > 0.5)).mean() > 0.9
    assert texts.soft_labels.sum(axis=1).max() > 1.5


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["soft_labels.parquet", "word_vectors.txt.gz", "texts.parquet"])
def test_a_teacher_with_a_changed_file_is_refused(teacher: Teacher, filled: Workspace, name: str) -> None:
    spoil(teacher.path / name)
    with pytest.raises(ModelError, match=rf"{name} is not the file that was registered .*; run nightlabel teach again"):
        prepare(filled, tiny_recipe(), start=WarmStart(teacher="tiny"))


@pytest.mark.usefixtures("teacher")
def test_a_teacher_of_other_classes_is_refused(filled: Workspace, add_batch: AddBatch) -> None:
    snow = [{"id": f"s{n}", "text": f"white day {n}", "label": "snow"} for n in range(9)]
    add_batch(snow, "winter")
    with pytest.raises(TrainingDataError) as refused:
        prepare(filled, tiny_recipe(), start=WarmStart(teacher="tiny"))
    assert str(refused.value) == (
        "teacher tiny: the classes have changed since ('snow' is new); run nightlabel teach again"
    )


@pytest.mark.usefixtures("teacher")
@pytest.mark.parametrize("setting", ["training.test_share=0.3", "training.split=stratified"])
def test_a_teacher_fitted_on_texts_that_are_tested_now_is_refused(filled: Workspace, setting: str) -> None:
    recipe = apply_overrides(tiny_recipe(), [setting])
    with pytest.raises(TrainingDataError, match=r"fitted on \d+ texts that are in the validation or test split now"):
        prepare(filled, recipe, start=WarmStart(teacher="tiny"))


@pytest.mark.usefixtures("teacher")
def test_a_text_that_gets_a_label_later_may_be_tested(filled: Workspace, add_batch: AddBatch) -> None:
    """Nothing was fitted on it, so its soft label gives nothing away."""
    labelled = [{**row, "label": label} for row, label in zip(NIGHT, ["rain", "sun"] * 30, strict=True)]
    add_batch(labelled, "night")
    prepared = prepare(filled, tiny_recipe(), start=WarmStart(teacher="tiny"))
    night = {row["id"] for row in NIGHT}
    assert ids_of(prepared, TEST) & night
    assert not ids_of(prepared, TRAIN) & ids_of(prepared, TEST)


@pytest.mark.usefixtures("teacher")
def test_a_soft_label_belongs_to_the_text_and_not_to_whoever_has_its_id(
    filled: Workspace, add_batch: AddBatch, caplog: pytest.LogCaptureFixture
) -> None:
    add_batch([*({**row, "text": f"other {row['text']}"} for row in NIGHT[:5]), *NIGHT[5:]], "night")
    prepared = prepare(filled, tiny_recipe(), start=WarmStart(teacher="tiny"))
    assert prepared.corpus.counts["taught"] == len(NIGHT) - 5
    assert "texts have changed or are gone, and are not used" in caplog.text


def test_an_id_of_two_texts_gets_no_soft_label(filled: Workspace, add_batch: AddBatch, encoder: Path) -> None:
    add_batch([{"id": NIGHT[0]["id"], "text": "umbrella day"}], "again")
    teacher = teach(filled, encoder, tiny_recipe(), name="tiny")
    assert NIGHT[0]["id"] not in soft_labels_of(teacher)
    assert teacher.manifest["counts"]["left_out"] == 2
    assert prepare(filled, tiny_recipe(), start=WarmStart(teacher="tiny")).corpus.counts["taught"] == len(NIGHT) - 1


def test_a_teacher_without_any_of_the_documents_is_refused(
    teacher: Teacher, tmp_path: Path, add_batch: AddBatch, filled: Workspace
) -> None:
    copy = Path(shutil.copytree(teacher.path, tmp_path / "copy"))
    shutil.rmtree(filled.root / "documents")
    add_batch([{**row, "id": f"o{row['id']}", "text": f"other {row['text']}"} for row in weather_rows()])
    with pytest.raises(TrainingDataError, match="teacher copy: none of its texts is a document here"):
        prepare(filled, tiny_recipe(), start=WarmStart(teacher=str(copy)))


def test_classes_may_be_called_like_the_id_column(workspace: Workspace, add_batch: AddBatch, encoder: Path) -> None:
    """`id` is Indonesian to whoever labels languages."""
    add_batch([{**row, "label": {"sun": "id", "rain": "doc"}[row["label"]]} for row in weather_rows()])
    teacher = teach(workspace, encoder, tiny_recipe(), name="tiny")
    prepared = prepare(workspace, tiny_recipe(), start=WarmStart(teacher="tiny"))
    assert prepared.soft_labels is not None
    assert len(prepared.soft_labels.doc_ids) == teacher.manifest["counts"]["soft_labels"]


def test_the_encoder_must_be_as_wide_as_the_word_vectors(filled: Workspace, encoder: Path) -> None:
    wide = apply_overrides(tiny_recipe(), ["model.embedding_size=64"])
    with pytest.raises(ConfigError, match=r"have 32 numbers, word vectors 64; use --set model\.embedding_size=32"):
        teach(filled, encoder, wide)
    assert not (filled.root / "embeddings").exists()


@pytest.mark.usefixtures("teacher")
def test_word_vectors_of_another_size_are_refused(filled: Workspace) -> None:
    recipe = apply_overrides(tiny_recipe(), ["model.embedding_size=8"])
    with pytest.raises(InputError, match="16 numbers, but the model's words have 8; train with --set"):
        prepare(filled, recipe, start=WarmStart(teacher="tiny"))


def test_without_documents_there_is_nothing_to_teach(workspace: Workspace, encoder: Path) -> None:
    with pytest.raises(TrainingDataError, match="no documents to teach"):
        teach(workspace, encoder, tiny_recipe())


def test_the_default_name_is_that_of_the_folder_as_far_as_a_name_can_be(encoder: Path, tmp_path: Path) -> None:
    assert teacher_name(EncoderFolder.open(encoder)) == "tiny-encoder"
    strange = Path(shutil.copytree(encoder, tmp_path / "größe"))
    assert teacher_name(EncoderFolder.open(strange)) == "gr-e"


@pytest.fixture
def separable() -> Iterator[tuple[Any, Any]]:
    random = np.random.default_rng(0)
    truth = random.integers(3, size=300)
    features = (np.eye(8)[truth] + random.normal(scale=0.5, size=(300, 8))).astype(np.float32)
    yield features, np.eye(3, dtype=bool)[truth]


def test_no_text_is_predicted_by_a_model_that_was_fitted_on_it(separable: tuple[Any, Any]) -> None:
    """With labels of chance a model that has seen them would look good."""
    random = np.random.default_rng(1)
    features = random.normal(size=(300, 200)).astype(np.float32)
    targets = np.eye(2, dtype=bool)[random.integers(2, size=300)]
    assert cross_fit(features, targets, multi_label=False).accuracy < 0.65
    assert cross_fit(*separable, multi_label=False).accuracy > 0.7


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_sample_chooses_c_for_many_texts(
    separable: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, multi_label: bool
) -> None:
    whole = cross_fit(*separable, multi_label=multi_label)
    monkeypatch.setattr("pipeline.training.teach.cross_fit.SEARCHED_TEXTS", 150)
    sampled = cross_fit(*separable, multi_label=multi_label)
    assert abs(sampled.macro_f1 - whole.macro_f1) < 0.05
    assert sampled.probabilities.shape == whole.probabilities.shape


def test_a_class_with_one_text_gets_no_soft_label_for_it(separable: tuple[Any, Any]) -> None:
    features, targets = separable
    targets = np.concatenate([targets, np.zeros((300, 1), bool)], axis=1)
    targets[7] = [False, False, False, True]
    fitted = cross_fit(features, targets, multi_label=False)
    assert np.flatnonzero(~fitted.usable).tolist() == [7]
    np.testing.assert_allclose(fitted.probabilities.sum(axis=1), 1, atol=1e-5)


def test_word_vectors_keep_the_directions_of_most_variance_and_frequent_words_count_less() -> None:
    random = np.random.default_rng(0)
    hidden = random.normal(size=(50, 3)) @ random.normal(size=(3, 20)) + 7
    frequencies = np.full(50, 1e-2)
    vectors = distil_word_vectors(hidden.astype(np.float32), frequencies, 3)
    centred = hidden - hidden.mean(axis=0)
    # Three components hold everything, so that distances stay; a word of frequency 0.01 counts half.
    np.testing.assert_allclose(2 * vectors @ (2 * vectors).T, centred @ centred.T, rtol=1e-3, atol=1e-3)
    rare = distil_word_vectors(hidden.astype(np.float32), np.zeros(50), 3)
    np.testing.assert_allclose(rare, 2 * vectors, rtol=1e-4, atol=1e-5)


def test_word_vectors_are_written_as_the_training_reads_them(tmp_path: Path) -> None:
    words = ["12", "größe", "!", "한"]
    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    write_word_vectors(tmp_path / "a.txt.gz", words, values)
    write_word_vectors(tmp_path / "b.txt.gz", words, values)
    read = read_vectors(tmp_path / "a.txt.gz", words, 5)
    np.testing.assert_allclose(read.values, values, rtol=1e-3)
    assert (tmp_path / "a.txt.gz").read_bytes() == (tmp_path / "b.txt.gz").read_bytes()


def test_the_texts_of_a_teacher_say_what_was_fitted(teacher: Teacher) -> None:
    texts = pq.read_table(teacher.path / "texts.parquet")
    assert texts.schema.equals(TEACHER_TEXTS)
    assert pc.sum(texts["fitted"]).as_py() == teacher.manifest["counts"]["fitted"]
    read = read_soft_labels(teacher.path / "soft_labels.parquet", ["rain", "sun"], multi_label=False)
    assert set(read.doc_ids.to_pylist()) == set(texts["doc_id"].to_pylist())
    assert isinstance(read.doc_ids, pa.Array)
