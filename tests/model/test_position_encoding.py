"""Encodings of tokens and boxes against hand-worked and recorded numbers."""

import math

import pytest
import torch
from recorded import load_recorded
from torch.testing import assert_close

from semidetr_hf.model.position_encoding import (
    box_position_embedding,
    sine_encoding,
    sine_position_embedding,
    token_centers,
    valid_ratio,
)


@pytest.fixture(scope="module")
def recorded():
    return load_recorded("encodings.npz")


def real(recorded):
    return [~mask for mask in recorded["masks"]]  # recorded masks are True where padded


def test_sine_encoding_by_hand():
    # Position 1/4 is an angle of pi/2. Frequencies 1 and 100^(1/2) = 10: (sin a, cos a, sin a/10, cos a/10).
    angle = math.pi / 2
    expected = torch.tensor([[1.0, 0.0, math.sin(angle / 10), math.cos(angle / 10)]])
    assert_close(sine_encoding(torch.tensor([0.25]), 4, temperature=100), expected, atol=1e-6, rtol=0)
    assert sine_encoding(torch.zeros(0), 4, temperature=100).shape == (0, 4)


def test_recorded_sine_embedding(recorded):
    width = 2 * int(recorded["num_pos_feats"])
    for mask, expected in zip(real(recorded), recorded["sine"], strict=True):
        actual = sine_position_embedding(mask, width, float(recorded["temperature"]))
        assert_close(actual.permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-5)


def test_recorded_ratios_and_centers(recorded):
    masks = real(recorded)
    ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)
    assert_close(ratios, recorded["valid_ratios"])
    centers = torch.cat([token_centers(mask) for mask in masks], dim=1)
    assert_close(centers[:, :, None] * ratios[:, None], recorded["encoder_reference_points"], rtol=1e-5, atol=1e-6)


def test_recorded_box_embedding(recorded):
    for width in (256, 64):
        actual = box_position_embedding(recorded["query_boxes"], width)
        assert_close(actual, recorded[f"query_sine_{width}"], rtol=1e-4, atol=1e-5)


def test_centers_by_hand():
    # 2 rows x 4 columns of which 2 x 2 are real: the centres of the real cells lie at 1/4 and 3/4.
    mask = torch.zeros(1, 2, 4, dtype=torch.bool)
    mask[:, :, :2] = True
    assert valid_ratio(mask).tolist() == [[0.5, 1.0]]
    expected = [[0.25, 0.25], [0.75, 0.25], [1.25, 0.25], [1.75, 0.25]]  # the last two are padding
    assert token_centers(mask)[0, :4].tolist() == expected


def test_each_image_is_encoded_alone():
    masks = torch.ones(2, 3, 5, dtype=torch.bool)
    masks[1, 2:] = False
    masks[1, :, 4:] = False
    for function in (valid_ratio, token_centers, lambda mask: sine_position_embedding(mask, 8, 20)):
        together = function(masks)
        assert_close(together, torch.cat([function(masks[:1]), function(masks[1:])]))


def test_bf16_boxes_are_encoded_in_float32():
    boxes = torch.tensor([[0.5, 0.25, 0.125, 1.0]])
    assert_close(box_position_embedding(boxes.bfloat16(), 16), box_position_embedding(boxes, 16))
