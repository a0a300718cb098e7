"""Settings as frozen values with a sentence for each field.

The same models are flow parameters (so the Prefect UI draws a form), TOML presets, and `--set` options.
They stop at the door: library functions take the values they need.
"""

import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError

S = TypeVar("S", bound="Settings")
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


def _draw_as_one_input(schema: dict[str, Any]) -> None:
    """Describe each field that may be empty as a plain one: a form would let a person choose between types."""
    for field in schema["properties"].values():
        types = [one for one in field.get("anyOf", []) if one != {"type": "null"}]
        if len(types) == 1:
            del field["anyOf"], field["default"]
            field.update(types[0])


class Settings(BaseModel):
    """What all settings have in common: they do not change, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_draw_as_one_input)


class IngestConfig(Settings):
    """How raw files become documents."""

    text: Annotated[list[str], Field(min_length=1)] = Field(
        default=["text"],
        title="Text columns",
        description="Column with the text; several are joined. Without a header, a number from 1.",
    )
    label: str | None = Field(
        default=None,
        title="Label column",
        description="Column with the label; empty values are unlabelled rows. Not given: the column 'label', if any.",
    )
    label_separator: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        title="Between several labels",
        description="What joins several labels of a document in the label column, for example '|'. "
        "Not given: each document has one label, unless the column holds lists.",
    )
    id: str | None = Field(
        default=None,
        title="Id column",
        description="Column with a unique id. Not given: the column 'id' or 'doc_id', if any, else made from the text.",
    )
    split: str | None = Field(
        default=None,
        title="Split",
        description="train, validation or test, or the name of a column that says so. Not given: decided by the text.",
    )
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "folder"] = Field(
        default="auto", title="File format", description="Format of the sources; auto goes by the file name."
    )
    header: bool = Field(
        default=True,
        title="Header row",
        description="Whether the first row of a CSV or TSV file names its columns.",
    )
    encoding: str = Field(
        default="utf-8",
        title="Encoding",
        description="Character encoding of text files, for example utf-8, cp1252 or shift_jis.",
    )
    join: str = Field(
        default="\n",
        title="Between text columns",
        description="What is put between several text columns; unless changed, a line break.",
    )
    clean_html: bool = Field(default=False, title="Remove HTML", description="Decode HTML entities and remove tags.")
    max_reject_rate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.05,
        title="Refuse above",
        description="Share of refused rows, from 0 to 1, above which nothing is committed.",
    )
    max_text_bytes: Annotated[int, Field(ge=1)] = Field(
        default=1_000_000, title="Longest text", description="Texts longer than this many bytes are refused."
    )


class TokenizerConfig(Settings):
    """How a text becomes token ids."""

    vocabulary_size: Annotated[int, Field(ge=3)] = Field(
        default=30_000, description="Most words in the vocabulary, padding and unknown included."
    )
    min_count: Annotated[int, Field(ge=1)] = Field(
        default=2, description="A word must occur this often in the training texts to get an id."
    )
    max_tokens: Annotated[int, Field(ge=1)] = Field(
        default=400, description="Longer texts are truncated to this many tokens."
    )
    truncation: Literal["head", "tail", "both"] = Field(
        default="both", description="What a truncated text keeps: its start, its end, or half of each."
    )
    lowercase: bool = Field(default=True, description="Ignore upper and lower case.")
    remove_punctuation: bool = Field(default=False, description="Drop punctuation instead of making it tokens.")
    remove_stop_words: bool = Field(default=False, description="Drop common English function words.")
    split_hangul: bool = Field(
        default=True, description="Make each Korean syllable a token; off, a word between spaces is one."
    )


class ModelConfig(Settings):
    """The architecture of the LSTM classifier."""

    embedding_size: Annotated[int, Field(ge=1)] = Field(default=128, description="Numbers per word vector.")
    hidden_size: Annotated[int, Field(ge=1)] = Field(default=128, description="LSTM units per direction.")
    layers: Annotated[int, Field(ge=1, le=3)] = Field(default=1, description="Stacked LSTM layers.")
    bidirectional: bool = Field(default=True, description="Read each text in both directions.")
    pooling: Literal["last", "max", "mean", "attention"] = Field(
        default="max", description="How the LSTM states of a text become one vector."
    )
    dense_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="Sizes of hidden dense layers between pooling and output."
    )
    batch_norm: bool = Field(default=False, description="Batch normalisation of the pooled vector.")
    wide_buckets: Annotated[int, Field(ge=0)] = Field(
        default=1_048_573,
        description="Hash buckets for word pairs in the linear branch beside the LSTM, best a prime; 0 for no branch.",
    )
    embedding_dropout: Share = Field(default=0.3, description="Dropout on word vectors.")
    layer_dropout: Share = Field(default=0.2, description="Dropout between LSTM layers.")
    head_dropout: Share = Field(default=0.5, description="Dropout before the output layer.")


class TrainingConfig(Settings):
    """How the classifier is trained."""

    epochs: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Most epochs; 0: from 3 for a large corpus to 30 for a tiny one."
    )
    learning_rate: Annotated[float, Field(gt=0.0)] = Field(default=3e-3, description="Highest learning rate.")
    schedule: Literal["one-cycle", "constant"] = Field(default="one-cycle", description="Learning rate schedule.")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(default=0.01, description="AdamW weight decay.")
    batch_size: Annotated[int, Field(ge=1)] = Field(default=64, description="Most texts in a minibatch.")
    batch_tokens: Annotated[int, Field(ge=1)] = Field(
        default=12_800,
        description="Most token slots in a minibatch, padding included; long texts make smaller minibatches.",
    )
    word_dropout: Share = Field(default=0.1, description="Share of words replaced by 'unknown' while training.")
    label_smoothing: Share = Field(default=0.0, description="Label smoothing: share of each target spread over all.")
    gradient_norm: Annotated[float, Field(gt=0.0)] = Field(
        default=1.0, description="Gradients are clipped to this norm."
    )
    class_balance: Literal["none", "weights", "sampling", "try"] = Field(
        default="none",
        description="Balance classes by weights in the loss or by sampling; "
        "try trains with each and keeps the best on the validation split.",
    )
    teacher_weight: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.5, description="Weight of soft labels (--teacher) in the loss of texts that have a label too."
    )
    compare_scratch: bool = Field(
        default=True,
        description="After pretraining: train from scratch too, draw both curves, keep the better on validation.",
    )
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.5, description="After pretraining: learning rate of each layer as a share of the one above it."
    )
    patience: Annotated[int, Field(ge=1)] = Field(
        default=3,
        description="Early stopping: epochs without a better validation macro-F1, counted in the second half.",
    )
    split: Literal["hash", "stratified"] = Field(
        default="hash",
        description="How rows without a given split are divided: by a hash of the text, or stratified by class.",
    )
    validation_share: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        default=0.1, description="Share of the texts used for validation where no split is given."
    )
    test_share: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        default=0.1, description="Share of the texts held out for testing where no split is given."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=1, description="Same seed, same data, same CPU: same weights.")
    device: Literal["auto", "cuda", "cpu"] = Field(default="auto", description="Where to train.")
    baseline: bool = Field(default=True, description="Train a linear baseline on the same split for comparison.")


class PretrainingConfig(Settings):
    """How an encoder is pretrained on text without labels."""

    epochs: Annotated[int, Field(ge=1)] = Field(default=3, description="Epochs of the language model.")
    document_epochs: Annotated[int, Field(ge=0)] = Field(
        default=5, description="Epochs of the document model, which learns document vectors; 0 for none."
    )
    document_size: Annotated[int, Field(ge=1)] = Field(default=128, description="Numbers per document vector.")
    document_learning_rate: Annotated[float, Field(gt=0.0)] = Field(
        default=0.01, description="Highest learning rate of the document model."
    )
    learning_rate: Annotated[float, Field(gt=0.0)] = Field(
        default=4e-3, description="Highest learning rate of the language model."
    )
    batch_tokens: Annotated[int, Field(ge=1)] = Field(
        default=8_192, description="Most token slots in a minibatch, padding included."
    )
    sampled_words: Annotated[int, Field(ge=1)] = Field(
        default=512, description="Sampled softmax: words drawn for each minibatch beside the true ones."
    )
    gradient_norm: Annotated[float, Field(gt=0.0)] = Field(
        default=1.0, description="Gradients are clipped to this norm."
    )
    held_out_share: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        default=0.01, description="Share of the texts held out to measure perplexity."
    )
    leave_out_test: bool = Field(
        default=True, description="Leave out the texts of the test split; off, pretrain on all texts."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=1, description="Same seed, same data, same CPU: same weights.")


class SelectiveConfig(Settings):
    """How right labelled rows are to be; what cannot be promised goes to people."""

    target_precision: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0,
        description="Share of the labelled rows that are to be right, for example 0.95; other rows get status "
        "'review'. 0 for no promise.",
    )
    per: Literal["all", "class"] = Field(
        default="all",
        description="Whether all labelled rows together keep the precision, or those of each class by themselves.",
    )
    none_label: str = Field(
        default="",
        description="Label of examples that belong to none of the classes; few of them may be labelled as one.",
    )
    none_labelled: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.1, description="Share of texts of none of the classes that may be labelled as one of them."
    )


class PromotionConfig(Settings):
    """When a new version replaces the champion."""

    margin: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.005,
        title="Macro-F1 below the champion's",
        description="A version with a lower macro-F1 than the champion's passes if, with 95 % confidence, it is less "
        "than this below it; 0: only versions that are ahead pass.",
    )
    class_margin: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.05,
        title="F1 of a class below the champion's",
        description="A version of which a class loses more F1 than this, beyond chance, does not pass.",
    )


class Recipe(Settings):
    """Everything that decides what a training run produces, beside its data."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    training: TrainingConfig = TrainingConfig()
    promise: SelectiveConfig = SelectiveConfig()
    promotion: PromotionConfig = PromotionConfig()


class ScoringConfig(Settings):
    """How documents are labelled."""

    target_precision: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        default=None,
        title="Promised precision",
        description="Share of the labelled rows that are to be right, from 0 to 1; other rows get status 'review'. "
        "Not given: what the model was trained to promise; 0 for no promise.",
    )
    review_below: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        default=None,
        title="Review below",
        description="Rows whose confidence, from 0 to 1, is lower get status 'review', whatever is promised. "
        "Not given: 0.5 where no precision is promised.",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto",
        title="Device",
        description="Where to run the model; auto takes the GPU if it works and says so loudly if not.",
    )
    precision: Literal["auto", "fp32", "int8", "fp16"] = Field(
        default="auto",
        title="Precision",
        description="Numbers the model computes with; auto takes the fastest whose labels agree with fp32.",
    )
    evidence: bool = Field(
        default=False,
        title="Evidence",
        description="Tell for each row which words carried its label, and how much they weigh.",
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        default=0, title="CPU cores", description="CPU cores to use; 0 for all."
    )
    batch_tokens: Annotated[int, Field(ge=0)] = Field(
        default=0,
        title="Tokens at a time",
        description="Most token slots in one call of the model; 0 for what suits the device.",
    )
    part_minutes: Annotated[float, Field(gt=0.0)] = Field(
        default=60.0,
        title="Minutes for a part",
        description="Minutes without a finished part after which a night has failed: something hangs.",
    )


class DriftConfig(Settings):
    """When a night is out of the ordinary."""

    hold: bool = Field(
        default=True,
        title="Hold bad nights",
        description="Do not publish the labels of a night that is far out of the ordinary; off, only warn.",
    )
    psi_warn: Annotated[float, Field(gt=0.0)] = Field(
        default=0.1,
        title="PSI that warns",
        description="Population stability index against the model's reference from which a night is worth a look; "
        "0.1 is a slight difference.",
    )
    psi_hold: Annotated[float, Field(gt=0.0)] = Field(
        default=0.25,
        title="PSI that holds",
        description="Population stability index from which a night is held; 0.25 is a large difference.",
    )
    empty_warn: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.1,
        title="Empty texts that warn",
        description="Share of empty texts, beyond that in the reference, from which a night is worth a look.",
    )
    empty_hold: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.5,
        title="Empty texts that hold",
        description="Share of empty texts, beyond that in the reference, from which a night is held.",
    )
    volume_factor: Annotated[float, Field(gt=1.0)] = Field(
        default=10.0,
        title="Times the usual rows",
        description="A night with so many times more, or fewer, rows than the median of the nights before is held.",
    )
    nights: Annotated[int, Field(ge=1)] = Field(
        default=14, title="Nights to look back", description="How many of the last published nights say what is usual."
    )
    least_nights: Annotated[int, Field(ge=1)] = Field(
        default=3, title="Nights that make a habit", description="With fewer nights before it, nothing is usual yet."
    )


class NightConfig(Settings):
    """How a night reads, labels, and is judged."""

    ingest: IngestConfig = IngestConfig()
    score: ScoringConfig = ScoringConfig()
    health: DriftConfig = DriftConfig()


def preset_names() -> list[str]:
    folder = resources.files("pipeline") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(preset: str = "default", overrides: list[str] | None = None) -> Recipe:
    """Return a preset with `section.field=value` overrides applied.

    Args:
        preset: one of `preset_names`, or the path of a file that ends in .toml.
        overrides: each as `section.field=value`.

    Raises:
        ConfigError: an unknown preset or field, a file that is not one, or a value out of its limits.
    """
    return apply_overrides(_read_preset(preset), overrides or [])


def _read_preset(preset: str) -> Recipe:
    if preset.endswith(".toml"):
        return _read_preset_file(Path(preset))
    if preset not in preset_names():
        raise ConfigError(f"no preset {preset!r}; there are: {', '.join(preset_names())}, and paths of .toml files")
    text = (resources.files("pipeline") / "presets" / f"{preset}.toml").read_text(encoding="utf-8")
    return validated(Recipe, tomllib.loads(text))


def _read_preset_file(path: Path) -> Recipe:
    try:
        return validated(Recipe, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"preset {path}: there is no such file") from error
    except OSError as error:
        raise ConfigError(f"preset {path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"preset {path}: not TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"preset {path}: {error}") from error


def stored_recipe(values: dict[str, dict[str, Any]]) -> Recipe:
    """Return the settings that a bundle or an encoder keeps; those of earlier versions that are no more, left out.

    Raises:
        ConfigError: a value out of its limits.
    """
    sections = {name: field.default for name, field in Recipe.model_fields.items()}
    known = {
        name: {field: value for field, value in values.get(name, {}).items() if field in type(section).model_fields}
        for name, section in sections.items()
    }
    return validated(Recipe, known)


def training_digest_values(recipe: Recipe, sections: set[str]) -> dict[str, dict[str, Any]]:
    """Return sections of a recipe, "training" among them, as JSON values to compute a digest from.

    Removed settings stay in it at their defaults, so that checkpoints and searches begun before are found.
    """
    values: dict[str, dict[str, Any]] = recipe.model_dump(mode="json", include=sections)
    values["training"] |= {"frozen_share": 0.0, "teacher_temperature": 1.0}
    return values


def apply_overrides(settings: S, overrides: Iterable[str]) -> S:
    """Return settings of several sections with `section.field=value` applied.

    Raises:
        ConfigError: an unknown section or field, or a value out of its limits.
    """
    values = settings.model_dump()
    for text in overrides:
        section, field, value = _parse_override(text, list(values))
        values[section][field] = value
    return validated(type(settings), values)


def _parse_override(override: str, sections: list[str]) -> tuple[str, str, Any]:
    name, equals, raw = override.partition("=")
    section, dot, field = name.strip().partition(".")
    if not (equals and dot and section and field):
        raise ConfigError(f"--set {override!r}: write section.field=value, for example {sections[-1]}.FIELD=VALUE")
    if section not in sections:
        raise ConfigError(f"--set {override!r}: no section {section!r}; there are: {', '.join(sections)}")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()  # a bare word is a string
    return section, field, value


def validated(kind: type[S], values: dict[str, Any]) -> S:
    """Return settings made from plain values.

    Raises:
        ConfigError: naming the first wrong field and what is allowed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"setting {field} = {first.get('input')!r}: {first['msg']}") from error
