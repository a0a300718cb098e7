"""Linear models over n-grams and document vectors: branches of a classifier, and its baseline."""
