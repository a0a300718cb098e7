"""The linear baseline, which the LSTM must beat: the strongest of some linear models, trained on the same texts.

The models are linear SVMs with TF-IDF features: words and word pairs; these and character n-grams; and for two classes
words, pairs and triples weighted by naive Bayes. The validation split chooses among those that fit into a time budget.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.metrics.classification import best_thresholds, decide, macro_f1
from pipeline.training.linear.svm import fit_naive_bayes_svm, fit_svm

BUDGET_SECONDS = 120.0
SAMPLE_TEXTS = 200  # on which the time for character n-grams is estimated
MAX_CHARACTER_NGRAMS = 400_000
STRENGTH, NAIVE_BAYES_STRENGTH = 0.5, 0.1  # scikit-learn's C

WORDS, CHARACTERS = "words 1-2", "words 1-2, characters 2-5"
NAIVE_BAYES = "words 1-3, naive Bayes"
MOST_FREQUENT = "most frequent class"


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their classes.

    Attributes:
        texts: as they are.
        words: their tokens separated by spaces, from our tokenizer, so that every script works.
        targets: bool [texts, classes].
    """

    texts: Sequence[str]
    words: Sequence[str]
    targets: NDArray[np.bool_]

    def joined(self, other: "LabelledTexts") -> Self:
        """Return these texts and evaluated."""
        targets = np.concatenate([self.targets, other.targets])
        return type(self)([*self.texts, *other.texts], [*self.words, *other.words], targets)


class _Candidate(NamedTuple):
    """A kind of linear model: a sparse feature matrix of each split, and how a binary or multi-class SVM is fitted."""

    features: Callable[[LabelledTexts, Sequence[LabelledTexts]], list[Any]]
    fit: Callable[[Any, NDArray[Any]], Any]


def linear_baseline(
    train: LabelledTexts,
    validation: LabelledTexts,
    test: LabelledTexts,
    *,
    multi_label: bool = False,
    budget_seconds: float = BUDGET_SECONDS,
    on_predicted: Callable[[NDArray[np.bool_]], object] = lambda _: None,
) -> dict[str, Any]:
    """Choose a linear model on the validation texts, train it on these too, and score it on the test texts.

    Args:
        train: texts to train on.
        validation: texts that choose the model; with several labels, each class's threshold too.
        test: texts to score.
        multi_label: a text can have several classes, or none: one SVM for each class against the rest.
        budget_seconds: characters are left out where they would take longer.
        on_predicted: called with the predicted classes [test texts, classes].

    Returns:
        `name`, `accuracy`, `macro_f1` (None without test texts), `seconds` (of all models), `features` (number of the
        chosen one; 0 where there is nothing to fit and the most frequent class is predicted), `validation_macro_f1` of
        each model, `left_out` (names), and `budget_seconds`.
    """
    started = time.perf_counter()
    scores: dict[str, float] = {}
    left_out: list[str] = []
    name, features = MOST_FREQUENT, 0
    predicted = np.zeros(test.targets.shape, dtype=bool)
    predicted[:, train.targets.sum(axis=0).argmax()] = True
    if np.count_nonzero(train.targets.any(axis=0)) >= 2 and any(map(str.strip, train.words)):
        candidates = _candidates(multi_label or train.targets.shape[1] > 2)
        if _character_seconds(train, validation, test) > budget_seconds:
            left_out.append(CHARACTERS)
            del candidates[CHARACTERS]
        with ThreadPoolExecutor(2) as threads:
            works = {
                key: threads.submit(_validate, candidate, train, validation, multi_label)
                for key, candidate in candidates.items()
            }
            scores = {key: work.result() for key, work in works.items()}
        name = max(reversed(scores), key=scores.__getitem__)  # of equal ones that with more features
        predicted, features = _test(candidates[name], train, validation, test, multi_label)
    on_predicted(predicted)
    has_test = len(test.targets) > 0
    return {
        "name": name,
        "accuracy": float((predicted == test.targets).all(axis=1).mean()) if has_test else None,
        "macro_f1": macro_f1(predicted, test.targets) if has_test else None,
        "seconds": round(time.perf_counter() - started, 3),
        "features": features,
        "validation_macro_f1": scores,
        "left_out": left_out,
        "budget_seconds": budget_seconds,
    }


def _candidates(many_classes: bool) -> dict[str, _Candidate]:
    fit = partial(fit_svm, strength=STRENGTH, tolerance=1e-3)
    candidates = {WORDS: _Candidate(_word_features, fit), CHARACTERS: _Candidate(_all_features, fit)}
    if not many_classes:
        weighted = partial(fit_naive_bayes_svm, strength=NAIVE_BAYES_STRENGTH)
        candidates[NAIVE_BAYES] = _Candidate(_presence, weighted)
    return candidates


def _character_seconds(train: LabelledTexts, validation: LabelledTexts, test: LabelledTexts) -> float:
    """Return about how long it takes to make the features of characters twice, and to fit them twice."""
    total = sum(len(text) for texts in (train, train, validation, validation, test) for text in texts.texts)
    sample = train.texts[:: max(1, len(train.texts) // SAMPLE_TEXTS)]
    started = time.perf_counter()
    _character_vectorizer().set_params(min_df=1).fit_transform(sample)
    share = total / max(sum(map(len, sample)), 1)
    by_class = 1 + train.targets.shape[1] / 20  # seconds of the fit beside those of the features, measured
    return (time.perf_counter() - started) * share * by_class


def _validate(candidate: _Candidate, train: LabelledTexts, validation: LabelledTexts, multi_label: bool) -> float:
    """Return the macro-F1 on the validation texts after training on the training texts."""
    fitted, evaluated = candidate.features(train, [validation])
    values = _decision_values(candidate, fitted, train.targets, evaluated, multi_label)
    return macro_f1(_decided(values, values, validation.targets, multi_label), validation.targets)


def _test(
    candidate: _Candidate, train: LabelledTexts, validation: LabelledTexts, test: LabelledTexts, multi_label: bool
) -> tuple[NDArray[np.bool_], int]:
    """Return the predicted classes [test texts, classes], and the number of features."""
    if multi_label:  # the validation texts choose the thresholds, so they cannot be trained on
        fitted, of_validation, of_test = candidate.features(train, [validation, test])
        chosen = _decision_values(candidate, fitted, train.targets, of_validation, multi_label)
        values = _decision_values(candidate, fitted, train.targets, of_test, multi_label)
        return _decided(chosen, values, validation.targets, multi_label), fitted.shape[1]
    everything = train.joined(validation)
    fitted, of_test = candidate.features(everything, [test])
    values = _decision_values(candidate, fitted, everything.targets, of_test, multi_label)
    return _decided(values, values, validation.targets, multi_label), fitted.shape[1]


def _decision_values(
    candidate: _Candidate, features: Any, targets: NDArray[np.bool_], evaluated: Any, multi_label: bool
) -> NDArray[np.float64]:
    """Return decision values [texts, classes] of other texts; a class without examples has the lowest."""
    values = np.full((evaluated.shape[0], targets.shape[1]), -np.inf)
    if multi_label:
        for number, members in enumerate(targets.T):
            if members.all() or not members.any():
                values[:, number] = np.inf if members.all() else -np.inf
                continue
            model = candidate.fit(features, members)
            values[:, number] = evaluated @ model.coef_[0] + model.intercept_[0]
        return values
    label_ids = targets.argmax(axis=1)
    present = np.unique(label_ids)
    if len(present) < 2:
        values[:, present] = 0.0
        return values
    model = candidate.fit(features, label_ids)
    margins = evaluated @ model.coef_.T + model.intercept_
    values[:, present] = np.concatenate([-margins, margins], axis=1) if len(present) == 2 else margins
    return values


def _decided(
    of_validation: NDArray[np.float64], of_test: NDArray[np.float64], targets: NDArray[np.bool_], multi_label: bool
) -> NDArray[np.bool_]:
    """Return the classes [test texts, classes]; with several labels, from the best thresholds on validation."""
    if not multi_label:
        return decide(of_test)
    squashed = [1 / (1 + np.exp(-np.clip(values, -30, 30))) for values in (of_validation, of_test)]
    return decide(squashed[1], best_thresholds(squashed[0], targets))


def _word_features(fitted: LabelledTexts, evaluated: Sequence[LabelledTexts]) -> list[Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=2,
        token_pattern=r"\S+",
        lowercase=False,
        dtype=np.float32,  # half the memory; the score does not change
    )
    return _transformed(vectorizer, [texts.words for texts in (fitted, *evaluated)])


def _all_features(fitted: LabelledTexts, evaluated: Sequence[LabelledTexts]) -> list[Any]:
    characters = _transformed(_character_vectorizer(), [texts.texts for texts in (fitted, *evaluated)])
    words = _word_features(fitted, evaluated)
    return [sparse.hstack(both, format="csr") for both in zip(words, characters, strict=True)]


def _presence(fitted: LabelledTexts, evaluated: Sequence[LabelledTexts]) -> list[Any]:
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(
        ngram_range=(1, 3), binary=True, min_df=2, token_pattern=r"\S+", lowercase=False, dtype=np.float32
    )
    return _transformed(vectorizer, [texts.words for texts in (fitted, *evaluated)])


def _character_vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        analyzer="char_wb",
        ngram_range=(2, 5),
        sublinear_tf=True,
        min_df=3,
        max_features=MAX_CHARACTER_NGRAMS,
        dtype=np.float32,
    )


def _transformed(vectorizer: Any, columns: Sequence[Sequence[str]]) -> list[Any]:
    """Fit a vectorizer to the first column, and return the features of all."""
    first, *evaluated = columns
    try:
        fitted = vectorizer.fit_transform(first)
    except ValueError:  # how scikit-learn says that the vocabulary is empty: in a tiny corpus no word is in two texts
        fitted = vectorizer.set_params(min_df=1).fit_transform(first)
    none = sparse.csr_matrix((0, fitted.shape[1]), dtype=np.float32)
    return [fitted, *(vectorizer.transform(column) if len(column) else none for column in evaluated)]
