"""Raw files become documents: every row read is a document, a duplicate or a reject."""

from pipeline.ingest.batch import ingest
from pipeline.ingest.report import IngestReport

__all__ = ["IngestReport", "ingest"]
