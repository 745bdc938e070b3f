"""From detections to labels: the ones sure enough are kept, and images are ranked by how unsure the detector is.

Legend: N detections of one image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semidetr_hf.labeling.calibration import Calibration
from semidetr_hf.labeling.detection import DetectedImage
from semidetr_hf.labeling.uncertainty import image_uncertainty
from semidetr_hf.structures import PseudoLabels

# What is right less than once in ten times is no open question; nothing above it may be left out, see uncertainty.py.
MIN_PROBABILITY = 0.1
# Without calibration scores have no meaning of their own; half the threshold is "just below" it.
JUST_BELOW = 0.5


@dataclass(frozen=True, kw_only=True)
class LabeledImage:
    """An image with its pseudo-labels, boxes in pixels of the upright image.

    Attributes:
        detected: the image.
        labels: what is written as labels, best first.
        considered: what the uncertainty counts: detections that are or might be labels.
        uncertainty: in bits, 0 or more.
    """

    detected: DetectedImage
    labels: PseudoLabels
    considered: PseudoLabels
    uncertainty: float


def label_by_threshold(images: Iterable[DetectedImage], threshold: float) -> list[LabeledImage]:
    """Label with one threshold for all classes, and take scores for probabilities.

    Args:
        images: what was found.
        threshold: smallest score of a label, from 0 to 1.

    Returns:
        Most uncertain first; among equals in the order given.

    Raises:
        ValueError: if the threshold is out of range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: must be from 0 to 1")
    labeled = []
    for image in images:
        found = image.found
        considered = found[found.scores >= JUST_BELOW * threshold]
        labeled.append(
            LabeledImage(
                detected=image,
                labels=found[found.scores >= threshold],
                considered=considered,
                uncertainty=image_uncertainty(considered.scores.double().numpy()),
            )
        )
    return _ranked(labeled)


def label_by_calibration(images: Iterable[DetectedImage], calibration: Calibration) -> list[LabeledImage]:
    """Label with the calibrated threshold of every class, and judge uncertainty by calibrated probabilities.

    Args:
        images: what was found.
        calibration: of the same detector and the same rules of detection.

    Returns:
        Most uncertain first; among equals in the order given.
    """
    labeled = []
    for image in images:
        found = image.found
        probabilities = calibration.probability(found.scores.double().numpy())
        is_considered = probabilities >= MIN_PROBABILITY
        labeled.append(
            LabeledImage(
                detected=image,
                labels=found[_above(found, calibration.thresholds)],
                considered=found[torch.from_numpy(is_considered)],
                uncertainty=image_uncertainty(probabilities[is_considered]),
            )
        )
    return _ranked(labeled)


def _above(found: PseudoLabels, thresholds: Sequence[float | None]) -> Tensor:
    """Return (N,) bool, whether each detection reaches the threshold of its class."""
    # In float64: a threshold is the score of a detection, and must let that score pass.
    smallest = torch.tensor([np.inf if value is None else value for value in thresholds], dtype=torch.float64)
    return found.scores.double() >= smallest[found.class_labels]


def _ranked(images: list[LabeledImage]) -> list[LabeledImage]:
    return sorted(images, key=lambda image: -image.uncertainty)
