"""Teaching: a sentence encoder's embeddings of the documents become soft labels and word vectors for a training."""
