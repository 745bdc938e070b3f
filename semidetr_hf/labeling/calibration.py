"""Scores above which the labels of a class are right as often as wanted, learned on labeled images.

The precision of a class above a score is estimated as (right + m * p) / (found + m): p is the precision of all classes
together above that score, m says how many detections it counts for. A class with few detections cannot look better or
worse than the others by luck alone, and one with many speaks for itself.

Source: the m-estimate of Cestnik, Estimating Probabilities: A Crucial Task in Machine Learning, ECAI 1990, the mean of
a beta-binomial posterior. The probability that a detection is right is an isotonic function of its score: Zadrozny and
Elkan, Transforming Classifier Scores into Accurate Multiclass Probability Estimates, KDD 2002.

On hidden labels of the embedded digits, calibrated on 100 scenes or more, the m-estimate came within 5 points of every
wanted precision in every draw. Plain shares missed it from below, by 3 points with 100 scenes; 80 % lower confidence
bounds found half as many objects at 0.9 and gave up half of the classes; one threshold for all classes left the worst
one 13 to 20 points below what was wanted (benchmarks/label_calibration.py).

Legend: N detections on the labeled images, C class labels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from semidetr_hf.labeling.judging import Judged

PRIOR_DETECTIONS = 10.0  # m; came closer to the wanted precision than 50, see above


@dataclass(frozen=True, kw_only=True)
class ClassThreshold:
    """From which score on a class is labeled, and what that rests on.

    Attributes:
        name: of the class.
        threshold: smallest score of a label; None if the class gets no labels.
        estimate: precision expected above it; without a threshold the highest one that was reached, None if the class
            was not found at all.
        num_right: right detections from the threshold on, on the labeled images; 0 without a threshold.
        num_found: all detections from there on.
        num_objects: boxes of the class on the labeled images.
    """

    name: str
    threshold: float | None
    estimate: float | None
    num_right: int
    num_found: int
    num_objects: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What scores mean, by the labeled images.

    Attributes:
        precision: the share of right labels that was wanted.
        classes: one entry per class label.
        scores: (K,) float64 ascending, with `probabilities` the line from scores to probabilities.
        probabilities: (K,) float64, that a detection of that score is right, between 0 and 1.
    """

    precision: float
    classes: tuple[ClassThreshold, ...]
    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    @property
    def thresholds(self) -> list[float | None]:
        """The threshold of class label i at place i."""
        return [entry.threshold for entry in self.classes]

    def probability(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how likely detections with these scores are right; same shape."""
        return np.interp(scores, self.scores, self.probabilities)

    def to_dict(self) -> dict[str, Any]:
        """Return what a json can hold."""
        return {"precision": self.precision, "classes": [asdict(entry) for entry in self.classes]}


def calibrate(
    judged: Judged, names: Sequence[str], precision: float, *, prior_detections: float = PRIOR_DETECTIONS
) -> Calibration:
    """Choose the threshold of every class.

    Of the scores that the class has on the labeled images it is the smallest from which on the estimate reaches the
    wanted precision. A class gets no labels if there is none, or if it was not found at all.

    Args:
        judged: the detections on labeled images that the detector was not trained on: it finds those of its training
            set too easily, and the thresholds would be too low.
        names: of the C classes.
        precision: wanted share of right labels, above 0 and below 1.
        prior_detections: m, 0 or more; 0 trusts the plain share of every class.

    Raises:
        ValueError: if there is no detection, or an argument is out of range.
    """
    if not 0 < precision < 1:
        raise ValueError(f"precision={precision}: must be above 0 and below 1")
    if not prior_detections >= 0:
        raise ValueError(f"prior_detections={prior_detections}: must be 0 or more")
    if not len(judged.scores):
        raise ValueError("nothing was found on the labeled images, so there is nothing to calibrate on")
    order = np.argsort(-judged.scores, kind="stable")
    scores, labels, right = judged.scores[order], judged.labels[order], judged.right[order]
    # Detections of the same score come over a threshold together, so only the last of them is one.
    is_threshold = np.append(scores[1:] != scores[:-1], True)
    pooled = _at_ties(np.cumsum(right) / np.arange(1, len(scores) + 1), is_threshold)
    classes = []
    for label, name in enumerate(names):
        rows = np.flatnonzero(labels == label)
        num_right = np.cumsum(right[rows], dtype=np.int64)
        num_found = np.arange(1, len(rows) + 1)
        estimates = (num_right + prior_detections * pooled[rows]) / (num_found + prior_detections)
        classes.append(
            _class_threshold(
                name, scores[rows], num_right, estimates, wanted=precision, num_objects=judged.num_objects[label]
            )
        )
    curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(judged.scores, judged.right)
    return Calibration(
        precision=precision,
        classes=tuple(classes),
        scores=curve.X_thresholds_.astype(np.float64),
        probabilities=curve.y_thresholds_.astype(np.float64),
    )


def _at_ties(values: NDArray[np.float64], is_last: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give every entry the value of the last one that is tied with it."""
    ends = np.flatnonzero(is_last)
    return values[ends[np.searchsorted(ends, np.arange(len(values)))]]


def _class_threshold(
    name: str,
    scores: NDArray[np.float64],
    num_right: NDArray[np.int64],
    estimates: NDArray[np.float64],
    *,
    wanted: float,
    num_objects: int,
) -> ClassThreshold:
    """Choose among the detections of one class, best first; `num_right` and `estimates` are of all down to each."""
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.array([], dtype=np.int64)
    reached = ends[estimates[ends] >= wanted]
    if not len(reached):
        highest = float(estimates[ends].max()) if len(ends) else None
        return ClassThreshold(
            name=name, threshold=None, estimate=highest, num_right=0, num_found=0, num_objects=num_objects
        )
    place = int(reached[-1])
    return ClassThreshold(
        name=name,
        threshold=float(scores[place]),
        estimate=float(estimates[place]),
        num_right=int(num_right[place]),
        num_found=place + 1,
        num_objects=num_objects,
    )
