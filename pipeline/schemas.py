"""The Arrow schema of each dataset, used by every read and every write."""

from collections.abc import Iterable

import pyarrow as pa

# A document, from any source. The user's other columns are passed through behind these.
DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("label", pa.string()),  # null = unlabelled; several labels are joined, see join_labels
        pa.field("split", pa.string()),  # train, validation, test; null = assigned by content_hash, or by the group
        pa.field("content_hash", pa.binary(16), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # the file it came from
        pa.field("row", pa.int64(), nullable=False),  # its row in that file, counting from 1
    ]
)

# Behind them in batches that were ingested with a group column, see `Batch.group_column`. Others may have a column of
# this name too: the user's own, passed through.
GROUP = pa.field("group", pa.string())

REJECTS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("raw_text", pa.string(), nullable=False),
    ]
)

# Token ids for training: a cache that can be rebuilt from documents and a vocabulary.
TOKENS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("label_id", pa.int32(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("group", pa.int64()),  # equal for texts of one group; null if the documents have no groups
    ]
)

# Token ids for pretraining: texts, long ones cut into chunks.
CHUNKS = pa.schema([pa.field("token_ids", pa.list_(pa.int32()), nullable=False)])

# Embeddings of texts by a sentence encoder: a cache that can be rebuilt from documents and the encoder.
EMBEDDINGS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # in the documents part
        pa.field("vector", pa.list_(pa.float16()), nullable=False),  # of length 1
    ]
)

# The texts of a teacher: those with soft labels, and those it was fitted on.
TEACHER_TEXTS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(16), nullable=False),
        pa.field("fitted", pa.bool_(), nullable=False),
    ]
)


def soft_labels_schema(labels: Iterable[str]) -> pa.Schema:
    """Return the schema of soft labels: the id of a document, and a column of probabilities for each class."""
    names = list(labels)
    doc_id = "id" if "doc_id" in names else "doc_id"
    classes = [pa.field(name, pa.float32(), nullable=False) for name in names]
    return pa.schema([pa.field(doc_id, pa.string(), nullable=False), *classes])


LABELS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("label", pa.string()),  # the most probable class; null where status is "empty" or there is none
        pa.field("labels", pa.list_(pa.string())),  # all assigned classes; null where a document has exactly one label
        pa.field("confidence", pa.float32()),
        pa.field("scores", pa.list_(pa.float32())),  # one per class, in the bundle's label order
        # What words and word pairs add to the logit of the most probable class, descending; null unless requested.
        pa.field("evidence", pa.list_(pa.struct([("word", pa.string()), ("weight", pa.float32())]))),
        pa.field("status", pa.string(), nullable=False),  # scored, review, empty
        pa.field("model", pa.string(), nullable=False),  # name@version
    ]
)

# Predictions for held-out texts whose label is known: the selective policy is fitted on them.
PREDICTIONS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),  # validation, test
        pa.field("predicted", pa.int32(), nullable=False),
        pa.field("truth", pa.int32(), nullable=False),  # -1 in a multi-label model
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
    ]
)

# A row exported for review, with the label of the model or of the corpus.
REVIEW_REQUESTS = pa.schema(
    [
        pa.field("batch", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(16), nullable=False),  # the answer holds for every document with this text
        pa.field("why", pa.string(), nullable=False),  # see REVIEW_REASONS
        pa.field("label", pa.string(), nullable=False),  # several labels are joined, see join_labels
        pa.field("several", pa.bool_(), nullable=False),  # whether the model is multi-label
        pa.field("second", pa.string()),  # the second most probable class
        pa.field("confidence", pa.float32()),
        pa.field("status", pa.string(), nullable=False),  # as in LABELS; "labelled" where the label is from the corpus
        pa.field("model", pa.string(), nullable=False),  # name@version
        pa.field("asked_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

# Answers of reviewers. Append-only: both answers for a text are kept, and the later one counts.
REVIEW_ANSWERS = pa.schema(
    [
        *REVIEW_REQUESTS,
        pa.field("correct", pa.string(), nullable=False),  # the right label, joined like `label`
        pa.field("new_class", pa.bool_(), nullable=False),  # whether it was accepted although no document had it
        pa.field("note", pa.string(), nullable=False),
        pa.field("reviewer", pa.string(), nullable=False),
        pa.field("reviewed_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("file_digest", pa.string(), nullable=False),  # SHA-256 of the imported file
    ]
)

REVIEW_REASONS = ("doubtful", "sample", "suspicious")

SPLITS = ("train", "validation", "test")
STATUSES = ("scored", "review", "empty")

LABEL_SEPARATOR = "|"


def join_labels(labels: Iterable[str]) -> str:
    """Return the labels of one document as one string, as documents store them; "" for none of the classes."""
    return LABEL_SEPARATOR.join(sorted(set(labels)))


def split_labels(joined: str) -> list[str]:
    """Return the labels that `join_labels` joined."""
    return joined.split(LABEL_SEPARATOR) if joined else []
