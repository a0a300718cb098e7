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
PIECES = pa.schema([pa.field("token_ids", pa.list_(pa.int32()), nullable=False)])

LABELS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("label", pa.string()),  # the likeliest; null where status is "empty" or no class was given
        pa.field("labels", pa.list_(pa.string())),  # all that were given; null where a document has just one label
        pa.field("confidence", pa.float32()),
        pa.field("scores", pa.list_(pa.float32())),  # one per class, in the bundle's label order
        pa.field("status", pa.string(), nullable=False),  # scored, review, empty
        pa.field("model", pa.string(), nullable=False),  # name@version
    ]
)

SPLITS = ("train", "validation", "test")
STATUSES = ("scored", "review", "empty")

LABEL_SEPARATOR = "|"


def join_labels(labels: Iterable[str]) -> str:
    """Return several labels of one document as a documents part keeps them; "" for none of the classes."""
    return LABEL_SEPARATOR.join(sorted(set(labels)))


def split_labels(joined: str) -> list[str]:
    return joined.split(LABEL_SEPARATOR) if joined else []
