"""One Arrow schema for each dataset. Every read and every write uses it."""

from collections.abc import Iterable

import pyarrow as pa

# What a document is, whatever it came from. The user's other columns follow these, passed through.
DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("label", pa.string()),  # null = unlabelled; several are joined, see join_labels
        pa.field("split", pa.string()),  # train, validation, test; null = decided by content_hash
        pa.field("content_hash", pa.binary(16), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # the file it came from
        pa.field("row", pa.int64(), nullable=False),  # its row in that file, counting from 1
    ]
)

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
    ]
)

# Token ids for pretraining: texts, long ones in pieces.
CHUNKS = pa.schema([pa.field("token_ids", pa.list_(pa.int32()), nullable=False)])

LABELS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("label", pa.string()),  # the likeliest; null where status is "empty" or no class was given
        pa.field("labels", pa.list_(pa.string())),  # all that were given; null where a document has just one label
        pa.field("confidence", pa.float32()),
        pa.field("scores", pa.list_(pa.float32())),  # one per class, in the bundle's label order
        # What words and word pairs add to the logit of the likeliest class, the most first; null unless asked for.
        pa.field("evidence", pa.list_(pa.struct([("word", pa.string()), ("weight", pa.float32())]))),
        pa.field("status", pa.string(), nullable=False),  # scored, review, empty
        pa.field("model", pa.string(), nullable=False),  # name@version
    ]
)

# What a model claimed of texts whose label is known: promises are made from it.
PREDICTIONS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),  # validation, test
        pa.field("predicted", pa.int32(), nullable=False),
        pa.field("truth", pa.int32(), nullable=False),  # -1 where a document can have several classes
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
    ]
)

# A row that a person was asked to review, and what the model, or the corpus, said of it.
REVIEW_REQUESTS = pa.schema(
    [
        pa.field("batch", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("content_hash", pa.binary(16), nullable=False),  # a review is of this text, wherever it stands
        pa.field("why", pa.string(), nullable=False),  # see REASONS
        pa.field("label", pa.string(), nullable=False),  # several are joined, see join_labels
        pa.field("several", pa.bool_(), nullable=False),  # whether a document can have several labels
        pa.field("second", pa.string()),  # the class next to it
        pa.field("confidence", pa.float32()),
        pa.field("status", pa.string(), nullable=False),  # of the labels; "labelled" where the label is the corpus's
        pa.field("model", pa.string(), nullable=False),  # name@version
        pa.field("asked_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

# What people answered. Nothing is ever changed here: a later answer for the same text counts, both are kept.
REVIEW_ANSWERS = pa.schema(
    [
        *REVIEW_REQUESTS,
        pa.field("correct", pa.string(), nullable=False),  # the right label, joined likewise
        pa.field("new_class", pa.bool_(), nullable=False),  # whether it was allowed though no document had it
        pa.field("note", pa.string(), nullable=False),
        pa.field("reviewer", pa.string(), nullable=False),
        pa.field("reviewed_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("file_digest", pa.string(), nullable=False),  # SHA-256 of the file that it came in
    ]
)

REVIEW_REASONS = ("doubtful", "sample", "suspicious")

SPLITS = ("train", "validation", "test")
STATUSES = ("scored", "review", "empty")

LABEL_SEPARATOR = "|"


def join_labels(labels: Iterable[str]) -> str:
    """Return several labels of one document as a documents part keeps them; "" for none of the classes."""
    return LABEL_SEPARATOR.join(sorted(set(labels)))


def split_labels(joined: str) -> list[str]:
    return joined.split(LABEL_SEPARATOR) if joined else []
