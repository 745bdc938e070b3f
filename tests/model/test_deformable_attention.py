"""Deformable attention against hand-worked and recorded numbers; its three ways of sampling against each other."""

import pytest
import torch
from recorded import load_recorded
from tiny import tiny_config
from torch.testing import assert_close

from semidetr_hf.model import deformable_attention
from semidetr_hf.model.deformable_attention import (
    multi_scale_deformable_attention,
    sample_by_grid,
    sample_densely,
)
from semidetr_hf.model.modeling_semidetr import SemiDetrDeformableAttention, sampling_grid

SHAPES = [(6, 9), (3, 5), (2, 3), (1, 2)]  # 54 + 15 + 6 + 2 = 77 tokens


def random_inputs(batch=2, queries=7, heads=2, width=4, shapes=SHAPES, seed=0):
    """Locations reach from -0.3 to 1.3, so that many points and corners lie outside."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * columns for height, columns in shapes)
    value = torch.randn(batch, tokens, heads, width, generator=generator)
    locations = torch.rand(batch, queries, heads, len(shapes), 3, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(batch, queries, heads, len(shapes), 3, generator=generator)
    return value, locations, weights / weights.sum((-1, -2), keepdim=True)


def attend(value, locations, weights, shapes=SHAPES):
    return multi_scale_deformable_attention(value, shapes, sampling_locations=locations, attention_weights=weights)


def gradients(function, *tensors):
    """Return the output and the gradients of a weighted sum of it."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    weight = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return output.detach(), torch.autograd.grad((output * weight).sum(), leaves)


@pytest.fixture(params=["bag", "dense"])
def way(request, monkeypatch):
    """Let training on the CPU sample in one way, whatever the size of the image."""
    monkeypatch.setattr(deformable_attention, "MAX_DENSE_TOKENS", 0 if request.param == "bag" else 10**9)
    return request.param


def test_by_hand():
    # A level of 1 x 2 cells with values 10 and 20; centres at x = 1/4 and 3/4.
    value = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1)
    x = torch.tensor([0.25, 0.5, 0.75, 0.0, 2.0])
    locations = torch.stack([x, torch.full_like(x, 0.5)], dim=-1).view(1, 5, 1, 1, 1, 2)
    output = attend(value, locations, torch.ones(1, 5, 1, 1, 1), [(1, 2)])
    # Both centres, halfway, the left border (half of the cell lies outside, which is 0) and far outside.
    expected = torch.tensor([10.0, 15.0, 20.0, 5.0, 0.0])
    assert_close(output.view(-1), expected)
    assert_close(sample_densely(value, [(1, 2)], locations, torch.ones(1, 5, 1, 1, 1)).view(-1), expected)


@pytest.mark.parametrize("case", [0, 1])
def test_recorded_core(case, way):
    recorded = load_recorded("msda.npz")["core"][case]
    shapes = [tuple(shape) for shape in recorded["spatial_shapes"].tolist()]
    names = ("value", "sampling_locations", "attention_weights")
    leaves = [recorded[name].clone().requires_grad_() for name in names]
    output = attend(*leaves, shapes)
    assert_close(output, recorded["output"], rtol=1e-4, atol=5e-5)
    output.backward(recorded["grad_output"])
    assert_close(leaves[0].grad, recorded["grad_value"], rtol=1e-4, atol=5e-5)
    assert_close(leaves[2].grad, recorded["grad_attention_weights"], rtol=1e-4, atol=5e-5)
    # Query 0 lies on cell borders, where the gradient jumps.
    expected = recorded["grad_sampling_locations_from_query1"]
    assert_close(leaves[1].grad[:, 1:], expected, rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize(
    ("points", "masked", "expected"), [(2, True, "output_2d"), (4, True, "output_4d"), (4, False, "output_4d_no_mask")]
)
def test_recorded_module(points, masked, expected):
    recorded = load_recorded("msda.npz")["module"][0]
    config = tiny_config(d_model=32)
    module = SemiDetrDeformableAttention(config, int(recorded["num_heads"]), int(recorded["num_points"]))
    weights = {}
    for name, parts in recorded["state_dict"].items():  # keys with a dot are not split by the reader
        weights[name] = parts
    module.load_state_dict(weights)
    padding = recorded["padding_mask"] if masked else torch.zeros_like(recorded["padding_mask"])
    output, _ = module(
        recorded["query"],
        memory=recorded["source"],
        token_mask=~padding,
        reference_points=recorded[f"reference_points_{points}d"],
        spatial_shapes=[tuple(shape) for shape in recorded["spatial_shapes"].tolist()],
    )
    assert_close(output, recorded[expected], rtol=1e-4, atol=5e-5)


def test_recorded_initial_grid():
    expected = load_recorded("msda.npz")["init_sampling_offsets_bias_heads8_levels4_points4"]
    assert_close(sampling_grid(8, 4, 4).flatten(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [2048, 8, 3])  # all at once, one image per block, several blocks per image
@pytest.mark.parametrize("batch", [1, 2])
def test_all_ways_agree(monkeypatch, way, block, batch):
    monkeypatch.setattr(deformable_attention, "BLOCK_QUERIES", block)
    inputs = random_inputs(batch)
    output, grads = gradients(attend, *inputs)
    by_grid, grads_by_grid = gradients(lambda value, x, w: sample_by_grid(value, SHAPES, x, w), *inputs)
    assert_close(output, by_grid, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(grads, grads_by_grid, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_small_images_are_trained_densely_and_nothing_else_is(monkeypatch):
    used = []
    monkeypatch.setattr(
        deformable_attention, "sample_densely", lambda *args: (used.append(1), sample_densely(*args))[1]
    )
    value, locations, weights = random_inputs()
    attend(value, locations, weights)  # nothing to train
    with torch.no_grad():
        attend(value.requires_grad_(), locations, weights)
    monkeypatch.setattr(deformable_attention, "MAX_DENSE_TOKENS", 76)
    attend(value, locations, weights)  # one token too many
    assert used == []
    monkeypatch.setattr(deformable_attention, "MAX_DENSE_TOKENS", 77)
    attend(value, locations, weights)
    attend(value.detach(), locations.requires_grad_(), weights)
    assert used == [1, 1]


def test_points_far_outside_have_no_effect(way):
    value, locations, weights = random_inputs()
    for distance in (-1e6, -2.0, 3.0, 1e6):
        output, grads = gradients(attend, value, torch.full_like(locations, distance), weights)
        assert not output.any()
        assert not any(grad.any() for grad in grads)


def test_backward_is_deterministic(way):
    inputs = random_inputs(queries=50)
    _, first = gradients(attend, *inputs)
    _, second = gradients(attend, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_batch_of_two_equals_two_of_one(way):
    value, locations, weights = random_inputs()
    value.requires_grad_()  # or it would not be sampled densely
    both = attend(value, locations, weights)
    for i in range(2):
        part = slice(i, i + 1)
        assert_close(both[part], attend(value[part], locations[part], weights[part]))


def test_output_is_linear_in_the_value():
    value, locations, weights = random_inputs()
    other = torch.randn_like(value)
    together = attend(value + 2 * other, locations, weights)
    assert_close(
        together, attend(value, locations, weights) + 2 * attend(other, locations, weights), rtol=1e-4, atol=1e-5
    )


def test_bf16_value_gives_bf16(way):
    value, locations, weights = random_inputs()
    value.requires_grad_()
    low = attend(value.bfloat16(), locations, weights)
    assert low.dtype == torch.bfloat16
    assert_close(low.float(), attend(value, locations, weights), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_captured_graphs_sample_in_float32(monkeypatch, dtype):
    """Only the value and the output are rounded, not where it is read: that would move points on wide levels."""
    shapes = [(100, 160), (50, 80)]
    value, locations, weights = random_inputs(shapes=shapes)
    value = value.to(dtype)
    expected = sample_by_grid(value.float(), shapes, locations, weights)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    output = attend(value, locations, weights, shapes)
    assert output.dtype == dtype
    assert torch.equal(output, expected.to(dtype))
    rounded = sample_by_grid(value.float(), shapes, locations.to(dtype).float(), weights)
    assert (rounded - expected).abs().max() > 10 * (output.float() - expected).abs().max()


def test_no_queries(way):
    value, locations, weights = random_inputs()
    value.requires_grad_()
    output = attend(value, locations[:, :0], weights[:, :0])
    assert output.shape == (2, 0, 8)
    output.sum().backward()
    assert not value.grad.any()


def test_wrong_levels_are_named():
    value, locations, weights = random_inputs()
    with pytest.raises(ValueError, match=r"levels \[\(6, 9\)\] do not add up to the 77 tokens"):
        attend(value, locations, weights, [(6, 9)])
