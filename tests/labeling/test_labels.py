import numpy as np
import pytest
from labeled_images import detected

from semidetr_hf.labeling.calibration import Calibration, ClassThreshold
from semidetr_hf.labeling.labels import label_by_calibration, label_by_threshold

BOX = (0.0, 0.0, 10.0, 10.0)


def calibration(*thresholds: float | None) -> Calibration:
    """One whose probabilities are half the scores."""
    return Calibration(
        precision=0.9,
        classes=tuple(
            ClassThreshold(name="x", threshold=value, estimate=None, num_right=0, num_found=0, num_objects=0)
            for value in thresholds
        ),
        scores=np.array([0.0, 1.0]),
        probabilities=np.array([0.0, 0.5]),
    )


def test_labels_reach_the_threshold_and_the_uncertainty_counts_what_is_just_below() -> None:
    (image,) = label_by_threshold([detected("a", (0, 0.75, BOX), (1, 0.5, BOX), (0, 0.25, BOX), (0, 0.24, BOX))], 0.5)
    assert image.labels.scores.tolist() == [0.75, 0.5]
    assert image.considered.scores.tolist() == [0.75, 0.5, 0.25]
    # Entropies in bits: 0.811278 of 3/4, 1 of 1/2, 0.811278 of 1/4.
    assert image.uncertainty == pytest.approx(2.622556, abs=1e-6)


def test_the_most_uncertain_image_comes_first_and_equals_keep_their_order() -> None:
    images = [
        detected("empty"),
        detected("sure", (0, 0.999, BOX)),
        detected("unsure", (0, 0.5, BOX)),
        detected("none"),
    ]
    assert [image.detected.image_id for image in label_by_threshold(images, 0.5)] == [
        "unsure",
        "sure",
        "empty",
        "none",
    ]


def test_every_class_has_its_calibrated_threshold() -> None:
    found = detected("a", (0, 0.75, BOX), (1, 0.75, BOX), (2, 0.75, BOX), (0, 0.25, BOX), (0, 0.125, BOX))
    (image,) = label_by_calibration([found], calibration(0.5, 0.8, None))
    assert image.labels.class_labels.tolist() == [0] and image.labels.scores.tolist() == [0.75]
    # Probabilities 0.375 three times, 0.125, and 0.0625, which is too low to be a question.
    assert len(image.considered) == 4
    assert image.uncertainty == pytest.approx(3 * 0.954434 + 0.543564, abs=1e-5)


def test_the_score_that_became_the_threshold_passes() -> None:
    found = detected("a", (0, 0.1, BOX))  # not a number of float32
    (image,) = label_by_calibration([found], calibration(found.found.scores.double().item()))
    assert len(image.labels) == 1


def test_an_image_without_detections_is_certain() -> None:
    (image,) = label_by_calibration([detected("a")], calibration(0.5))
    assert len(image.labels) == 0 and image.uncertainty == 0


def test_a_threshold_out_of_range() -> None:
    with pytest.raises(ValueError, match="threshold=1.5: must be from 0 to 1"):
        label_by_threshold([], 1.5)
