"""Figures are small PNGs that can be drawn from whatever a training run measured."""

import struct

import numpy as np
import pytest
from conftest import one_hot

from pipeline.metrics.classification import evaluate
from pipeline.metrics.plots import confusion_matrix, reliability_diagram
from pipeline.training.plots import learning_curve, perplexity_curve

LARGEST = 300_000  # what a Prefect artifact shows without trouble


def width(png: bytes) -> int:
    assert png.startswith(b"\x89PNG")
    pixels: int = struct.unpack(">I", png[16:20])[0]
    return pixels


def scores(classes: int, n: int = 400) -> dict:
    generator = np.random.default_rng(classes)
    label_ids = generator.integers(0, classes, n)
    probabilities = generator.dirichlet(np.full(classes, 0.1), n)
    return evaluate(probabilities, one_hot(label_ids, classes), [f"label_{i}" for i in range(classes)])


def epochs(n: int) -> list[dict]:
    return [
        {"epoch": i, "train_loss": 1 / i, "validation_loss": 1.1 / i, "validation_macro_f1": 1 - 0.5 / i}
        for i in range(1, n + 1)
    ]


@pytest.mark.parametrize("classes", [2, 7, 20, 77, 150])
def test_a_confusion_matrix_stays_small_however_many_classes(classes):
    png = confusion_matrix(scores(classes)["confusion"], [f"a rather long label {i}" for i in range(classes)])
    assert width(png) == 700
    assert len(png) < LARGEST


def test_labels_in_any_script_are_drawn_as_they_are():
    """A dollar sign starts no formula, and a missing font is no warning."""
    png = confusion_matrix([[3, 1], [0, 2]], ["costs $5 or $x_", "好评"])
    assert width(png) == 700


@pytest.mark.parametrize("n", [0, 1, 4, 40])
def test_a_learning_curve_of_any_number_of_epochs(n):
    png = learning_curve({"": epochs(n)})
    assert width(png) == 700
    assert len(png) < LARGEST


def test_learning_curves_of_several_trainings_stand_in_one_picture():
    png = learning_curve({"pretrained": epochs(6), "from scratch": epochs(9)})
    assert width(png) == 700
    assert len(png) < LARGEST
    assert png != learning_curve({"pretrained": epochs(6)})


def test_a_perplexity_curve():
    png = perplexity_curve([{"epoch": n, "perplexity": 400 / n} for n in range(1, 9)])
    assert width(png) == 700
    assert len(png) < LARGEST


def test_a_learning_curve_without_validation():
    history = [{**entry, "validation_loss": None, "validation_macro_f1": None} for entry in epochs(3)]
    assert width(learning_curve({"": history})) == 700


def test_a_reliability_diagram():
    result = scores(7)
    png = reliability_diagram(result["reliability"], result["calibration_error"])
    assert width(png) == 700
    assert len(png) < LARGEST


@pytest.mark.parametrize("classes", [2, 77])
def test_figures_of_an_empty_test_set_say_so_instead_of_failing(classes):
    labels = [str(i) for i in range(classes)]
    result = evaluate(np.zeros((0, classes)), np.zeros((0, classes), bool), labels)
    assert width(confusion_matrix(result["confusion"], labels)) == 700
    assert width(reliability_diagram(result["reliability"], result["calibration_error"])) == 700


def test_the_same_scores_give_the_same_bytes():
    result = scores(5)
    first, second = (confusion_matrix(result["confusion"], list("abcde")) for _ in range(2))
    assert first == second
