"""How unsure a detector is about an image, for the order in which people look at images.

The measure is the sum of the binary entropies of the detections, in bits: about how many yes-or-no questions about its
boxes the image leaves open. A person settles such questions one by one, so an image with several is worth more of a
look than one with a single worse one; the mean and the largest entropy do not say so.

Source: entropy as the measure of uncertainty, Settles, Active Learning Literature Survey, 2009, section 3.1; summed
over the detections of an image as in Brust et al., Active Learning for Deep Object Detection, VISAPP 2019
(arXiv 1809.09875), and Wu et al., Entropy-based Active Learning for Object Detection with Progressive Diversity
Constraint, CVPR 2022 (arXiv 2204.07965). On hidden labels of the embedded digits its rank correlation with the number
of corrections that an image needs is 0.55, with calibrated probabilities 0.61; that of the mean entropy is -0.26, of
the largest -0.13 (benchmarks/label_calibration.py).

Legend: N detections of one image.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr


def binary_entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy in bits of events with these probabilities, each from 0 to 1; same shape."""
    return (entr(probabilities) + entr(1 - probabilities)) / np.log(2)


def image_uncertainty(probabilities: NDArray[np.float64]) -> float:
    """Return how unsure a detector is about an image, in bits.

    Args:
        probabilities: (N,) that each of its detections is right: calibrated where that is known, else the scores.

    Returns:
        0 or more, 0 without detections: what the detector did not see at all it cannot be unsure about.
    """
    return float(binary_entropy(probabilities).sum())
