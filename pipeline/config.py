"""Settings as frozen values with a description for each field.

The same models are flow parameters (so the Prefect UI draws a form), TOML presets, and `--set` options.
They stop at the door: library functions take the values they need.
"""

import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError

S = TypeVar("S", bound="Settings")
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


def _fit_form(schema: dict[str, Any], kind: type["Settings"]) -> None:
    """Draw an optional field as one input, not as a choice of types; let stored parameters use an earlier name."""
    for field in schema["properties"].values():
        types = [option for option in field.get("anyOf", []) if option != {"type": "null"}]
        if len(types) == 1:
            del field["anyOf"], field["default"]
            field.update(types[0])
    earlier = kind.current_names().keys() - kind.model_fields.keys()
    schema.update({"patternProperties": {f"^{name}$": {} for name in sorted(earlier)}} if earlier else {})


class Settings(BaseModel):
    """Settings are frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_fit_form)

    @classmethod
    def current_names(cls) -> dict[str, str]:
        """Return the field that each accepted name stands for: its own name, or one from an earlier version."""
        aliases = {name: field.validation_alias for name, field in cls.model_fields.items()}
        return {
            str(accepted): name
            for name, alias in aliases.items()
            for accepted in (alias.choices if isinstance(alias, AliasChoices) else [name])
        }


class IngestConfig(Settings):
    """How raw files become documents."""

    text: Annotated[list[str], Field(min_length=1)] = Field(
        default=["text"],
        title="Text columns",
        description="Column with the text; several columns are joined. Without a header: its number, from 1.",
    )
    label: str | None = Field(
        default=None,
        title="Label column",
        description="Column with the label; rows with an empty value are unlabelled. Not given: 'label', if any.",
    )
    label_separator: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        title="Label separator",
        description="Separator of a document's labels in the label column, for example '|'. "
        "Not given: each document has one label, unless the column holds lists.",
    )
    id: str | None = Field(
        default=None,
        title="Id column",
        description="Column with a unique id. Not given: 'id' or 'doc_id', if any, else a hash of the text.",
    )
    split: str | None = Field(
        default=None,
        title="Split",
        description="train, validation or test, or the column that names it. Not given: assigned in training.",
    )
    group: str | None = Field(
        default=None,
        title="Group column",
        description="Column that names the group of a text, for example its film, customer or thread: a group stays "
        "in one split. Not given: each text is a group of its own.",
    )
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "folder"] = Field(
        default="auto", title="File format", description="Format of the sources; auto: by file name."
    )
    header: bool = Field(
        default=True,
        title="Header row",
        description="The first row of a CSV or TSV file names the columns.",
    )
    encoding: str = Field(
        default="utf-8",
        title="Encoding",
        description="Character encoding of text files, for example utf-8, cp1252 or shift_jis.",
    )
    join: str = Field(
        default="\n",
        title="Text separator",
        description="Inserted between several text columns; a line break by default.",
    )
    clean_html: bool = Field(default=False, title="Remove HTML", description="Decode HTML entities and remove tags.")
    max_reject_rate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.05,
        title="Maximum reject rate",
        description="Share of rejected rows, from 0 to 1, above which the batch is not committed.",
    )
    max_text_bytes: Annotated[int, Field(ge=1)] = Field(
        default=1_000_000, title="Longest text", description="Reject texts longer than this many bytes."
    )


class TokenizerConfig(Settings):
    """How a text becomes token ids."""

    vocabulary_size: Annotated[int, Field(ge=3)] = Field(
        default=100_000, description="Maximum vocabulary size, padding and unknown included."
    )
    min_count: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Minimum occurrences of a word in the training texts."
    )
    max_tokens: Annotated[int, Field(ge=1)] = Field(
        default=400, description="Truncate longer texts to this many tokens."
    )
    truncation: Literal["head", "tail", "both"] = Field(
        default="both", description="Part of a truncated text that is used: its start, its end, or half of each."
    )
    lowercase: bool = Field(default=True, description="Convert to lower case.")
    remove_punctuation: bool = Field(default=False, description="Drop punctuation; otherwise each mark is a token.")
    remove_stop_words: bool = Field(default=False, description="Drop common English function words.")
    split_hangul: bool = Field(
        default=True, description="Make each Hangul syllable a token; otherwise each word between spaces."
    )


class ModelConfig(Settings):
    """The architecture of the LSTM classifier."""

    vocabulary_size: Annotated[int, Field(ge=3)] = Field(
        default=30_000, description="Most frequent words that the LSTM knows; the linear branches know all."
    )
    embedding_size: Annotated[int, Field(ge=1)] = Field(default=128, description="Numbers per word vector.")
    subwords: bool = Field(
        default=True,
        description="While training from scratch, add vectors of character n-grams to those of the words.",
    )
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
        default=4_194_301,
        description="Most hash buckets for word pairs in the linear branch beside the LSTM, best a prime; "
        "0 for no branch.",
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
    adversarial: Annotated[float, Field(ge=0.0)] = Field(
        default=0.0,
        description="Adversarial training: size of the step of the word vectors that makes the loss worst, on which "
        "the LSTM is trained too, for example 0.1; it doubles the time. 0: none.",
    )
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
        description="How rows without a given split are divided: by a hash of the text or of its group, "
        "or stratified by class (groups whole, by the most frequent class of each).",
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
    """Selective classification: label only rows whose confidence meets a target precision; people review the others."""

    target_precision: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0,
        description="Target precision: share of the labelled rows that must be right, for example 0.95; rows below "
        "the confidence threshold get status 'review'. 0: none.",
    )
    per: Literal["all", "class"] = Field(
        default="all", description="Meet the target precision over all labelled rows, or for each class."
    )
    none_label: str = Field(
        default="", description="Label of the examples that belong to no class (out of scope). Empty: none."
    )
    none_labelled: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.1, description="Maximum share of out-of-scope texts that are labelled as a class."
    )


class PromotionConfig(Settings):
    """When a new version replaces the champion."""

    margin: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.005,
        title="Macro-F1 margin",
        description="A version passes if, with 95 % confidence, its macro-F1 is less than this below the champion's, "
        "or if it is at least as high; 0: a lower one never passes.",
    )
    class_margin: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.05,
        title="F1 margin of a class",
        description="A version does not pass if a class loses significantly more F1 than this.",
    )


class Recipe(Settings):
    """All settings of a training run."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    training: TrainingConfig = TrainingConfig()
    # Stored under its earlier name, so that an earlier version finds the target precision of a new bundle.
    selective: SelectiveConfig = Field(
        default=SelectiveConfig(),
        validation_alias=AliasChoices("selective", "promise"),
        serialization_alias="promise",
    )
    promotion: PromotionConfig = PromotionConfig()


class ScoringConfig(Settings):
    """How documents are labelled."""

    target_precision: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        default=None,
        title="Target precision",
        description="Share of the labelled rows that must be right, from 0 to 1; rows below the confidence threshold "
        "get status 'review'. Not given: the model's own target; 0: none.",
    )
    review_below: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        default=None,
        title="Review below",
        description="Rows with a lower confidence, from 0 to 1, get status 'review', whatever the target precision. "
        "Not given: 0.5 without a target precision.",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto",
        title="Device",
        description="Device that runs the model; auto: the GPU, or the CPU with a warning if the GPU does not work.",
    )
    variant: Literal["auto", "fp32", "int8", "fp16"] = Field(
        default="auto",
        validation_alias=AliasChoices("variant", "precision"),
        title="Variant",
        description="Numbers the model computes with; auto takes the fastest whose labels agree with fp32.",
    )
    evidence: bool = Field(
        default=False,
        title="Evidence",
        description="Add to each row the words that its label rests on, and their weights.",
    )
    threads: Annotated[int, Field(ge=0)] = Field(default=0, title="CPU cores", description="CPU cores to use; 0: all.")
    batch_tokens: Annotated[int, Field(ge=0)] = Field(
        default=0,
        title="Tokens in a minibatch",
        description="Maximum token slots in a minibatch, padding included; 0: chosen for the device.",
    )
    part_minutes: Annotated[float, Field(gt=0.0)] = Field(
        default=60.0,
        title="Timeout of a part",
        description="Fail the run if no part finishes within this many minutes: a disk or device hangs.",
    )


class DriftConfig(Settings):
    """Drift checks: which deviations from the training data and from earlier nights warn, and which hold a night."""

    hold: bool = Field(
        default=True,
        title="Hold drifted nights",
        description="Hold the labels of a night beyond a hold threshold back from publishing; off: only warn.",
    )
    psi_warn: Annotated[float, Field(gt=0.0)] = Field(
        default=0.1,
        title="PSI warning threshold",
        description="Warn from this population stability index (PSI) against the model's reference; 0.1: slight drift.",
    )
    psi_hold: Annotated[float, Field(gt=0.0)] = Field(
        default=0.25,
        title="PSI hold threshold",
        description="Hold the night from this PSI; 0.25: strong drift.",
    )
    empty_warn: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.1,
        title="Empty texts: warning threshold",
        description="Warn from this increase of the share of empty texts over the reference profile.",
    )
    empty_hold: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.5,
        title="Empty texts: hold threshold",
        description="Hold the night from this increase of the share of empty texts over the reference profile.",
    )
    volume_factor: Annotated[float, Field(gt=1.0)] = Field(
        default=10.0,
        title="Volume factor",
        description="Hold a night with this many times more or fewer rows than the median of earlier nights.",
    )
    nights: Annotated[int, Field(ge=1)] = Field(
        default=14, title="Nights to compare with", description="Compare with the last this many published nights."
    )
    least_nights: Annotated[int, Field(ge=1)] = Field(
        default=3,
        title="Minimum nights",
        description="Without this many earlier nights, skip the comparison.",
    )


class NightConfig(Settings):
    """All settings of a night: ingest, scoring, drift checks."""

    ingest: IngestConfig = IngestConfig()
    score: ScoringConfig = ScoringConfig()
    drift: DriftConfig = Field(default=DriftConfig(), validation_alias=AliasChoices("drift", "health"))


def preset_names() -> list[str]:
    """Return the names of the presets in the package."""
    folder = resources.files("pipeline") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(preset: str = "default", overrides: list[str] | None = None) -> Recipe:
    """Return a preset with `section.field=value` overrides applied.

    Args:
        preset: one of `preset_names`, or the path of a file that ends in .toml.
        overrides: each as `section.field=value`.

    Raises:
        ConfigError: an unknown preset, section or field, an unreadable file, or a value outside its limits.
    """
    if preset in preset_names():
        path = resources.files("pipeline") / "presets" / f"{preset}.toml"
    elif preset.endswith(".toml"):
        path = Path(preset)
    else:
        raise ConfigError(f"no preset {preset!r}; there are: {', '.join(preset_names())}, and paths of .toml files")
    try:
        recipe = validated(Recipe, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"preset {preset}: there is no such file") from error
    except OSError as error:
        raise ConfigError(f"preset {preset}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"preset {preset}: not TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"preset {preset}: {error}") from error
    return apply_overrides(recipe, overrides or [])


def stored_recipe(values: dict[str, dict[str, Any]]) -> Recipe:
    """Return the settings stored in a bundle or an encoder, without those that no longer exist.

    Raises:
        ConfigError: a value outside its limits.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, fields in values.items():
        section = Recipe.current_names().get(name)
        if section:
            names = type(Recipe.model_fields[section].default).model_fields
            sections[section] = {field: value for field, value in fields.items() if field in names}
    return validated(Recipe, sections)


def training_digest_values(recipe: Recipe, sections: set[str]) -> dict[str, dict[str, Any]]:
    """Return sections of a recipe, "training" among them, as JSON values to compute a digest from.

    Removed settings stay in it at their defaults, so that checkpoints and searches begun before are found.
    """
    values: dict[str, dict[str, Any]] = recipe.model_dump(mode="json", include=sections)
    values["training"] |= {"frozen_share": 0.0, "teacher_temperature": 1.0}
    return values


def apply_overrides(settings: S, overrides: Iterable[str]) -> S:
    """Return settings of several sections with `section.field=value` applied; earlier names are accepted.

    Raises:
        ConfigError: an unknown section or field, or a value outside its limits.
    """
    values = settings.model_dump()
    sections = settings.current_names()
    for override in overrides:
        name, equals, raw = override.partition("=")
        section, dot, field = name.strip().partition(".")
        if not (equals and dot and section and field):
            example = next(reversed(values))
            raise ConfigError(f"--set {override!r}: write section.field=value, for example {example}.FIELD=VALUE")
        if section not in sections:
            raise ConfigError(f"--set {override!r}: no section {section!r}; there are: {', '.join(values)}")
        section = sections[section]
        field = getattr(settings, section).current_names().get(field, field)
        try:
            values[section][field] = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            values[section][field] = raw.strip()  # a bare word is a string
    return validated(type(settings), values)


def validated(kind: type[S], values: dict[str, Any]) -> S:
    """Return settings made from plain values.

    Raises:
        ConfigError: names the first wrong field and what is allowed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(key) for key in first["loc"])
        raise ConfigError(f"setting {field} = {first.get('input')!r}: {first['msg']}") from error
