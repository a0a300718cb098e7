"""While it is trained, a word's vector has a part that it shares with words that look like it."""

import numpy as np
import torch

from pipeline.config import ModelConfig
from pipeline.dataset.tokenizer import RESERVED
from pipeline.training.model import Classifier
from pipeline.training.subwords import SubwordEmbedding

WORDS = ["parcel", "parcels", "refund", "refunds", "q"]


def model() -> Classifier:
    torch.manual_seed(1)
    made = Classifier(len(WORDS) + RESERVED, 2, ModelConfig(embedding_size=8, hidden_size=4))
    made.subwords = SubwordEmbedding.of(WORDS, 8, 0.1)
    return made.eval()


def test_folded_the_model_gives_the_same_logits() -> None:
    trained = model()
    token_ids, lengths = torch.tensor([[2, 3, 1, 6], [5, 4, 0, 0]]), torch.tensor([4, 2])
    with torch.inference_mode():
        before = trained(token_ids, lengths)
        trained.fold_subwords()
        assert trained.subwords is None
        torch.testing.assert_close(trained(token_ids, lengths), before)
    assert not any("subwords" in name for name in trained.state_dict())
    assert not trained.embedding.weight[0].any()  # padding


def test_words_that_look_alike_have_like_vectors_and_share_gradients() -> None:
    subwords = model().subwords
    assert subwords is not None
    vectors = subwords.of_words(torch.arange(RESERVED, RESERVED + len(WORDS)))
    alike = torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0)
    other = torch.nn.functional.cosine_similarity(vectors[0], vectors[2], dim=0)
    assert alike > 0.5 > other
    assert not vectors[4].any()  # no n-gram of it is in another word
    assert not subwords.of_words(torch.tensor([0, 1])).any()  # nor have padding and unknown words any
    vectors[0].sum().backward()
    touched = subwords.vectors.grad.abs().sum(dim=1) > 0  # type: ignore[union-attr]
    assert 0 < int(touched.sum()) < len(touched)


def test_dropped_words_are_told_by_their_ngrams_alone_and_the_generator_decides() -> None:
    subwords = model().subwords
    assert subwords is not None
    words = torch.full((len(WORDS) + RESERVED, 8), 100.0)
    words[1] = -100.0  # of unknown words
    token_ids = torch.arange(RESERVED, RESERVED + len(WORDS)).repeat(40, 1)
    seen = set()
    for seed in range(40):
        drawn = [subwords(token_ids, words, torch.Generator().manual_seed(seed)) for _ in range(2)]
        assert torch.equal(*drawn)
        signs = drawn[0].mean(dim=2) > 0
        assert (signs == signs[0]).all()  # each distinct word at once, wherever it stands
        seen.add(tuple(signs[0].tolist()))
    share = np.mean([not sign for signs in seen for sign in signs])
    assert 0 < share < 0.5
    assert (subwords(token_ids, words).mean(dim=2) > 0).all()  # without a generator none
