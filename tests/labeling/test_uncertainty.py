import numpy as np
import pytest

from semidetr_hf.labeling.uncertainty import binary_entropy, image_uncertainty


def test_a_fair_coin_is_one_bit_and_certainty_none() -> None:
    # 0.25: -(0.25 * log2 0.25 + 0.75 * log2 0.75) = 0.5 + 0.31128
    entropies = binary_entropy(np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert entropies == pytest.approx([0, 0.811278, 1, 0.811278, 0], abs=1e-6)


def test_an_image_is_as_uncertain_as_its_detections_together() -> None:
    assert image_uncertainty(np.array([0.5, 0.5, 0.25])) == pytest.approx(2.811278, abs=1e-6)
    assert image_uncertainty(np.array([])) == 0
