import json

import numpy as np
import pytest

from semidetr_hf.labeling.calibration import calibrate
from semidetr_hf.labeling.judging import Judged


def judged(*rows: tuple[float, int, bool], num_objects: tuple[int, ...] = (9, 9)) -> Judged:
    scores, labels, right = zip(*rows, strict=True) if rows else ((), (), ())
    return Judged(
        scores=np.array(scores, dtype=np.float64),
        labels=np.array(labels, dtype=np.int64),
        right=np.array(right, dtype=bool),
        images=np.zeros(len(rows), dtype=np.int64),
        num_objects=num_objects,
    )


def simulated(number: int, seed: int, power: float = 1.0) -> Judged:
    """Ten classes; a detection of the first with score s is right with probability s ** power, of others with s."""
    rng = np.random.default_rng(seed)
    scores, labels = rng.random(number), rng.integers(10, size=number)
    probabilities = np.where(labels == 0, scores**power, scores)
    return Judged(
        scores=scores,
        labels=labels,
        right=rng.random(number) < probabilities,
        images=np.arange(number),
        num_objects=(number,) * 10,
    )


ROWS = ((0.9, 0, True), (0.8, 1, True), (0.7, 0, True), (0.6, 0, False), (0.5, 1, False), (0.4, 0, True))


def test_plain_shares_choose_the_lowest_score_that_reaches_the_precision() -> None:
    # Class 0, best first: 1/1, 2/2, 2/3, 3/4. Class 1: 1/1, 1/2.
    first, second = calibrate(judged(*ROWS), ("cat", "dog"), 0.75, prior_detections=0).classes
    assert (first.threshold, first.estimate, first.num_right, first.num_found) == (0.4, 0.75, 3, 4)
    assert (second.threshold, second.estimate, second.num_right, second.num_found) == (0.8, 1, 1, 1)
    assert (first.name, first.num_objects) == ("cat", 9)


def test_the_precision_of_all_classes_counts_for_so_many_detections() -> None:
    # All, best first: 1/1, 2/2, 3/3, 3/4, 3/5, 4/6. Class 0 with two detections of them: (2 + 2 * 3/4) / (3 + 2) = 0.7
    # at 0.6, (3 + 2 * 4/6) / (4 + 2) = 0.7222 at 0.4. Class 1 at 0.5: (1 + 2 * 3/5) / (2 + 2) = 0.55.
    first, second = calibrate(judged(*ROWS), ("cat", "dog"), 0.72, prior_detections=2).classes
    assert first.threshold == 0.4 and first.estimate == pytest.approx(13 / 18)
    assert second.threshold == 0.8 and second.estimate == 1
    assert calibrate(judged(*ROWS), ("cat", "dog"), 0.73, prior_detections=2).thresholds == [0.7, 0.8]


def test_detections_of_one_score_come_over_the_threshold_together() -> None:
    rows = ((0.5, 0, True), (0.5, 0, False), (0.5, 1, False), (0.9, 1, True))
    first, second = calibrate(judged(*rows), ("cat", "dog"), 0.6, prior_detections=0).classes
    assert first.threshold is None and first.estimate == 0.5
    assert second.threshold == 0.9
    # All of them: 1/1, then 2/4 for each of the three that are tied.
    assert calibrate(judged(*rows), ("cat", "dog"), 0.6, prior_detections=2).classes[0].estimate == 0.5


def test_a_class_that_was_not_found_gets_no_labels() -> None:
    classes = calibrate(judged(*ROWS, num_objects=(9, 9, 4)), ("cat", "dog", "owl"), 0.5).classes
    assert classes[2].threshold is None and classes[2].estimate is None and classes[2].num_objects == 4


def test_a_rare_class_is_taken_for_like_the_others() -> None:
    common = [(0.5 + number / 1000, 0, number % 10 != 0) for number in range(400)]  # nine of ten are right
    one_wrong = calibrate(judged(*common, (0.7, 1, False)), ("cat", "dog"), 0.7).classes[1]
    assert one_wrong.threshold == 0.7 and one_wrong.estimate == pytest.approx(9 / 11, abs=0.01)
    ten_wrong = calibrate(judged(*common, *[(0.7, 1, False)] * 10), ("cat", "dog"), 0.7).classes[1]
    assert ten_wrong.threshold is None


@pytest.mark.parametrize("precision", [0.7, 0.8, 0.9])
def test_new_detections_are_right_as_often_as_wanted(precision: float) -> None:
    calibration = calibrate(simulated(4000, seed=1, power=3), [str(i) for i in range(10)], precision)
    hidden = simulated(200_000, seed=2, power=3)
    smallest = np.array(calibration.thresholds, dtype=np.float64)
    kept = hidden.scores >= smallest[hidden.labels]
    assert hidden.right[kept].mean() == pytest.approx(precision, abs=0.05)
    # The first class needs a higher score than the others, and gets it.
    assert smallest[0] > np.median(smallest[1:])


def test_probabilities_rise_with_scores_and_are_those_of_the_data() -> None:
    calibration = calibrate(simulated(20_000, seed=3), [str(i) for i in range(10)], 0.8)
    probabilities = calibration.probability(np.linspace(0, 1, 101))
    assert (np.diff(probabilities) >= 0).all() and probabilities.min() >= 0 and probabilities.max() <= 1
    assert probabilities[10:91] == pytest.approx(np.linspace(0.1, 0.9, 81), abs=0.06)


def test_it_can_be_written_as_json() -> None:
    values = json.loads(json.dumps(calibrate(judged(*ROWS), ("cat", "dog"), 0.75).to_dict()))
    assert values["precision"] == 0.75 and [entry["name"] for entry in values["classes"]] == ["cat", "dog"]


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="precision=1: must be above 0 and below 1"):
        calibrate(judged(*ROWS), ("cat", "dog"), 1)
    with pytest.raises(ValueError, match="prior_detections=-1: must be 0 or more"):
        calibrate(judged(*ROWS), ("cat", "dog"), 0.5, prior_detections=-1)
    with pytest.raises(ValueError, match="nothing was found on the labeled images"):
        calibrate(judged(), ("cat", "dog"), 0.5)
